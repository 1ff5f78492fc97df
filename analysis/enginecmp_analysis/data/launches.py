"""Launch means: the numbers on which everything is decided.

Requests of one process share its memory layout, its clocks and its luck; a test on pooled requests calls 6 of 10
equal pairs different. The launch is the unit of replication, and its mean is one observation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.flags import SPOIL_TIMES
from enginecmp.format.records import Cell
from enginecmp_analysis.data.columns import KEPT, LOAD, MEASURE, Columns
from enginecmp_analysis.data.equal_work import shared
from enginecmp_analysis.data.levels import Level, levels_of
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.memory import allocator_slack, decode_bandwidth, kv_slopes, leaks, peak_above_empty
from enginecmp_analysis.data.metrics import METRICS, metrics_of
from enginecmp_analysis.data.prefix_cache import HIT, prompt_shares
from enginecmp_analysis.data.stamps import gap_values, request_times, request_values, seconds
from enginecmp_analysis.data.sweep import saturation, scaling
from enginecmp_analysis.data.windows import (
    Place,
    Windows,
    good_requests,
    good_tokens,
    goodput,
    launch_starts,
    places,
    split,
    tokens_inside,
)
from enginecmp_analysis.statistics.variance import replicates

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Block = tuple[int, int]
"""Number of the run (or node: `enginecmp_analysis.data.levels`) inside its group, and of the block inside that."""


@dataclass(slots=True)
class LaunchMeans:
    """One metric of one engine in one cell, launch by launch.

    Attributes:
        blocks: the block each launch belongs to.
        means: (L,) mean of each launch.
        counts: (L,) values (requests, or token gaps) behind each mean.
        requests: (L,) requests behind each mean.
        values: (V,) all single values, launch after launch as in `counts`; for per-launch metrics the means.
        told: blocks whose mean another tool told: it stands for its launch whatever number of requests is behind it.
    """

    blocks: list[Block]
    means: Floats
    counts: Ints
    requests: Ints
    values: Floats
    told: frozenset[Block] = frozenset()

    def full(self, least: int) -> set[Block]:
        """Return the blocks whose launches count for a verdict: `least` requests or more, or known by their mean."""
        return {block for block, n in zip(self.blocks, self.requests.tolist(), strict=True) if n >= least} | self.told

    def replicates(self) -> Floats:
        """Return what an interval rests on: the means of launches, or of several runs or nodes."""
        return replicates(self.means, [run for run, _ in self.blocks])

    def per_launch(self) -> list[Floats]:
        """Return the single values of each launch."""
        return np.split(self.values, np.cumsum(self.counts)[:-1])


Key = tuple[str, Cell | None, str]
"""Engine, cell (None for what belongs to the whole launch), metric."""


def launch_means(
    runs: Sequence[Run],
    metrics: Iterable[str],
    keep: Iterable[NDArray[np.bool_]],
    held: Iterable[NDArray[np.bool_]] | None = None,
) -> dict[Key, LaunchMeans]:
    """Reduce runs of one group to launch means.

    Args:
        runs: runs that may be pooled.
        metrics: names of the metrics wanted; a run has those of its scenario's kind.
        keep: for every run a mask over its samples: which ones count.
        held: which ones count for bytes that engines hold; `keep` where nothing is given.

    Returns:
        One entry for every engine, cell and metric that has at least one value.
    """
    wanted = list(metrics)
    parts: dict[Key, list[LaunchMeans]] = {}
    keep = list(keep)
    levels = levels_of(runs).of_runs
    for level, run, kept, bytes_of in zip(levels, runs, keep, keep if held is None else held, strict=True):
        for key, part in _RunMeans(level, run, wanted, kept, bytes_of).all():
            parts.setdefault(key, []).append(part)
        for key, part in _told_means(level, run, wanted):
            # What the requests say themselves goes first.
            if not any(part.told.intersection(other.blocks) for other in parts.get(key, ())):
                parts.setdefault(key, []).append(part)
    return {key: join(some) for key, some in parts.items()}


def measured(columns: Columns, *, include_flagged: bool = False, bytes_held: bool = False) -> NDArray[np.bool_]:
    """Return which samples count: phases load and measure, status ok, no flag.

    Args:
        columns: the run.
        include_flagged: keep samples that carry a flag, as long as they ended well.
        bytes_held: keep those whose flags spoil times alone: memory is not larger beside other work.
    """
    phase: NDArray[np.bool_] = (columns.phase == MEASURE) | (columns.phase == LOAD)
    if include_flagged:
        return phase & ~columns.failed()
    fine = [code for code, reason in enumerate(columns.reasons) if bytes_held and _spoils_times(reason)]
    kept: NDArray[np.bool_] = np.isin(columns.excluded, [KEPT, *fine])
    return phase & kept


def _spoils_times(reason: str) -> bool:
    """Return whether a reason is one or more flags, all of which say how fast the machine was."""
    return bool(reason) and SPOIL_TIMES.issuperset(reason.split("+"))


Found = Iterator[tuple[Key, LaunchMeans]]


class _RunMeans:
    """The launch means of one run.

    Args:
        level: where its blocks stand in its group.
        run: the run.
        metrics: names wanted.
        kept: (N,) which samples count.
        held: (N,) which samples count for bytes that the engine holds.
    """

    def __init__(
        self, level: Level, run: Run, metrics: list[str], kept: NDArray[np.bool_], held: NDArray[np.bool_]
    ) -> None:
        self.level = level
        self.run = run
        self.columns = run.columns
        self.kind = scenario_kind(run)
        known = set(metrics_of(self.kind))
        self.wanted = [name for name in metrics if name in known]
        self.kept = kept
        self.held = held
        self.times = request_times(run.columns)
        engines = run.manifest.engines
        self.batching = {engine.name for engine in engines if engine.options.get("batching") == "continuous"}
        limits = run.manifest.scenario.get("goodput") or {}
        self.limits = {name: float(limit) for name, limit in limits.items() if limit is not None}

    def all(self) -> Found:
        """Yield every engine, cell and metric that has a value."""
        columns = self.columns
        yield from self._loads()
        per_request = {
            name: request_values(name, columns, self.times) for name in self.wanted if METRICS[name].per == "request"
        }
        steady: dict[str, list[Place]] = {}
        fair = shared(columns, self.kept)
        for place in places(columns, self.kept):
            engine, cell, members = place.engine, place.cell, place.rows[fair[place.rows]]
            for name, values in per_request.items():
                present = members[np.isfinite(values[members])]
                if len(present):
                    ones = np.ones(len(present), np.int64)
                    yield (engine, cell, name), _reduce(self.level, columns, present, values[present], ones)
            if "itl_seconds" in self.wanted:
                present = members[self.times.per_token[members]]
                if len(present):
                    gaps, counts = gap_values(columns, present)
                    yield (engine, cell, "itl_seconds"), _reduce(self.level, columns, present, gaps, counts)
            steady.setdefault(engine, []).append(place)
            yield from self._of_launches(place)
        for engine, of_engine in steady.items():
            yield from self._of_blocks(engine, of_engine)
        yield from self._bytes_held()

    def _loads(self) -> Found:
        """Yield what is measured before the first request: one value a launch, whatever its cells.

        In a scenario about loading the cells are kinds of loading, each with launches of its own.
        """
        columns = self.columns
        rows = np.flatnonzero(self.kept & (columns.phase == LOAD) & ~self._runs_already())
        spent = {
            "load_seconds": seconds(columns.end_ns - columns.start_ns),
            **{f"load_{phase}_seconds": columns.metric(f"load_{phase}_seconds") for phase in ("parse", "map", "init")},
            "startup_seconds": columns.metric("startup_seconds"),
        }
        place = columns.engine * len(columns.cells) + (columns.cell if self.kind == "load" else 0)
        for name in [name for name in spent if name in self.wanted]:
            for code, loads in split(rows[np.isfinite(spent[name][rows])], place):
                loads = loads[np.argsort(columns.launch[loads], kind="stable")]
                cell = columns.cells[code % len(columns.cells)] if self.kind == "load" else None
                means = _reduce(self.level, columns, loads, spent[name][loads], np.ones(len(loads), np.int64))
                yield (columns.engines[code // len(columns.cells)], cell, name), means

    def _runs_already(self) -> NDArray[np.bool_]:
        """Return which samples (N,) are of engines that ran before the run: what was loaded then is a client."""
        running = {engine.name for engine in self.run.manifest.engines if engine.options.get("running")}
        codes = [code for code, label in enumerate(self.columns.engines) if label in running]
        found: NDArray[np.bool_] = np.isin(self.columns.engine, codes)
        return found

    def _of_launches(self, place: Place) -> Found:
        """Yield the metrics of which a launch has one value in a cell."""
        columns, found = self.columns, place.found
        parts = place.parts(columns)
        values: dict[str, Floats] = {}
        if "throughput_tokens_per_second" in self.wanted:
            rates = found.tokens / found.seconds
            values["throughput_tokens_per_second"] = np.where(rates > 0, rates, np.nan)
            values["requests_per_second"] = found.completed / found.seconds
            if "gpus" in columns.metrics:
                gpus = np.array([columns.metric("gpus")[part].mean() for part in parts])
                values["throughput_tokens_per_second_per_gpu"] = values["throughput_tokens_per_second"] / gpus
            values["joules_per_token"] = self._joules(found, place.well)
            if (told := self.run.telemetry) is not None:
                windows = list(zip(found.begin_ns.tolist(), found.end_ns.tolist(), strict=True))
                values["gpu_memory_bytes"] = np.array([told.gpu_memory_bytes(*window) for window in windows])
                values["gpu_busy_share"] = np.array([told.gpu_busy_share(*window) for window in windows])
                of_server = [told.server(*window) for window in windows]
                values |= {name: np.array([one[name] for one in of_server]) for name in of_server[0]} if windows else {}
        cached = {"prefix_cache_hit_tokens", "cached_prompt_tokens"}.intersection(columns.metrics)
        if HIT in self.wanted and (cached or place.cell.workload):
            values |= prompt_shares(columns, place, batching=place.engine in self.batching)
        if "first_token_from_start_seconds" in self.wanted:
            first = columns.metric("first_token_from_start_seconds")
            values["first_token_from_start_seconds"] = np.array([first[part].mean() for part in parts])
        if "decode_bandwidth_bytes_per_second" in self.wanted and "weights_bytes" in columns.metrics:
            bandwidth = decode_bandwidth(columns, self.times, found, parts, place.well)
            values["decode_bandwidth_bytes_per_second"] = bandwidth
            copy = self.run.manifest.environment.get("copy_bandwidth_bytes_per_second")
            if isinstance(copy, int | float) and copy > 0:
                values["decode_bandwidth_share"] = bandwidth / copy
        for name in [name for name in self.wanted if name in values]:
            yield from self._one_a_launch((place.engine, place.cell, name), found.block, values[name], found.requests)
        if self.limits and {"goodput_requests_per_second", "goodput_tokens_per_second"}.intersection(self.wanted):
            good = good_requests(columns, self.limits)
            of_requests = goodput(columns, place, good)
            of_tokens = good_tokens(columns, place, good, of_requests)
            for name, of_launches in (
                ("goodput_requests_per_second", of_requests),
                ("goodput_tokens_per_second", of_tokens),
            ):
                if name in self.wanted:
                    block, rates, requests = self._with_lost(place, of_launches)
                    yield from self._one_a_launch((place.engine, place.cell, name), block, rates, requests)

    def _joules(self, found: Windows, well: Ints) -> Floats:
        """Return joules a token of each launch; whatever ended well in the window counts, flagged or not."""
        if self.run.telemetry is None:
            return np.full(len(found.launch), np.nan)
        joules = np.array(
            [
                self.run.telemetry.joules(begin, end)
                for begin, end in zip(found.begin_ns.tolist(), found.end_ns.tolist(), strict=True)
            ]
        )
        launches = self.columns.launch[well]
        tokens = np.array(
            [
                tokens_inside(self.columns, well[launches == launch], begin, end)
                for launch, begin, end in zip(found.launch, found.begin_ns, found.end_ns, strict=True)
            ]
        )
        return np.where(tokens > 0, joules / np.maximum(tokens, 1), np.nan)

    def _with_lost(self, place: Place, rates: Floats) -> tuple[Ints, Floats, Ints]:
        """Add launches of which every measured request failed: their goodput is zero, not absent."""
        columns, found = self.columns, place.found
        mine = place.everyone[columns.phase[place.everyone] == MEASURE]
        lost = [
            int(launch)
            for launch in np.setdiff1d(columns.launch[mine], found.launch)
            if place.failed[mine[columns.launch[mine] == launch]].all()
        ]
        rows = [mine[columns.launch[mine] == launch] for launch in lost]
        return (
            np.r_[found.block, [int(columns.block[part[0]]) for part in rows]].astype(np.int64),
            np.r_[rates, np.zeros(len(lost))],
            np.r_[found.requests, [len(part) for part in rows]].astype(np.int64),
        )

    def _of_blocks(self, engine: str, of_engine: list[Place]) -> Found:
        """Yield what takes several cells of a block."""
        if "scaling_efficiency" in self.wanted:
            for cell, (block, values, requests) in scaling(of_engine).items():
                yield from self._one_a_launch((engine, cell, "scaling_efficiency"), block, values, requests)
        if "saturation_requests_per_second" in self.wanted:
            for cell, (block, values, requests) in saturation(self.columns, of_engine).reached.items():
                yield from self._one_a_launch((engine, cell, "saturation_requests_per_second"), block, values, requests)

    def _bytes_held(self) -> Found:
        """Yield what the engines hold in memory, over all samples whose flags spoil times alone."""
        columns = self.columns
        for place in places(columns, self.held):
            parts, found = place.parts(columns), place.found
            values: dict[str, Floats] = {}
            if "peak_rss_above_empty_bytes" in self.wanted and "peak_rss_bytes" in columns.metrics:
                values["peak_rss_above_empty_bytes"] = peak_above_empty(columns, parts)
            if "allocator_slack_bytes" in self.wanted and "weights_bytes" in columns.metrics:
                peaks = peak_above_empty(columns, parts)
                values["allocator_slack_bytes"] = allocator_slack(columns, parts, peaks)
            if "leak_bytes_per_request" in self.wanted and "rss_bytes" in columns.metrics:
                values["leak_bytes_per_request"] = leaks(columns, parts)
            for name, of_launches in values.items():
                yield from self._one_a_launch(
                    (place.engine, place.cell, name), found.block, of_launches, found.requests
                )
        if "kv_bytes_per_token" in self.wanted and "kv_cache_bytes" in columns.metrics:
            for code, engine in enumerate(columns.engines):
                rows = np.flatnonzero(self.held & (columns.engine == code))
                if slopes := kv_slopes(columns, rows):
                    blocks, found_slopes = np.array([b for b, _ in slopes]), np.array([slope for _, slope in slopes])
                    ones = np.ones(len(slopes), np.int64)
                    yield from self._one_a_launch((engine, None, "kv_bytes_per_token"), blocks, found_slopes, ones)

    def _one_a_launch(self, key: Key, block: Ints, values: Floats, requests: Ints) -> Found:
        """Yield a metric with one value a launch, unless it has none at all."""
        present = np.isfinite(values)
        if present.any():
            yield (
                key,
                LaunchMeans(
                    blocks=[self.level.block(b) for b in block[present].tolist()],
                    means=values[present],
                    counts=np.ones(int(present.sum()), np.int64),
                    requests=requests[present],
                    values=values[present],
                ),
            )


def _told_means(level: Level, run: Run, wanted: Iterable[str]) -> Found:
    """Yield the averages of launches whose requests are not all known."""
    known = set(metrics_of(scenario_kind(run))).intersection(wanted)
    for told in run.told:
        for name in sorted(known.intersection(told.metrics)):
            value = np.array([told.metrics[name]])
            block = level.block(told.block)
            one, requests = np.ones(1, np.int64), np.array([told.requests], np.int64)
            yield (told.engine, told.cell, name), LaunchMeans([block], value, one, requests, value, frozenset([block]))


def scenario_kind(run: Run) -> str:
    """Return the kind of a run's scenario; files of other tools hold requests."""
    return str(run.manifest.scenario.get("kind") or "requests")


def _reduce(level: Level, columns: Columns, rows: Ints, values: Floats, counts: Ints) -> LaunchMeans:
    """Take the mean of each launch; `counts` says how many of `values` each row (request) has."""
    starts = launch_starts(columns.launch[rows])
    per_launch = np.add.reduceat(counts, starts)
    sums = np.add.reduceat(values, np.cumsum(per_launch) - per_launch)
    return LaunchMeans(
        blocks=[level.block(block) for block in columns.block[rows[starts]].tolist()],
        means=sums / per_launch,
        counts=per_launch,
        requests=np.diff(np.r_[starts, len(rows)]),
        values=values,
    )


def join(parts: Sequence[LaunchMeans]) -> LaunchMeans:
    """Return launch means of one metric, engine and cell from several runs, at least one, as those of one group."""
    if len(parts) == 1:
        return parts[0]
    return LaunchMeans(
        blocks=[block for part in parts for block in part.blocks],
        means=np.concatenate([part.means for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        requests=np.concatenate([part.requests for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        told=frozenset().union(*(part.told for part in parts)),
    )
