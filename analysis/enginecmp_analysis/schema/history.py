"""What `cmp stats --history --json` prints: schema "enginecmp-history/1". NaN is written as null."""

from __future__ import annotations

import msgspec

from enginecmp.format.records import Cell

HISTORY_SCHEMA = "enginecmp-history/1"


class Point(msgspec.Struct, kw_only=True):
    """One run.

    Attributes:
        created_utc: when it began.
        run_id: its id.
        n_launches: launches behind the value.
        value: geometric mean of launch means.
        ci_low: lower 95 % limit.
        ci_high: upper 95 % limit.
        ratio: value / level of the segment before, as the metric is named; null where there is none under the same
            fingerprint.
        changed: a segment begins here.
        new_fingerprint: what is new since the run before, where that forbids a comparison; else null.
        note: what is new in the engine's build or options, else null.
    """

    created_utc: str
    run_id: str
    n_launches: int
    value: float
    ci_low: float
    ci_high: float
    ratio: float
    changed: bool
    new_fingerprint: str | None
    note: str | None


class Series(msgspec.Struct, kw_only=True):
    """One metric of one engine in one cell over time.

    Attributes:
        scenario: name.
        engine: label.
        cell: point of the grid; null for what belongs to a whole launch.
        metric: name with unit.
        points: in the order of time.
    """

    scenario: str
    engine: str
    cell: Cell | None
    metric: str
    points: list[Point]


class HistoryReport(msgspec.Struct, kw_only=True):
    """Everything that `cmp stats --history` found.

    Attributes:
        schema: "enginecmp-history/1".
        series: one an engine, cell and metric.
        warnings: what concerns the runs.
    """

    schema: str = HISTORY_SCHEMA
    series: list[Series] = []
    warnings: list[str] = []
