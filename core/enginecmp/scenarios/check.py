"""What cannot be run is refused before anything starts, with what was expected."""

from __future__ import annotations

from collections.abc import Iterator

from enginecmp.errors import UsageError, did_you_mean
from enginecmp.format.records import Cell
from enginecmp.scenarios.decoding import decoding_problems
from enginecmp.scenarios.ranges import outside
from enginecmp.scenarios.scenario import PRIMARY_METRICS, Expectation, Scenario
from enginecmp.scenarios.variants import VARIANTS

_OF_WHOLE_REQUESTS = ("requests_per_second", "goodput_requests_per_second", "saturation_requests_per_second")


def check(scenario: Scenario, where: str) -> None:
    """Refuse a scenario that cannot be run.

    Args:
        scenario: with its profile applied.
        where: name of the file, for the message.

    Raises:
        UsageError: names the key, what was expected and what it got.
    """
    for expected, got in [
        *_problems(scenario),
        *(p for name, rule in scenario.decodings.items() for p in decoding_problems(name, rule)),
        *(p for cell in scenario.cells for p in _cell_problems(cell, scenario)),
        *outside(scenario),
    ]:
        msg = f"scenario {where}: expected {expected}, got {got}"
        raise UsageError(msg)
    own = [metric.name for metric in scenario.measure.metrics if metric.compared] if scenario.measure else []
    if scenario.primary_metric not in (*PRIMARY_METRICS, *own):
        hint = did_you_mean(scenario.primary_metric, own or PRIMARY_METRICS)
        msg = f"scenario {where}: unknown primary_metric '{scenario.primary_metric}'{hint}"
        raise UsageError(msg)


def _problems(scenario: Scenario) -> Iterator[tuple[str, object]]:
    rules = [
        (bool(scenario.cells), "at least one [[cells]] table", "none"),
        (scenario.blocks >= 1, "blocks >= 1", scenario.blocks),
        (scenario.requests >= 1, "requests >= 1", scenario.requests),
        (scenario.seconds is None or scenario.seconds > 0, "seconds > 0", scenario.seconds),
        (scenario.warmup_requests >= 1, "warmup_requests >= 1", scenario.warmup_requests),
        (scenario.replacement_requests >= 0, "replacement_requests >= 0", scenario.replacement_requests),
        (scenario.give_up_after >= 1, "give_up_after >= 1", scenario.give_up_after),
        (scenario.burstiness > 0, "burstiness > 0", scenario.burstiness),
        (scenario.overload.queue_requests >= 1, "overload.queue_requests >= 1", scenario.overload.queue_requests),
        (scenario.overload.queue_seconds > 0, "overload.queue_seconds > 0", scenario.overload.queue_seconds),
        (scenario.offered_limit >= 1, "offered_limit >= 1", scenario.offered_limit),
        (scenario.score_positions >= 2, "score_positions >= 2", scenario.score_positions),
        (scenario.max_kl > 0, "max_kl > 0", scenario.max_kl),
        (all(load > 0 for load in scenario.offered_load), "offered_load > 0", list(scenario.offered_load)),
        (len(set(scenario.cells)) == len(scenario.cells), "cells that differ", "a cell twice"),
    ]
    yield from ((expected, got) for right, expected, got in rules if not right)
    if (scenario.kind == "operation") != bool(scenario.operation):
        yield 'an operation exactly where kind = "operation"', f'kind = "{scenario.kind}"'
    if scenario.operation and scenario.operation not in VARIANTS and scenario.measure is None:
        yield (
            f"operation one of {', '.join(VARIANTS)}, or one that an installed plugin brings",
            repr(scenario.operation),
        )
    if scenario.kind == "load" and not scenario.launch_per_cell:
        yield 'launch_per_cell = true with kind = "load"', "false"
    for variant, number in scenario.requests_of.items():
        if variant not in {cell.variant for cell in scenario.cells}:
            yield f'a cell with variant = "{variant}", as requests_of names it', "none"
        if number < 1:
            yield f"requests_of.{variant} >= 1", number
    for claim in scenario.expect:
        yield from claim_problems(claim)


def claim_problems(claim: Expectation) -> Iterator[tuple[str, object]]:
    """Yield what was expected of a claim, and what came instead."""
    if claim.low is None and claim.high is None:
        yield f"low, high or both in what is expected of {claim.engine}", "neither"


def _decoding_problems(cell: Cell, scenario: Scenario) -> Iterator[tuple[str, object]]:
    if not cell.decoding:
        return
    if cell.decoding not in scenario.decodings:
        names = ", ".join(scenario.decodings) or "[decodings]"
        yield f"decoding = one of {names}", repr(cell.decoding)
        return
    rule = scenario.rule(cell)
    if scenario.kind != "requests":
        yield 'decoding in cells of kind "requests" alone', f'kind = "{scenario.kind}"'
    if rule.json_schema and (cell.concurrency > 1 or cell.arrival):
        yield "json_schema in cells with one user alone: what is said in a batch is not kept", cell.concurrency
    if rule.may_end and scenario.seconds is not None and not cell.arrival:
        yield "requests and no seconds where requests may end early, so that all engines do the same", "seconds"
    if rule.may_end and scenario.primary_metric in _OF_WHOLE_REQUESTS:
        yield (
            "a primary_metric of tokens (tpot_seconds, ttft_seconds) where requests may end early, as whole ones "
            "are no equal work",
            scenario.primary_metric,
        )
    if rule.may_end and scenario.offered_load:
        yield "no offered_load where requests may end early", "some"
    workload = scenario.workload(cell)
    if rule.json_schema and workload is not None and workload.has_turns:
        yield "json_schema without conversations", cell.workload


def _cell_problems(cell: Cell, scenario: Scenario) -> Iterator[tuple[str, object]]:
    if cell.prompt_tokens < 1:
        yield "prompt_tokens >= 1", cell.prompt_tokens
    if cell.output_tokens < 1 and scenario.kind not in ("operation",):
        yield "output_tokens >= 1", cell.output_tokens
    if cell.concurrency < 1:
        yield "concurrency >= 1", cell.concurrency
    if cell.workload and (scenario.kind != "requests" or scenario.offered_load):
        yield 'a workload in cells of kind "requests" without offered_load alone', f'kind = "{scenario.kind}"'
    if cell.workload and scenario.seconds is not None and not cell.arrival:
        # A faster engine would go on to other requests than a slower one.
        yield "requests and no seconds for a workload in a closed loop, so that all engines do the same", "seconds"
    yield from _decoding_problems(cell, scenario)
    workload = scenario.workload(cell)
    if workload is not None and workload.has_turns and scenario.seconds is not None:
        yield "requests and no seconds for conversations", "seconds"
    if cell.concurrency > 1 and scenario.kind != "requests":
        yield f'concurrency = 1 with kind = "{scenario.kind}"', cell.concurrency
    if scenario.kind == "operation" and cell.variant not in scenario.variants:
        yield f"a variant of {', '.join(scenario.variants) or '[variants]'} in every cell", repr(cell.variant or "")
    if scenario.offered_load and scenario.arrival == "trace":
        yield "arrival constant, poisson or gamma beside offered_load", "trace"
    if scenario.kind == "load" and cell.variant not in ("cold", "warm"):
        yield 'variant = "cold" or "warm" in every cell', repr(cell.variant or "")
    if scenario.offered_load and not scenario.calibration and (cell.arrival or scenario.kind != "requests"):
        yield "cells without arrival of kind requests beside offered_load, which sets rates itself", "others"
    rate = cell.rate_per_second or 0.0
    if not cell.arrival and rate:
        yield "an arrival (constant, poisson, gamma) beside rate_per_second", "none"
    recorded = workload.trace.seconds if workload is not None and workload.trace is not None else ()
    if cell.arrival == "trace" and not scenario.trace_seconds and not recorded:
        yield 'trace = "FILE", or a workload whose trace has times, for cells with arrival = "trace"', "none"
    if cell.arrival and cell.arrival != "trace" and rate <= 0:
        yield "rate_per_second > 0 in an open loop", rate
