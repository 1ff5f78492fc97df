"""What tokens cost: the price of a machine's time over what it did in that time, launch by launch.

Cost is price times seconds, so its statistics are those of seconds: one value a launch, the same paired log ratios,
the same correction. Boundaries and their reasons: docs/METHODOLOGY.md, "Money".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_order, is_concurrent
from enginecmp_analysis.data.columns import MEASURE, Columns
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.data.launches import Block, Key, LaunchMeans, scenario_kind
from enginecmp_analysis.data.metrics import Metric
from enginecmp_analysis.decisions.prices import Prices
from enginecmp_analysis.judge.judge import Options, candidates, judge
from enginecmp_analysis.schema.decisions import CostComparison, CostRow, Money
from enginecmp_analysis.schema.stats import Comparison
from enginecmp_analysis.statistics.student import positive_interval

Floats = NDArray[np.float64]

SPLIT, WHOLE = "prefill to input, decode to output", "everything"

PRIMARY_COST = "cost_per_thousand_requests"
"""The whole cost of the cell's work: input and output together, nothing attributed."""


def _cost(name: str, boundary: str) -> Metric:
    return Metric(name, False, boundary, "launch", words=("cheaper", "costlier"))


def _hourly(name: str, boundary: str) -> Metric:
    return Metric(name, True, boundary, "launch", words=("more", "fewer"))


COSTS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _cost(PRIMARY_COST, "price of the time of a request; under load price / requests_per_second, idle included"),
        _cost(
            "cost_per_million_output_tokens",
            "price of the time from the first token to the end, over output tokens; under load price / throughput",
        ),
        _cost(
            "cost_per_million_input_tokens",
            "price of the time to the first token, over prompt tokens; under load of all the time, over those served",
        ),
        _cost("energy_cost_per_million_output_tokens", "price of joules_per_token"),
        _hourly("requests_per_device_hour", "3600 x requests_per_second, idle time included"),
        _hourly("requests_per_device_hour_at_slo", "3600 x goodput_requests_per_second"),
    )
}
"""Every number of this module, in the order in which tables show them."""


@dataclass(frozen=True, slots=True)
class LaunchSums:
    """What the requests of one engine in one cell add up to, launch by launch; all shapes (L,).

    Attributes:
        blocks: the block each launch belongs to.
        requests: requests.
        prompt_tokens: ids handed in.
        output_tokens: tokens generated.
        prefill_seconds: from start to first token (to the end, where nothing is generated); NaN where a request
            has no stamp.
        busy_seconds: from start to end.
    """

    blocks: list[Block]
    requests: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    prefill_seconds: Floats
    busy_seconds: Floats


def launch_sums(group: GroupResult) -> dict[tuple[str, Cell], LaunchSums]:
    """Add up the requests that stand behind the launch means of a group."""
    parts: dict[tuple[str, Cell], list[tuple[Block, list[float]]]] = {}
    for number, (run, kept) in enumerate(zip(group.runs, group.kept, strict=True)):
        for engine, cell, block, sums in _run_sums(run.columns, kept):
            parts.setdefault((engine, cell), []).append(((number, block), sums))
    return {
        key: LaunchSums([block for block, _ in rows], *np.array([sums for _, sums in rows]).T)
        for key, rows in parts.items()
    }


def _run_sums(columns: Columns, kept: NDArray[np.bool_]) -> Iterator[tuple[str, Cell, int, list[float]]]:
    rows = np.flatnonzero(kept & (columns.phase == MEASURE))
    if not len(rows):
        return
    # A launch belongs to one engine, but may hold several cells.
    code = columns.launch[rows] * len(columns.cells) + columns.cell[rows]
    present, first, member = np.unique(code, return_index=True, return_inverse=True)
    stamped = columns.offsets[rows + 1] > columns.offsets[rows]
    silent = columns.output_tokens[rows] == 0
    at_first = np.full(len(rows), np.nan)
    at_first[stamped] = columns.token_ns[columns.offsets[rows[stamped]]] - columns.start_ns[rows[stamped]]
    spent = (columns.end_ns[rows] - columns.start_ns[rows]).astype(np.float64)
    prefill = np.where(silent, spent, at_first)
    tokens = (columns.prompt_tokens[rows], columns.output_tokens[rows])
    sums = np.column_stack(
        [
            np.bincount(member, weights, len(present))
            for weights in (np.ones(len(rows)), *tokens, prefill * 1e-9, spent * 1e-9)
        ]
    )
    for i, row in enumerate(rows[first].tolist()):
        engine, cell = columns.engines[int(columns.engine[row])], columns.cells[int(columns.cell[row])]
        yield engine, cell, int(columns.block[row]), sums[i].tolist()


def _one_at_a_time(cell: Cell) -> bool:
    # A concurrency of 0 was not told: requests may have overlapped.
    return cell.concurrency == 1 and not is_concurrent(cell)


def costs(group: GroupResult, prices: Prices) -> tuple[dict[Key, LaunchMeans], dict[tuple[str, Cell], str]]:
    """Return what each launch of a group cost.

    With one request at a time its time is split: up to the first token it is the input's, from there to the end the
    output's, first token included in the count, so that both sum up to the whole; idle time between two requests is
    nobody's. Where requests overlap, or stamps are missing, no split is defined: all of the time is charged to the
    output, and again to the input. Under load that time is the steady window, and what is counted in it are the
    requests and tokens of `requests_per_second` and `throughput_tokens_per_second`: a cost times its rate is the price.

    Returns:
        Launch values for every engine, cell and metric of `COSTS` that can be had, and how time was charged.
    """
    found: dict[Key, LaunchMeans] = {}
    charged: dict[tuple[str, Cell], str] = {}
    for (engine, cell), sums in launch_sums(group).items():
        price = price_of(group, engine, prices)
        split = _one_at_a_time(cell) and bool(np.isfinite(sums.prefill_seconds).all())
        if _one_at_a_time(cell):
            whole = sums.busy_seconds
            to_input = sums.prefill_seconds if split else whole
            to_output = whole - sums.prefill_seconds if split else whole
            values = {
                PRIMARY_COST: _over(price * whole, sums.requests, 1e3),
                "cost_per_million_output_tokens": _over(price * to_output, sums.output_tokens, 1e6),
                "cost_per_million_input_tokens": _over(price * to_input, sums.prompt_tokens, 1e6),
            }
        else:
            sums, requests, tokens = _rates(group, engine, cell, sums)
            values = {
                PRIMARY_COST: _over(price, requests, 1e3),
                "cost_per_million_output_tokens": _over(price, tokens, 1e6),
                "cost_per_million_input_tokens": _over(price, requests * sums.prompt_tokens / sums.requests, 1e6),
            }
        charged[engine, cell] = SPLIT if split else WHOLE
        for name, per_launch in values.items():
            if (per_launch > 0).all() and len(per_launch):
                found[engine, cell, name] = _per_launch(sums.blocks, per_launch / 3600, sums.requests)
    for (engine, place, metric), launches in group.means.items():
        named = _scaled(metric, prices)
        if named is not None:
            name, scale = named
            requests = launches.requests.astype(np.float64)
            scaled = _per_launch(launches.blocks, launches.means * scale, requests)
            found[engine, place, name] = replace(scaled, told=launches.told)
    return found, charged


def _scaled(metric: str, prices: Prices) -> tuple[str, float] | None:
    """Return the name and factor under which a metric of the run itself is money."""
    match metric:
        case "joules_per_token" if prices.electricity_per_kwh is not None:
            return "energy_cost_per_million_output_tokens", 1e6 / 3.6e6 * prices.electricity_per_kwh
        case "requests_per_second":
            return "requests_per_device_hour", 3600.0
        case "goodput_requests_per_second":
            return "requests_per_device_hour_at_slo", 3600.0
    return None


def _rates(group: GroupResult, engine: str, cell: Cell, sums: LaunchSums) -> tuple[LaunchSums, Floats, Floats]:
    """Return sums of the launches that have a throughput, and the requests and tokens a second of each of them.

    Where another tool told a throughput and no rate of requests, that follows from the tokens of a request.
    """
    tokens, requests = (
        {} if found is None else dict(zip(found.blocks, found.means.tolist(), strict=True))
        for found in (
            group.means.get((engine, cell, name)) for name in ("throughput_tokens_per_second", "requests_per_second")
        )
    )
    have = np.array([block in tokens for block in sums.blocks], dtype=bool)
    blocks = [block for block in sums.blocks if block in tokens]
    kept = LaunchSums(
        blocks,
        sums.requests[have],
        sums.prompt_tokens[have],
        sums.output_tokens[have],
        sums.prefill_seconds[have],
        sums.busy_seconds[have],
    )
    served = np.array([requests.get(block, np.nan) for block in blocks])
    generated = np.array([tokens[block] for block in blocks])
    return kept, np.where(np.isfinite(served), served, generated / kept.output_tokens * kept.requests), generated


def _over(amount: float | Floats, things: Floats, unit: float) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(things > 0, amount / things * unit, np.nan)


def _per_launch(blocks: list[Block], values: Floats, requests: Floats) -> LaunchMeans:
    return LaunchMeans(blocks, values, np.ones(len(values), np.int64), requests.astype(np.int64), values)


def price_of(group: GroupResult, engine: str, prices: Prices) -> float:
    """Return the price per hour of the machine that an engine of a group ran on.

    Raises:
        UsageError: the price file does not name it.
    """
    for run in group.runs:
        for entry in run.manifest.engines:
            if entry.name == engine:
                return prices.of(entry, run.manifest)
    raise KeyError(engine)


def money(analysis: Analysis, prices: Prices, options: Options) -> Money:
    """Return what every engine costs, and against the baseline.

    Raises:
        UsageError: the price file misspells a name, or has no price for an engine.
    """
    prices.refuse_misspelt(run.manifest for group in analysis.groups for run in group.runs)
    report = Money(
        currency=prices.currency, electricity_per_kwh=prices.electricity_per_kwh, rows=[], comparisons=[], absent=[]
    )
    for group in analysis.groups:
        if scenario_kind(group.runs[0]) != "requests":
            report.absent.append(f"{group.context.scenario}: measures no requests, so nothing has a cost")
            continue
        found, charged = costs(group, prices)
        cells = sorted({cell for _, cell, _ in found if cell is not None}, key=cell_order)
        found = {
            (engine, cell, name): found[engine, cell, name]
            for cell in cells
            for name in COSTS
            for engine in group.context.engines
            if (engine, cell, name) in found
        }
        report.rows += [
            _row(group, key, launches, charged.get((key[0], cell), ""), price_of(group, key[0], prices))
            for key, launches in found.items()
            if (cell := key[1]) is not None
        ]
        family = candidates(
            found, group.context.pairs(options.pairs), cells, list(COSTS), PRIMARY_COST, COSTS.__getitem__
        )
        judged = judge(group.context.scenario, family, options, group.context.levels)
        report.comparisons += [_worded(c) for c in judged]
        report.absent += _absent(group, found, prices)
        if not found:
            report.absent.append(
                f"{group.context.scenario}: no request ended well and unflagged, so nothing has a cost"
            )
    report.comparisons.sort(key=lambda c: not c.primary)
    return report


def _row(group: GroupResult, key: Key, launches: LaunchMeans, charged: str, price: float) -> CostRow:
    engine, cell, name = key
    assert cell is not None
    mean, low, high = positive_interval(launches.replicates())
    return CostRow(
        scenario=group.context.scenario,
        engine=engine,
        cell=cell,
        metric=name,
        price_per_hour=price,
        charged=charged if name.startswith("cost_") else "",
        n_launches=len(launches.means),
        mean=mean,
        ci_low=low,
        ci_high=high,
    )


def _worded(c: Comparison) -> CostComparison:
    kind = COSTS[c.metric]
    verdict = kind.word(c.verdict)
    shared = {name: getattr(c, name) for name in CostComparison.__struct_fields__}
    return CostComparison(**shared | {"verdict": verdict})


def _absent(group: GroupResult, found: Mapping[Key, LaunchMeans], prices: Prices) -> list[str]:
    """Return what was asked for and could not be had, and why."""
    notes = []
    metrics = {name for _, _, name in found}
    scenario = group.context.scenario
    if prices.electricity_per_kwh is not None and "energy_cost_per_million_output_tokens" not in metrics:
        notes.append(f"{scenario}: no cost of energy: {_no_energy(group.runs[0].manifest.environment)}")
    limits = group.runs[0].manifest.scenario.get("goodput") or {}
    if "requests_per_device_hour_at_slo" not in metrics and not any(v is not None for v in limits.values()):
        notes.append(f"{scenario}: no requests per device-hour at an SLO: the scenario sets no limits ([goodput])")
    unpriced = {
        f"{engine} in some cells: no throughput, so no cost"
        for engine, cell in launch_sums(group)
        if (engine, cell, PRIMARY_COST) not in found
    }
    return notes + [f"{scenario}: {text}" for text in sorted(unpriced)]


def _no_energy(environment: Mapping[str, Any]) -> str:
    sensors = environment.get("sensors")
    reasons: Sequence[str] = []
    if isinstance(sensors, Mapping):
        reasons = [
            f"{name}: {sensors[name]['absent']}"
            for name in ("rapl", "nvml")
            if isinstance(sensors.get(name), Mapping) and "absent" in sensors[name]
        ]
    return "energy was not measured" + (f" ({'; '.join(reasons)})" if reasons else "")
