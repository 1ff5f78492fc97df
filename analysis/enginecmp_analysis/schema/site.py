"""What a site tells machines: runs.json ("enginecmp-site/1") and leaderboards.json ("enginecmp-leaderboards/1")."""

from __future__ import annotations

import msgspec

from enginecmp_analysis.schema.stats import Ranking

SITE_SCHEMA = "enginecmp-site/1"
BOARDS_SCHEMA = "enginecmp-leaderboards/1"


class SiteRun(msgspec.Struct, kw_only=True):
    """One run of the index.

    Attributes:
        run_id: as its manifest has it.
        folder: its folder below `runs/`, letters, digits, ".", "-" and "_" alone.
        created_utc: as its manifest has it.
        status: complete, interrupted or running.
        scenario: name and profile.
        model: name and quantization.
        machine: processor, cores, memory and GPU.
        engines: labels.
        first: who is first with its value and ties, or how many cells were ranked; "" without a ranking.
        files: names of its data files below `folder`.
    """

    run_id: str
    folder: str
    created_utc: str
    status: str
    scenario: str
    model: str
    machine: str
    engines: list[str]
    first: str
    files: list[str]


class SiteIndex(msgspec.Struct, kw_only=True):
    """runs.json.

    Attributes:
        schema: "enginecmp-site/1".
        runs: the latest last.
        notes: what was left out, one sentence each.
    """

    schema: str = SITE_SCHEMA
    runs: list[SiteRun]
    notes: list[str] = []


class BoardTable(msgspec.Struct, kw_only=True):
    """Runs that are pooled.

    Attributes:
        run_ids: in the order of time.
        engines: label to version, device and gate.
        rankings: one a cell.
        apart: why they are not pooled with others of the leaderboard; "" for one table.
    """

    run_ids: list[str]
    engines: dict[str, str]
    rankings: list[Ranking]
    apart: str


class Board(msgspec.Struct, kw_only=True):
    """One model on one machine in one scenario; the latest table first."""

    model: str
    machine: str
    scenario: str
    tables: list[BoardTable]


class SiteBoards(msgspec.Struct, kw_only=True):
    """leaderboards.json.

    Attributes:
        schema: "enginecmp-leaderboards/1".
        leaderboards: sorted by model, scenario and machine.
    """

    schema: str = BOARDS_SCHEMA
    leaderboards: list[Board]
