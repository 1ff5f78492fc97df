"""Leaderboards over many runs, in the memory of their launch means: who is first, with ties, under like conditions.

What is kept of a run is its manifest and the launch means of its primary metric, so that the samples of one run alone
are in memory at a time. Runs are pooled as everywhere: same model, machine, scenario and engine builds. Warm-up is cut
in each run by itself, where `cmp stats` cuts pooled runs alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from enginecmp.format.records import Cell, Manifest
from enginecmp_analysis.data.cells import cell_order
from enginecmp_analysis.data.fingerprint import Group, group_runs
from enginecmp_analysis.data.group import Context, GroupResult, describe_group
from enginecmp_analysis.data.launches import Key, LaunchMeans, join
from enginecmp_analysis.data.lean import lean
from enginecmp_analysis.data.levels import Level, levels_of
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.judge.ranking import rank_cell
from enginecmp_analysis.schema.stats import Ranking


class Entry(NamedTuple):
    """What a leaderboard keeps of a run.

    Attributes:
        run: its manifest, and one sample of each block and cell.
        means: launch means of its primary metric, without single values.
    """

    run: Run
    means: dict[Key, LaunchMeans]


@dataclass(frozen=True, slots=True)
class Table:
    """Runs that are pooled, and the rankings of their engines.

    Attributes:
        context: what stands above them.
        manifests: of the runs, in the order of time.
        rankings: one a cell; none where no engine has the primary metric.
        apart: why these runs are not pooled with others of the same leaderboard; "" for the first of them.
    """

    context: Context
    manifests: list[Manifest]
    rankings: list[Ranking]
    apart: str


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """One model on one machine in one scenario.

    Attributes:
        model: name and quantization.
        machine: as `name` calls it.
        scenario: name and profile.
        tables: the latest first; several where runs differ in builds, settings or anything else that counts.
    """

    model: str
    machine: str
    scenario: str
    tables: list[Table]


def entry_of(group: GroupResult) -> Entry:
    """Return what a leaderboard keeps of an analysed run.

    Args:
        group: of one run.
    """
    # A search meets every engine at loads of its own.
    searched = bool(group.runs[0].manifest.scenario.get("find_max"))
    kept = lean(group, () if searched else (group.context.primary_metric,))
    return Entry(kept.runs[0], kept.means)


def leaderboards(entries: Iterable[tuple[Entry, str]], options: Options) -> list[Leaderboard]:
    """Pool and rank.

    Args:
        entries: of each run, in the order of time, with the name of its machine.
        options: level of the tests.

    Returns:
        One for every model, machine and scenario, sorted by these.
    """
    places: dict[tuple[str, str, str], list[Entry]] = {}
    for entry, machine in entries:
        places.setdefault((*model_and_scenario(entry.run.manifest), machine), []).append(entry)
    return [
        Leaderboard(model, machine, scenario, _tables(scenario, places[model, scenario, machine], options))
        for model, scenario, machine in sorted(places)
    ]


def model_and_scenario(manifest: Manifest) -> tuple[str, str]:
    """Return model with quantization and scenario with profile, as a leaderboard names them."""
    model, scenario = manifest.model, manifest.scenario
    name, profile = str(scenario.get("name", "unnamed")), str(scenario.get("profile") or "")
    return (
        f"{model.name} ({model.quantization})" if model.quantization else model.name,
        f"{name} ({profile})" if profile else name,
    )


def _tables(scenario: str, entries: Sequence[Entry], options: Options) -> list[Table]:
    groups, reasons = group_runs([entry.run for entry in entries])
    means = {id(entry.run): entry.means for entry in entries}
    tables = [
        _table(group, scenario, [means[id(run)] for run in group.runs], apart, options)
        for group, apart in zip(groups, ["", *reasons], strict=True)
    ]
    return sorted(tables, key=lambda table: table.manifests[-1].created_utc, reverse=True)


def _table(group: Group, scenario: str, means: Sequence[dict[Key, LaunchMeans]], apart: str, options: Options) -> Table:
    context = describe_group(group, scenario, options.baseline)
    parts: dict[Key, list[LaunchMeans]] = {}
    for level, own in zip(levels_of(group.runs).of_runs, means, strict=True):
        for key, launches in own.items():
            parts.setdefault(key, []).append(_at(level, launches))
    pooled = {key: join(some) for key, some in parts.items()}
    cells: list[Cell | None] = [*sorted({cell for _, cell, _ in pooled if cell is not None}, key=cell_order), None]
    rankings = [rank_cell(cell, context, pooled, options) for cell in cells]
    manifests = [run.manifest for run in group.runs]
    return Table(context, manifests, [ranking for ranking in rankings if ranking is not None], apart)


def _at(level: Level, launches: LaunchMeans) -> LaunchMeans:
    """Return launch means of a run by itself as those of a run in its group."""
    return replace(
        launches,
        blocks=[level.block(block) for _, block in launches.blocks],
        told=frozenset(level.block(block) for _, block in launches.told),
    )
