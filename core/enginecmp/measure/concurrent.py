"""Several requests in flight: a closed loop of users, or an open loop of arrivals that wait for nobody.

What is timed happens between the load generator and the engine (`enginecmp.loadgen`, `enginecmp.worker.serve`); here a
cell is prepared, watched over, and turned into samples when it is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.format.flags import Flag
from enginecmp.format.records import Sample
from enginecmp.format.text import plain
from enginecmp.launch.launch import LaunchFailure
from enginecmp.loadgen.client import Generator, watch
from enginecmp.loadgen.host_queue import serve_from_here
from enginecmp.loadgen.schedule import arrival_seed, arrivals
from enginecmp.measure.planned import Planned, recorded_arrivals, whole_plan
from enginecmp.measure.task import Task
from enginecmp.scenarios.ranges import PROMPTS_PER_SECOND
from enginecmp.telemetry.contention import Validity, without_engine
from enginecmp.wire.answers import MOST_TOKENS, TEXT_CHARACTERS
from enginecmp.wire.request_table import FIELDS, Field, Header, RequestTable, State, Stop

MOST_NS = 1 << 62
"""No clock has come so far."""


def measure(task: Task) -> None:
    """Serve one cell and keep its samples.

    Raises:
        LaunchFailure: the engine crashed, hung, broke its contract or refused several requests in a row, or the load
            generator was lost. What was finished by then is kept.
    """
    at, scenario, launch = task.at, task.scenario, task.launch
    cell = at.cell
    at.enter(cell, "measure")
    due_ns = _due(task)
    warmups = scenario.warmups_in(cell)
    measured = _closed_measured(task) if due_ns is None else len(due_ns) - warmups
    plan = whole_plan(task, warmups, measured)
    with Generator(len(plan), cell.output_tokens, launch.log) as generator:
        table = generator.table
        _instruct(table, task, plan, due_ns)
        answer: Mapping[str, Any] = {}
        wrong: list[str] = []
        try:
            generator.start()
            if launch.plugin.command:
                asked = [(request.token_ids, request.output_tokens, request.decoding) for request in plan]
                answer = serve_from_here(launch, generator, asked, scenario.deadlines)
            else:
                decodings = [msgspec.to_builtins(request.decoding) for request in plan]
                launch.begin(
                    "serve",
                    scenario.deadlines.prefill_seconds,
                    generator.files,
                    prompts=[request.token_ids for request in plan],
                    output_tokens=[request.output_tokens for request in plan],
                    limit=cell.concurrency,
                    continuous=launch.plugin.batches,
                    **({"decodings": decodings} if cell.decoding else {}),
                )
                answer = watch(launch, generator, scenario.deadlines)
        finally:
            if not answer:
                generator.stop(Stop.ABORT)
            # Also when it ends badly: what is finished is on the table, whoever crashed.
            for sample in _samples(task, table, plan, answer, generator.lost, wrong):
                task.keep(sample)
        if wrong:
            msg = f"{launch.label}: broke the protocol: {wrong[0]}; log: {launch.log}"
            raise LaunchFailure(msg, status="error", phase=launch.progress()[0], fatal=True)
        _conclude(task, table, answer, generator.lost)


def _due(task: Task) -> NDArray[np.int64] | None:
    """Return when the requests of an open loop are due, in ns; None in a closed loop."""
    scenario, cell = task.scenario, task.at.cell
    if not cell.arrival:
        return None
    workload = scenario.workload(cell)
    times: Sequence[float] = scenario.trace_seconds
    if workload is not None and workload.trace is not None and workload.trace.seconds:
        times = recorded_arrivals(task, workload.trace, scenario.warmups_in(cell) + scenario.requests_in(cell))
    return arrivals(
        cell.arrival,
        cell.rate_per_second or 1.0,
        warmups=scenario.warmups_in(cell),
        requests=scenario.requests_in(cell),
        seconds=scenario.seconds,
        burstiness=scenario.burstiness,
        trace_seconds=times,
        seed=arrival_seed(task.seed, task.at.planned.block, scenario.cells.index(cell)),
    )


def _closed_measured(task: Task) -> int:
    """Return the most requests that a closed loop measures."""
    scenario = task.scenario
    return max(scenario.requests_in(task.at.cell), math.ceil(PROMPTS_PER_SECOND * (scenario.seconds or 0.0)))


def _instruct(table: RequestTable, task: Task, plan: list[Planned], due_ns: NDArray[np.int64] | None) -> None:
    """Write on the table what the generator and the engine's side have to know."""
    scenario, cell, words = task.scenario, task.at.cell, table.words
    words[Header.USERS] = 0 if cell.arrival else cell.concurrency
    words[Header.WARMUPS] = scenario.warmup_requests
    if any(request.asked for request in plan):
        # Which requests are measured is part of the plan, and not of who happens to send them.
        words[Header.PLANNED] = 1
        for number, request in enumerate(plan):
            words[table.row(number) + Field.MEASURED] = request.measured
            if request.after is not None:
                words[Header.CHAINED] = 1
                words[table.row(number) + Field.AFTER] = 1 + request.after
                words[table.row(number) + Field.THINK_NS] = round(1e9 * request.think_seconds)
    words[Header.REQUESTS] = sum(r.measured for r in plan) if words[Header.CHAINED] else scenario.requests_in(cell)
    words[Header.DURATION_NS] = round(1e9 * (scenario.seconds or 0.0))
    words[Header.QUEUE_LIMIT] = scenario.overload.queue_requests
    words[Header.QUEUE_NS] = round(1e9 * scenario.overload.queue_seconds)
    if due_ns is not None:
        firsts = [number for number, request in enumerate(plan) if request.after is None]
        for number, due in zip(firsts, due_ns.tolist(), strict=False):
            words[table.row(number) + Field.DUE] = due


def _samples(
    task: Task, table: RequestTable, plan: list[Planned], answer: Mapping[str, Any], lost: str, wrong: list[str]
) -> Iterator[Sample]:
    """Yield every request that is over, in the order in which they were sent.

    The memory that it is read from was the engine's too: what cannot be is left out, and said in `wrong`.
    """
    at, scenario, words = task.at, task.scenario, table.words
    go_ns = words[Header.GO_NS]
    numbers = table.sent(0, min(max(0, words[Header.SENT]), table.capacity))
    if len({number for number in numbers if 0 <= number < table.capacity}) < len(numbers):
        wrong.append(f"expected each of {table.capacity} requests sent once, got numbers that repeat or are none")
        return
    rows = np.array([words[(row := table.row(n)) : row + FIELDS].tolist() for n in numbers], np.int64)
    rows = rows.reshape(len(numbers), FIELDS)
    due_ns = go_ns + rows[:, Field.DUE]
    lag_seconds = (rows[:, Field.SENT_NS] - due_ns) / 1e9
    # A user of a closed loop means to send when it does; an arrival of an open loop when it is due.
    intended_ns = rows[:, Field.SENT_NS] if words[Header.USERS] else due_ns
    measured = rows[:, Field.MEASURED] == 1
    ok = measured & (rows[:, Field.STATE] == State.OK)
    window = _window(table, answer)
    flags = scenario.validity.flags(window, (words[Header.ENDED_NS] - go_ns) / 1e9) if window else []
    latencies = (rows[:, Field.END_NS] - intended_ns)[ok] / 1e9
    if lost or generator_lagged(lag_seconds[measured], latencies, scenario.validity, closed=bool(words[Header.USERS])):
        flags.append(Flag.LATE_DISPATCH)
    common = {**task.launch.held_bytes(), **window, **_engine_metrics(task, answer)}
    seen = {0: 0, 1: 0}
    for place, number in enumerate(numbers):
        row = rows[place]
        phase = int(row[Field.MEASURED] == 1)
        at.phase, at.index = ("warmup", "measure")[phase], seen[phase]
        seen[phase] += 1
        if row[Field.STATE] == State.OPEN:
            continue
        if reason := _wrong_row(row, table.stamps_of(number), table.stamps, int(intended_ns[place])):
            wrong.append(f"{reason}, for request {number}")
        else:
            metrics = {**common, **answer.get("metrics_of", {}).get(str(number), {})}
            metrics["dispatch_lag_seconds"] = float(lag_seconds[place])
            yield _sample(task, table, plan[number], number, row, int(intended_ns[place]), answer, flags, metrics)
    at.phase, at.index = ("measure", seen[1]) if seen[1] else ("warmup", seen[0])
    at.start_ns = go_ns


def _wrong_row(row: NDArray[np.int64], stamps: list[int], most: int, intended_ns: int) -> str:
    """Return what cannot be in a request's row; empty when it can."""
    marked, output, end_ns = int(row[Field.MARKED]), int(row[Field.OUTPUT]), int(row[Field.END_NS])
    if not State.OPEN < row[Field.STATE] <= State.NEVER_STARTED:
        return f"expected one of {State.NEVER_STARTED} states, got {row[Field.STATE]}"
    if not 0 <= marked <= most or not 0 <= output <= MOST_TOKENS:
        return f"expected at most {most} stamps, got {marked} of {output} tokens"
    rising = [0, intended_ns, int(row[Field.START_NS]) or end_ns, *stamps, end_ns, MOST_NS]
    if row[Field.STATE] == State.NEVER_STARTED:
        rising = [0, intended_ns, end_ns, MOST_NS]
    for before, after in pairwise(rising):
        if after < before:
            return f"expected due <= start <= stamps (rising) <= end, got {after} after {before}"
    return ""


def _sample(
    task: Task,
    table: RequestTable,
    asked: Planned,
    number: int,
    row: NDArray[np.int64],
    intended_ns: int,
    answer: Mapping[str, Any],
    flags: list[str],
    metrics: dict[str, float],
) -> Sample:
    at, label = task.at, task.launch.label
    end_ns, output_tokens = int(row[Field.END_NS]), int(row[Field.OUTPUT])
    if row[Field.STATE] == State.NEVER_STARTED:
        return at.sample(
            intended_ns=intended_ns,
            start_ns=end_ns,
            end_ns=end_ns,
            prompt_tokens=len(asked.token_ids),
            asked=asked.asked,
            status="timeout",
            error=f"{label}: never started: {_overload_rule(task)}",
            flags=flags,
            metrics=metrics,
        )
    start_ns = int(row[Field.START_NS])
    error = None
    if row[Field.STATE] == State.FAILED:
        said = answer.get("errors", {}).get(str(number), "failed; its reason went with the worker")
        error = f"{label}: {plain(said, TEXT_CHARACTERS)}"
    of_length = asked.length_flags(output_tokens) if error is None else []
    # A request that was refused before the clock started has no start of its own.
    start_ns = start_ns or end_ns
    return at.sample(
        intended_ns=intended_ns,
        start_ns=start_ns,
        token_ns=table.stamps_of(number),
        end_ns=end_ns,
        prompt_tokens=len(asked.token_ids),
        asked=asked.asked,
        output_tokens=output_tokens,
        status="ok" if error is None else "error",
        error=error,
        flags=[*flags, *of_length, *task.conditions(start_ns, end_ns)],
        metrics=metrics,
    )


def generator_lagged(
    lag_seconds: NDArray[np.float64], latencies: NDArray[np.float64], validity: Validity, *, closed: bool
) -> bool:
    """Say whether the load generator was late, by the rule that was declared.

    In a closed loop latency counts from when the request was sent, so lag can only thin the load out: its share of
    the latency decides. In an open loop it is part of the latency, and the absolute limit holds too.

    Args:
        lag_seconds: of each measured request, how long after it was due it was sent.
        latencies: of those that were answered, in seconds.
        validity: holds the limits.
        closed: whether users wait for their answers.
    """
    if not len(lag_seconds):
        return False
    limit = validity.late_dispatch_seconds
    if len(latencies):
        share = validity.late_dispatch_share * float(np.median(latencies))
        limit = share if closed else min(limit, share)
    return float(np.quantile(lag_seconds, 0.99)) > limit


def _window(table: RequestTable, answer: Mapping[str, Any]) -> dict[str, float]:
    """Return what the machine did while the cell was served; time of the generator and the engine is not foreign."""
    window: dict[str, float] = dict(answer.get("window", {}))
    if "engine_cpu_seconds" in answer.get("metrics", {}):
        window = without_engine(window | {"engine_cpu_seconds": answer["metrics"]["engine_cpu_seconds"]})
    if "foreign_cpu_seconds" in window:
        own = table.words[Header.GENERATOR_CPU_NS] / 1e9
        window["foreign_cpu_seconds"] = max(0.0, window["foreign_cpu_seconds"] - own)
    return window


def _engine_metrics(task: Task, answer: Mapping[str, Any]) -> dict[str, float]:
    """Return what the engine said after the last request; with several in flight its cache is nobody's own."""
    found: dict[str, float] = dict(answer.get("metrics", {}))
    if task.launch.plugin.batches:
        found.pop("kv_cache_bytes", None)
    return found


def _overload_rule(task: Task) -> str:
    rule, cell = task.scenario.overload, task.at.cell
    return (
        f"at {cell.rate_per_second or 0:g} requests/s more than {rule.queue_requests} were waiting, or one of them "
        f"for more than {rule.queue_seconds:g} s"
    )


def _conclude(task: Task, table: RequestTable, answer: Mapping[str, Any], lost: str) -> None:
    """Say what a reader of the run should know, and end a launch that cannot go on.

    Raises:
        LaunchFailure: see `measure`.
    """
    at, words, label = task.at, table.words, task.launch.label
    if lost:
        msg = f"{label}: {lost}; its requests are flagged {Flag.LATE_DISPATCH}; log: {task.launch.log}"
        raise LaunchFailure(msg, status="error", phase=task.launch.progress()[0])
    if words[Header.STOP] == Stop.BROKEN:
        last = plain(["refused requests", *answer["errors"].values()][-1], TEXT_CHARACTERS)
        msg = f"{label}: {last} (several requests in a row)"
        raise LaunchFailure(msg, status="error", phase=task.launch.progress()[0])
    if words[Header.STOP] == Stop.OVERLOADED:
        refused = sum(words[table.row(n) + Field.STATE] == State.NEVER_STARTED for n in range(table.capacity))
        at.notes.append(f"overloaded: {refused} requests never started: {_overload_rule(task)}")
    elif words[Header.USERS] and words[Header.SENT] == table.capacity and words[Header.DURATION_NS]:
        at.notes.append(
            f"ended after {table.capacity} requests, {PROMPTS_PER_SECOND} prompts were ready for each second"
        )
