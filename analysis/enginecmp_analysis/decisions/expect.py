"""Claims held against the data: what somebody expects of an engine, what was measured, and which is refuted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from enginecmp.errors import ResultsError, UsageError, did_you_mean
from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.records import Cell
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.data.metrics import METRICS, metric_of
from enginecmp_analysis.judge.compare import match
from enginecmp_analysis.schema.decisions import ExpectationRow
from enginecmp_analysis.statistics.student import mean_interval, positive_interval

RATIO = "ratio"
"""Metric of a claim about the speed-up over the baseline on the primary metric."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[expect]]` table of a scenario, as the manifest holds it, or of a file named with `--expect`."""

    engine: str
    metric: str
    low: float | None = None
    high: float | None = None
    source: str = ""
    cell: dict[str, Any] = {}
    scenario: str = ""


class Actual(NamedTuple):
    """What was measured: a value, its 95 % limits, and the launches that are full enough to decide on."""

    value: float
    low: float
    high: float
    launches: int
    full: int


def expectations(group: GroupResult, *, include_flagged: bool = False) -> list[ExpectationRow]:
    """Hold every claim of a group's scenario against its data, in every cell that the claim is about.

    Claims are judged one by one at 95 %; nothing is corrected for their number.

    Args:
        group: pooled runs.
        include_flagged: flagged requests are among the data, so that nothing is refuted by them.
    """
    rows: list[ExpectationRow] = []
    for raw in dict.fromkeys(msgspec.json.encode(claim) for claim in _raw_claims(group)):
        try:
            claim = msgspec.json.decode(raw, type=Claim)
        except msgspec.ValidationError as error:
            msg = f"{group.context.scenario}: scenario.expect: expected tables with engine, metric, low, high: {error}"
            raise ResultsError(msg) from error
        found = list(_measured(group, claim))
        rows += [_judge(group, claim, cell, actual, include_flagged) for cell, actual in found]
        if not found:
            rows.append(_not_measured(group, claim))
    return rows


def as_claims(tables: Sequence[object]) -> list[Claim]:
    """Return tables of a file, checked by who has read it, as claims."""
    return [msgspec.convert(msgspec.to_builtins(table), Claim) for table in tables]


def expectations_of(
    groups: Sequence[GroupResult], claims: Sequence[Claim], *, include_flagged: bool = False
) -> list[ExpectationRow]:
    """Hold claims from outside the runs against every group that has what they are about.

    Args:
        groups: of the analysis.
        claims: in the order in which they are told.
        include_flagged: as in `expectations`.

    Raises:
        UsageError: a claim names a metric that does not exist.
    """
    rows: list[ExpectationRow] = []
    for claim in claims:
        if claim.metric != RATIO and claim.metric not in METRICS:
            msg = f"--expect: unknown metric '{claim.metric}'{did_you_mean(claim.metric, [RATIO, *METRICS])}"
            raise UsageError(msg)
        about = [group for group in groups if claim.scenario in ("", _scenario_of(group))]
        found = [
            _judge(group, claim, cell, actual, include_flagged)
            for group in about
            for cell, actual in _measured(group, claim)
        ]
        rows += found or [_not_measured(group, claim) for group in (about or groups)[:1]]
    for row in rows:
        row.asked = True
    return rows


def _scenario_of(group: GroupResult) -> str:
    return str(group.runs[0].manifest.scenario.get("name", ""))


def _raw_claims(group: GroupResult) -> Iterator[object]:
    for run in group.runs:
        claims = run.manifest.scenario.get("expect") or ()
        # What is no list of tables is refused as one claim.
        yield from claims if isinstance(claims, list | tuple) else (claims,)


def _measured(group: GroupResult, claim: Claim) -> Iterator[tuple[Cell | None, Actual]]:
    metric = group.context.primary_metric if claim.metric == RATIO else claim.metric
    for (engine, cell, name), launches in group.means.items():
        if engine == claim.engine and name == metric and _is_about(cell, claim.cell):
            if claim.metric != RATIO:
                interval = mean_interval if metric_of(metric).signed else positive_interval
                value, low, high = interval(launches.replicates())
                full = _full(launches, metric)
                yield cell, Actual(value, low, high, len(launches.means), full)
            elif (baseline := group.means.get((group.context.baseline, cell, metric))) is not None:
                yield cell, _speed_up(metric, baseline, launches)


def _is_about(cell: Cell | None, wanted: Mapping[str, Any]) -> bool:
    return not wanted or (cell is not None and all(getattr(cell, key, None) == value for key, value in wanted.items()))


def _full(launches: LaunchMeans, metric: str) -> int:
    return len(launches.full(metric_of(metric).requests_needed))


def _speed_up(metric: str, baseline: LaunchMeans, engine: LaunchMeans) -> Actual:
    """Return how many times faster the engine is: above 1 is better, whichever way the metric is good."""
    found = match(baseline, engine).log_ratio()
    value, (low, high) = math.exp(float(found.estimate)), (float(limit) for limit in found.interval())
    if not metric_of(metric).higher_is_better:
        value, low, high = 1 / value, 1 / high, 1 / low
    return Actual(value, low, high, found.n, min(_full(baseline, metric), _full(engine, metric), found.n))


def _judge(
    group: GroupResult, claim: Claim, cell: Cell | None, actual: Actual, include_flagged: bool
) -> ExpectationRow:
    status, off_by = _status(claim, actual)
    reason = ""
    if include_flagged:
        status, off_by, reason = "open", 0.0, "flagged requests are counted"
    elif actual.full < LAUNCHES_NEEDED:
        status, off_by = "open", 0.0
        reason = f"it takes {LAUNCHES_NEEDED} launches of enough requests, {actual.full} were measured"
    elif status == "open":
        reason = "the interval holds values that agree and values that do not: measure more launches"
        if not math.isfinite(actual.low):
            reason = "the launches show no spread to judge by"
    return ExpectationRow(
        **_shared(group, claim),
        cell=cell,
        status=status,
        actual=actual.value,
        ci_low=actual.low,
        ci_high=actual.high,
        n_launches=actual.launches,
        off_by=off_by,
        reason=reason,
    )


def _status(claim: Claim, actual: Actual) -> tuple[Literal["holds", "refuted", "open"], float]:
    """Return the status, and by how much the nearest limit misses the claim's end, as a share of that end."""
    if not math.isfinite(actual.low):
        return "open", 0.0
    if claim.low is not None and actual.high < claim.low:
        return "refuted", 1 - actual.high / claim.low
    if claim.high is not None and actual.low > claim.high:
        return "refuted", actual.low / claim.high - 1 if claim.high > 0 else math.inf
    above = claim.low is None or actual.low >= claim.low
    below = claim.high is None or actual.high <= claim.high
    return ("holds" if above and below else "open"), 0.0


def _not_measured(group: GroupResult, claim: Claim) -> ExpectationRow:
    known = {engine for engine, _, _ in group.means}
    if claim.scenario not in ("", _scenario_of(group)):
        reason = f"no run of the scenario {claim.scenario} is among these"
    elif claim.metric != RATIO and claim.metric not in METRICS:
        reason = f"unknown metric '{claim.metric}'{did_you_mean(claim.metric, METRICS)}"
    elif claim.engine not in group.context.engines:
        reason = f"no engine '{claim.engine}' in this run"
    elif claim.engine not in known:
        reason = f"{claim.engine} ended no request well"
    elif claim.metric == RATIO and claim.engine == group.context.baseline:
        reason = f"{claim.engine} is the baseline itself"
    elif claim.metric == RATIO and group.context.baseline not in known:
        reason = f"the baseline {group.context.baseline} ended no request well"
    elif claim.cell:
        reason = f"no cell with {', '.join(f'{key} = {value}' for key, value in claim.cell.items())} has it"
    else:
        reason = "this run does not have it"
    return ExpectationRow(**_shared(group, claim), cell=None, status="not measured", reason=reason)


def _shared(group: GroupResult, claim: Claim) -> dict[str, Any]:
    return {
        "scenario": group.context.scenario,
        "engine": claim.engine,
        "metric": claim.metric,
        "low": claim.low,
        "high": claim.high,
        "source": claim.source,
        "measured": conditions(group, claim.engine),
    }


def conditions(group: GroupResult, engine: str) -> str:
    """Return when and with what the runs of a group were made: date, versions, device, hardware."""
    first = group.runs[0].manifest
    days = sorted({run.manifest.created_utc[:10] for run in group.runs})
    made = next((e for e in first.engines if e.name == engine), None)
    gpu = first.environment.get("gpu")
    hardware = [first.environment.get("cpu"), ", ".join(map(str, gpu)) if isinstance(gpu, list) else gpu]
    libraries = first.environment.get("libraries")
    host = libraries.get("enginecmp") if isinstance(libraries, dict) else None
    parts = [
        f"{days[0]} to {days[-1]}" if len(days) > 1 else days[0],
        f"{engine} {made.version} ({made.device})" if made is not None else "",
        f"enginecmp {host}" if host else "",
        f"commit {first.environment['commit']}" if first.environment.get("commit") else "",
        *(str(part) for part in hardware if part),
    ]
    return "; ".join(part for part in parts if part)
