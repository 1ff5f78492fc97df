"""Engines that break the contract of continuous batching: each ends its own launch, in time and in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from load_cells import loaded, scenario_of, serve

from enginecmp.format.phases import Phase
from enginecmp.format.records import Cell, Sample
from enginecmp.launch.launch import LaunchFailure
from enginecmp.loadgen.client import _Advance
from enginecmp.measure.concurrent import measure
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import ModelInfo
from enginecmp.wire.deadlines import Deadlines
from enginecmp.wire.request_table import Header

CLOSED = Cell(6, 5, 2)

# The fake engine, but one hook does what the test says once it has been called three times.
ENGINE = """
import time
from enginecmp.hookspecs import hookimpl
from enginecmp.testing.fake_engine import *
from enginecmp.testing import fake_engine
calls = 0

@hookimpl
def HOOK(session, ARGUMENT):
    global calls
    calls += 1
    if calls > 3:
        BODY
    return fake_engine.HOOK(session, ARGUMENT)
"""


def hostile(fake: Plugin, folder: Path, monkeypatch: pytest.MonkeyPatch, hook: str, body: str) -> Plugin:
    code = ENGINE.replace("HOOK", hook).replace("BODY", body)
    code = code.replace(", ARGUMENT", ", request" if hook == "cmp_submit" else "")
    (folder / "cmp_test_hostile.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return Plugin(name="hostile", module="cmp_test_hostile", info=fake.info)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 5", "cmp_step returned a int, expected a list of (request id, token id)"),
        ("return (pair for pair in [('x', 1)])", "cmp_step returned a generator, expected a list"),
        ("return ['abc']", "cmp_step returned 'abc' in its list, expected (request id, token id)"),
        ("return [None]", "cmp_step returned None in its list, expected (request id, token id)"),
        ("return [(5, 5)]", "cmp_step gave a token for request 5, which was never submitted"),
        ("return [(None, 1)]", "cmp_step gave a token for request None, which was never submitted"),
        ("return [([], 1)]", "cmp_step returned ([], 1) in its list, expected (request id, token id)"),
        (r"return [('\x1b[2J', 1)]", r"cmp_step gave a token for request '\x1b[2J', which was never submitted"),
        ("return [(i, -999) for i in session.running]", "cmp_step gave -999 for request '"),
        ("return [(i, 10**30) for i in session.running]", "cmp_step gave 1000000000000000000000000000000 for request"),
        ("return [(i, float('nan')) for i in session.running]", "cmp_step gave nan for request '"),
        ("return [(i, 'a') for i in session.running]", "in its list, expected (request id, token id)"),
        ("return [(i, 5) for i in session.running for _ in range(99)]", "expected one at most"),
    ],
)
def test_a_step_that_is_none_is_named(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str
) -> None:
    engine = hostile(fake, tmp_path, monkeypatch, "cmp_step", body)
    with pytest.raises(LaunchFailure) as failure:
        serve(engine, tiny, tmp_path, scenario_of(CLOSED))
    assert says in str(failure.value)
    assert failure.value.status == "error"


@pytest.mark.parametrize(
    ("hook", "phase"), [("cmp_step", Phase.STEP), ("cmp_submit", Phase.SUBMIT), ("cmp_metrics", Phase.METRICS)]
)
def test_every_hook_of_a_cell_has_a_deadline(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, phase: Phase
) -> None:
    body = "time.sleep(3600)"
    engine = hostile(fake, tmp_path, monkeypatch, hook, body)
    if hook == "cmp_metrics":
        (tmp_path / "cmp_test_hostile.py").write_text(
            (tmp_path / "cmp_test_hostile.py").read_text().replace("calls > 3", "calls > 1")
        )
    with pytest.raises(LaunchFailure, match=f"hung in {phase}") as failure:
        serve(engine, tiny, tmp_path, scenario_of(CLOSED, deadlines=Deadlines(prefill_seconds=1, decode_seconds=1)))
    assert (failure.value.status, failure.value.phase) == ("timeout", phase)


# What an engine can do that looks for the memory which it shares with the host.
WRITES = """import sys
        from enginecmp.wire.request_table import Header, Field, FIELDS
        frame = sys._getframe()
        while "table" not in frame.f_locals:
            frame = frame.f_back
        table = frame.f_locals["table"]
        view, row = table.words, table.row(0)
        DOES"""


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("view[row + Field.START_NS] = -1 << 62", "expected due <= start <= stamps (rising) <= end"),
        ("view[row + FIELDS] = 1 << 62", "expected due <= start <= stamps (rising) <= end"),
        ("view[row + Field.MARKED] = 1 << 62", "expected at most 6 stamps, got 4611686018427387904"),
        ("view[row + Field.STATE] = 77", "expected one of 3 states, got 77"),
        ("view[row + Field.OUTPUT] = 1 << 50", "got 5 of 1125899906842624 tokens"),
    ],
)
def test_memory_that_an_engine_wrote_into_is_held_to_the_rules(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, says: str
) -> None:
    body = WRITES.replace("DOES", does)
    engine = hostile(fake, tmp_path, monkeypatch, "cmp_metrics", body)
    code = (tmp_path / "cmp_test_hostile.py").read_text().replace("calls > 3", "calls > 1")
    (tmp_path / "cmp_test_hostile.py").write_text(code)
    samples: list[Sample] = []
    scenario = scenario_of(CLOSED)
    with (
        pytest.raises(LaunchFailure, match="hostile: broke the protocol: ") as failure,
        loaded(engine, tiny, tmp_path, scenario, {}, samples.append) as task,
    ):
        measure(task)
    assert says in str(failure.value)
    assert len(samples) == 9  # 8 and 2 to warm up, less the one that was spoilt
    assert all(s.start_ns <= s.token_ns[0] and s.token_ns[-1] <= s.end_ns for s in samples)


class Told:
    """A launch and a generator of which the test says how far they are."""

    def __init__(self) -> None:
        self.at: tuple[Phase, int] = (Phase.WAIT, 0)
        self.words = [0] * len(Header)
        self.capacity, self.stamps = 4, 3
        self.table = self

    def progress(self) -> tuple[Phase, int]:
        return self.at


def test_progress_that_is_only_pretended_counts_as_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [100.0], Told()
    monkeypatch.setattr("enginecmp.loadgen.client.time.monotonic", lambda: now[0])
    advance = _Advance(told, told)  # type: ignore[arg-type] # all that it asks of both

    def silence(seconds: float, phase: Phase, tokens: int = 0, **words: Any) -> float:
        now[0] += seconds
        told.at = phase, tokens
        for name, value in words.items():
            told.words[Header[name]] = value
        return advance.silence_seconds()

    assert silence(50, Phase.WAIT) == 0  # nothing was sent yet
    assert silence(5, Phase.WAIT, SENT=2) == 0
    assert silence(5, Phase.WAIT) == 5  # it does not take what was sent
    assert silence(1, Phase.STEP) == 0
    assert silence(3, Phase.STEP) == 3
    assert silence(3, Phase.STEP, 1) == 0
    assert silence(1, Phase.STEP, 1 << 40) == 1  # more tokens than the cell has
    for _ in range(_Advance._CHANGES):
        silence(1, Phase.WAIT)
        silence(1, Phase.STEP)
    assert silence(1, Phase.WAIT) > 1
    assert silence(1, Phase.STEP, 2) == 0
    assert silence(1, Phase.WAIT, 12, DONE=2, SENT=2) == 0
    assert silence(100, Phase.WAIT, ALL_SENT=1) == 100  # it has only to answer
