"""Concurrent load on real workers: who is served when, what is written down, and what is left after a disaster."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from load_cells import fake_queue, loaded, scenario_of, serve

from enginecmp.format.flags import Flag
from enginecmp.format.records import Cell, Sample
from enginecmp.launch.launch import LaunchFailure
from enginecmp.measure.concurrent import generator_lagged, measure
from enginecmp.plugins.plugin import Plugin
from enginecmp.scenarios import Overload
from enginecmp.telemetry.contention import Validity
from enginecmp.types import EngineInfo, ModelInfo
from enginecmp.wire.deadlines import Deadlines

PATIENT = Validity(late_dispatch_seconds=0.1, late_dispatch_share=1e9, floor_seconds=1000)
"""Flags nothing but a load generator that was held up on purpose."""

CLOSED = Cell(6, 5, 4)
OPEN = Cell(6, 5, 4, "constant", 100.0)


def sent_order(samples: list[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.intended_ns)


# --- who is served when ---------------------------------------------------------------------------------------


def test_a_queue_is_first_in_first_out_and_one_at_a_time(tiny: ModelInfo, tmp_path: Path) -> None:
    samples = serve(fake_queue(), tiny, tmp_path, scenario_of(OPEN, requests=9), decode_us=4000)
    assert [s.status for s in samples] == ["ok"] * 10
    starts, ends = [s.start_ns for s in samples], [s.end_ns for s in samples]
    assert all(start >= end for start, end in zip(starts[1:], ends, strict=False))
    # 16 ms of service and 10 ms between arrivals: the later ones were due before they were started.
    assert samples[-1].intended_ns < samples[-2].end_ns <= samples[-1].start_ns


def test_an_open_loop_means_to_send_when_the_schedule_says_whatever_the_engine_does(
    tiny: ModelInfo, tmp_path: Path
) -> None:
    samples = serve(fake_queue(), tiny, tmp_path, scenario_of(OPEN, requests=6), decode_us=15000)
    due = [s.intended_ns for s in samples]
    assert np.diff(due).tolist() == [10_000_000] * 6
    for sample in samples:
        sent_ns = sample.intended_ns + 1e9 * sample.metrics["dispatch_lag_seconds"]
        assert sample.intended_ns <= sent_ns <= sample.start_ns + 1


def test_a_closed_loop_keeps_exactly_as_many_in_flight_as_there_are_users(tiny: ModelInfo, tmp_path: Path) -> None:
    scenario = scenario_of(CLOSED, requests=9, warmup_requests=2)
    samples = serve(fake_queue(), tiny, tmp_path, scenario, decode_us=1000)
    assert Counter(s.phase for s in samples) == {"warmup": 8, "measure": 9}
    sent, ends = [s.intended_ns for s in samples], sorted(s.end_ns for s in samples)
    # Never more than four: the fifth is sent after the first end, and so on.
    assert all(later >= end for later, end in zip(sent[4:], ends, strict=False))
    # Never fewer: every request from the fifth on was due at the very moment when another one ended.
    lags = [s.metrics["dispatch_lag_seconds"] for s in samples]
    due = [round(s - 1e9 * lag) for s, lag in zip(sent[4:], lags[4:], strict=True)]
    assert np.allclose(sorted(due), ends[: len(due)], atol=100)


def test_an_engine_with_batching_works_on_all_users_at_once(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    samples = serve(fake, tiny, tmp_path, scenario_of(CLOSED, requests=8), decode_us=2000)
    assert [s.output_tokens for s in samples] == [5] * 12
    # The four first requests come together, and every token of one step has one stamp.
    first = samples[:4]
    steps = Counter(stamp for sample in first for stamp in sample.token_ns)
    assert len(steps) <= 6
    assert max(steps.values()) == 4


def test_no_more_requests_are_given_to_an_engine_than_the_cell_allows(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path
) -> None:
    cell = Cell(6, 5, 2, "constant", 500.0)
    samples = serve(fake, tiny, tmp_path, scenario_of(cell, requests=11), decode_us=3000)
    events = sorted([(s.start_ns, 1) for s in samples] + [(s.end_ns, -1) for s in samples])
    in_flight = np.cumsum([step for _, step in events])
    assert in_flight.max() == 2


def test_a_closed_loop_by_time_goes_on_until_the_time_is_over(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    samples = serve(fake, tiny, tmp_path, scenario_of(CLOSED, requests=1, seconds=0.4), decode_us=10000)
    measured = [s for s in samples if s.phase == "measure"]
    sent = [s.intended_ns for s in measured]
    assert len(measured) >= 8
    assert sent[-1] - sent[0] < 0.4e9
    # It ended because the time was over, not before: the last answer came after it.
    assert max(s.end_ns for s in measured) - sent[0] >= 0.4e9


def test_a_closed_loop_that_runs_out_of_prompts_says_so(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    samples: list[Sample] = []
    scenario = scenario_of(Cell(6, 1, 4), requests=1, seconds=0.1)
    with loaded(fake, tiny, tmp_path, scenario, {"decode_us": 100}, samples.append) as task:
        measure(task)
        notes = task.at.notes
    assert len(samples) == 24
    assert notes == ["ended after 24 requests, 200 prompts were ready for each second"]


def test_samples_are_numbered_by_phase_in_the_order_in_which_they_were_sent(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path
) -> None:
    samples = serve(fake, tiny, tmp_path, scenario_of(CLOSED, requests=6))
    for phase, number in (("warmup", 4), ("measure", 6)):
        assert [s.index for s in samples if s.phase == phase] == list(range(number))
    assert [s.intended_ns for s in samples] == [s.intended_ns for s in sent_order(samples)]


# --- overload -------------------------------------------------------------------------------------------------


def test_an_overloaded_cell_ends_and_its_unstarted_requests_count(tiny: ModelInfo, tmp_path: Path) -> None:
    scenario = scenario_of(OPEN, requests=400, overload=Overload(queue_requests=5))
    samples: list[Sample] = []
    with loaded(fake_queue(), tiny, tmp_path, scenario, {"decode_us": 10000}, samples.append) as task:
        measure(task)
        notes = task.at.notes
    status = Counter(s.status for s in samples)
    assert set(status) == {"ok", "timeout"}
    assert status["timeout"] >= 6, "all that waited"
    assert len(samples) < 200, "the cell ended long before its 400 requests"
    refused = [s for s in samples if s.status == "timeout"]
    assert all("never started" in (s.error or "") and "more than 5 were waiting" in (s.error or "") for s in refused)
    assert all(s.token_ns == [] and s.start_ns >= s.intended_ns for s in refused)
    assert notes == [
        f"overloaded: {len(refused)} requests never started: at 100 requests/s more than 5 were waiting, or one of "
        "them for more than 60 s"
    ]


def test_a_long_wait_alone_is_overload_too(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    scenario = scenario_of(Cell(6, 5, 1, "constant", 100.0), requests=400, overload=Overload(queue_seconds=0.2))
    samples = serve(fake, tiny, tmp_path, scenario, decode_us=10000)
    assert Counter(s.status for s in samples)["timeout"] >= 5
    assert len(samples) < 200


def test_a_closed_loop_is_never_overloaded(tiny: ModelInfo, tmp_path: Path) -> None:
    scenario = scenario_of(CLOSED, requests=8, overload=Overload(queue_requests=1, queue_seconds=0.001))
    samples = serve(fake_queue(), tiny, tmp_path, scenario, decode_us=3000)
    assert {s.status for s in samples} == {"ok"}


# --- what an engine must not do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"stray": "unknown"}, "a token for request 'nobody', which was never submitted"),
        ({"stray": "twice"}, "two tokens for request 0 in one step"),
        ({"long": 1}, "a token for request 0, which already has all that it asked for"),
        ({"short": 1, "decode_us": 0}, "cmp_step gave nothing 100 times in a row while requests 0, 1, 2, 3 wait"),
    ],
)
def test_a_broken_contract_is_named(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, extra: dict[str, object], said: str
) -> None:
    with pytest.raises(LaunchFailure) as failure:
        serve(fake, tiny, tmp_path, scenario_of(CLOSED), **extra)
    assert failure.value.status == "error"
    assert "fake: " in str(failure.value)
    assert said in str(failure.value)


def test_a_queued_engine_that_gives_too_few_tokens_is_flagged(tiny: ModelInfo, tmp_path: Path) -> None:
    samples = serve(fake_queue(), tiny, tmp_path, scenario_of(CLOSED), short=2)
    assert {s.output_tokens for s in samples} == {3}
    assert all("short_output" in s.flags for s in samples)


@pytest.mark.parametrize("phase", ["submit", "prefill"])
def test_one_failure_costs_the_requests_it_hit_and_no_other(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, phase: str
) -> None:
    once = tmp_path / "happened"
    samples = serve(fake, tiny, tmp_path, scenario_of(CLOSED), fault=f"error@{phase}", once=once)
    failed = [s for s in samples if s.status == "error"]
    assert 1 <= len(failed) <= 4
    where = "submit" if phase == "submit" else "step"
    assert {s.error for s in failed} == {f"fake: in {where}: fake: scripted error in {phase}"}
    assert sum(s.status == "ok" and s.phase == "measure" for s in samples) >= 7


@pytest.mark.parametrize("plugin", ["own", "queue"])
def test_several_failures_in_a_row_end_the_launch(fake: Plugin, tiny: ModelInfo, tmp_path: Path, plugin: str) -> None:
    samples: list[Sample] = []
    engine = fake if plugin == "own" else fake_queue()
    with (
        loaded(engine, tiny, tmp_path, scenario_of(CLOSED), {"fault": "error@prefill"}, samples.append) as task,
        pytest.raises(LaunchFailure, match=r"scripted error in prefill.*in a row"),
    ):
        measure(task)
    assert samples
    assert {s.status for s in samples} == {"error"}


def test_an_engine_with_a_clock_of_its_own_is_refused(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    with pytest.raises(LaunchFailure, match=r"need the machine's clock.*pass clock=real"):
        serve(fake, tiny, tmp_path, scenario_of(CLOSED), clock="fake")


def test_a_cell_longer_than_the_context_is_refused_request_by_request(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path
) -> None:
    samples: list[Sample] = []
    with loaded(fake, tiny, tmp_path, scenario_of(Cell(6, 5, 2)), {}, samples.append) as task:
        options = {"context_tokens": 8, "max_sequences": 2, "extra": {"clock": "real"}}
        task.launch.call("load", 30, model=msgspec.to_builtins(tiny), options=options)
        with pytest.raises(LaunchFailure, match=r"request needs 10 tokens, the context holds 8.*in a row"):
            measure(task)
    assert {s.status for s in samples} == {"error"}


# --- disasters ------------------------------------------------------------------------------------------------


def after_requests(journal: Path, number: int, act: Callable[[], None]) -> threading.Thread:
    """Act once an engine has finished that many requests; the engine's journal says so behind the host's back."""

    def wait() -> None:
        while not journal.exists() or journal.read_bytes().count(b"\n") < number:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def generator_process() -> psutil.Process:
    for child in psutil.Process().children():
        if "enginecmp.loadgen" in child.cmdline():
            return child
    pytest.fail("no load generator is running")


@pytest.mark.parametrize("plugin", ["own", "queue"])
def test_a_crash_in_mid_cell_loses_no_finished_request(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, plugin: str
) -> None:
    samples: list[Sample] = []
    engine = fake if plugin == "own" else fake_queue()
    journal = tmp_path / "journal"
    extra = {"decode_us": 5000, "journal": journal}
    with loaded(engine, tiny, tmp_path, scenario_of(CLOSED, requests=400), extra, samples.append) as task:
        after_requests(journal, 6, lambda: os.kill(task.launch.pid, signal.SIGKILL))
        with pytest.raises(LaunchFailure) as failure:
            measure(task)
    assert failure.value.status == "crash"
    finished = journal.read_bytes().count(b"\n")
    assert finished >= 6
    # Requests in flight may all end in the step that the kill hits, between journal and stamp.
    assert finished - CLOSED.concurrency <= len(samples) <= finished
    assert {(s.status, s.output_tokens, len(s.token_ns)) for s in samples} == {("ok", 5, 5)}


def test_a_dead_generator_ends_the_cell_and_is_named(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    samples: list[Sample] = []
    journal = tmp_path / "journal"
    extra = {"decode_us": 5000, "journal": journal}
    with loaded(fake, tiny, tmp_path, scenario_of(CLOSED, requests=400), extra, samples.append) as task:
        after_requests(journal, 6, lambda: generator_process().kill())
        with pytest.raises(LaunchFailure, match=r"load generator ended in mid-cell \(exit code -9\)") as failure:
            measure(task)
    assert failure.value.status == "error"
    assert len(samples) >= 6
    assert all(Flag.LATE_DISPATCH in s.flags for s in samples)
    assert {s.status for s in samples} == {"ok"}, "the engine finished what it had"


def test_a_generator_that_hangs_is_killed_and_named(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginecmp.loadgen.client._SILENCE_SECONDS", 0.5)
    samples: list[Sample] = []
    journal = tmp_path / "journal"
    deadlines = Deadlines(prefill_seconds=2, decode_seconds=2)
    scenario = scenario_of(Cell(6, 5, 4, "constant", 50.0), requests=400, deadlines=deadlines)
    with loaded(fake, tiny, tmp_path, scenario, {"journal": journal}, samples.append) as task:
        after_requests(journal, 5, lambda: generator_process().suspend())
        with pytest.raises(LaunchFailure, match="the load generator hung for"):
            measure(task)
    assert len(samples) >= 5
    assert {s.status for s in samples} == {"ok"}


def test_a_generator_that_was_held_up_makes_the_whole_cell_invalid(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    cell = Cell(6, 5, 4, "constant", 50.0)
    scenario = scenario_of(cell, requests=60, validity=PATIENT)

    def hold_up() -> None:
        process = generator_process()
        process.suspend()
        time.sleep(0.5)
        process.resume()

    after_requests(journal, 5, hold_up)
    samples = serve(fake, tiny, tmp_path, scenario, journal=journal)
    assert len(samples) == 61
    assert all(s.flags == [Flag.LATE_DISPATCH] for s in samples)
    assert max(s.metrics["dispatch_lag_seconds"] for s in samples) > 0.3


def test_cell_within_its_declared_limits_has_no_flags(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    limits = Validity(late_dispatch_seconds=1e6, late_dispatch_share=1e9, floor_seconds=1e6)
    samples = serve(fake, tiny, tmp_path, scenario_of(Cell(6, 5, 4, "constant", 50.0), requests=20, validity=limits))
    assert [s.flags for s in samples] == [[]] * 21


@pytest.mark.parametrize(("plugin", "phase"), [("own", "step"), ("queue", "decode")])
def test_a_hanging_engine_is_killed_at_its_deadline(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, plugin: str, phase: str
) -> None:
    deadlines = Deadlines(prefill_seconds=1, decode_seconds=1)
    engine = fake if plugin == "own" else fake_queue()
    with pytest.raises(LaunchFailure, match=f"hung in {phase}") as failure:
        serve(engine, tiny, tmp_path, scenario_of(CLOSED, deadlines=deadlines), fault="hang@decode:2")
    assert failure.value.status == "timeout"


def test_a_long_cell_is_no_hang(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    deadlines = Deadlines(prefill_seconds=1, decode_seconds=1)
    scenario = scenario_of(CLOSED, requests=1, seconds=2.5, deadlines=deadlines)
    samples = serve(fake, tiny, tmp_path, scenario, decode_us=50_000)
    assert {s.status for s in samples} == {"ok"}
    assert samples[-1].end_ns - samples[0].start_ns > 2.5e9


def test_waiting_for_arrivals_is_no_hang(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    deadlines = Deadlines(prefill_seconds=0.5, decode_seconds=0.5)
    cell = Cell(6, 5, 4, "constant", 0.8)
    samples = serve(fake, tiny, tmp_path, scenario_of(cell, requests=1, deadlines=deadlines))
    assert {s.status for s in samples} == {"ok"}


# --- the rule for the generator -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lag_milliseconds", "latency_seconds", "late"),
    [(0.9, 1.0, False), (1.1, 1.0, True), (0.9, 0.05, True), (0.4, 0.05, False)],
)
def test_late_is_more_than_a_millisecond_or_one_percent_of_the_latency(
    lag_milliseconds: float, latency_seconds: float, late: bool
) -> None:
    lags = np.full(200, lag_milliseconds / 1e3)
    assert generator_lagged(lags, np.full(200, latency_seconds), Validity(), closed=False) is late


def test_one_late_request_in_a_thousand_is_none_too_many() -> None:
    lags = np.full(1000, 1e-5)
    lags[7] = 0.5
    assert not generator_lagged(lags, np.ones(1000), Validity(), closed=False)
    lags[:20] = 0.5
    assert generator_lagged(lags, np.ones(1000), Validity(), closed=False)


# --- executables ----------------------------------------------------------------------------------------------

EXECUTABLE = """#!{python}
import os, socket, sys, time
from enginecmp.wire.protocol import Channel
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
channel.send({{"ok": os.getpid()}})
while (message := channel.receive()) is not None:
    start = time.perf_counter_ns()
    if message["op"] == "load":
        channel.send({{"ok": {{"start_ns": start, "end_ns": time.perf_counter_ns(), "metrics": {{}}}}}})
    elif message["op"] == "request":
        stamps = []
        for _ in range(message["output_tokens"]):
            time.sleep(0.002)
            stamps.append(time.perf_counter_ns())
        answer = {{"start_ns": start, "token_ns": stamps, "end_ns": time.perf_counter_ns(), "ids": [7] * len(stamps),
                  "output_tokens": len(stamps), "metrics": {{}}, "where": "decode", "error": None}}
        channel.send({{"ok": answer}})
    else:
        channel.send({{"ok": None}})
"""


def test_an_executable_is_served_from_the_host_first_in_first_out(tiny: ModelInfo, tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text(EXECUTABLE.format(python=sys.executable))
    program.chmod(0o755)
    info = EngineInfo(
        name="program", version="1", licence="MIT", devices=("cpu",), architectures=("llama",), quantizations=("F32",)
    )
    plugin = Plugin(name="program", command=(str(program),), info=info)
    samples = serve(plugin, tiny, tmp_path, scenario_of(CLOSED, requests=6))
    assert Counter((s.phase, s.status) for s in samples) == {("warmup", "ok"): 4, ("measure", "ok"): 6}
    assert all(len(s.token_ns) == 5 for s in samples)
    assert all(later.start_ns >= sample.end_ns for sample, later in itertools.pairwise(samples))
    assert {"dispatch_lag_seconds", "foreign_cpu_seconds"} <= samples[-1].metrics.keys()


def test_a_user_who_sends_late_counts_by_the_share_of_the_latency() -> None:
    # Ten requests: the 99th percentile is the slowest. 3 ms are 0.1 % of 3 s, and nothing of a latency from sending.
    lags = np.array([0.003] + [0.0002] * 9)
    assert not generator_lagged(lags, np.full(10, 3.0), Validity(), closed=True)
    assert generator_lagged(lags, np.full(10, 0.1), Validity(), closed=True)
    assert generator_lagged(lags, np.full(10, 3.0), Validity(), closed=False)
