import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bench.fidelity import measure
from bench.in_turn import Answer, bare, summarize, take_turns

from enginecmp.errors import CmpError, UsageError

# Answers every line with two tokens a millisecond apart, and tells its own environment apart.
LOOP = """
import json, os, sys
for number, _ in enumerate(sys.stdin):
    print(json.dumps({"ids": [int(os.environ["FIRST"]), number], "token_ns": [5, 1_000_005]}), flush=True)
"""


class DriftingMachine:
    """Two sides on a machine whose speed falls by 3 % from one request to the next; `ours` is 1 % slower."""

    def __init__(self, ours_ids: tuple[int, ...] = (1, 2)) -> None:
        self.asked: list[str] = []
        self._ours_ids = list(ours_ids)

    @contextmanager
    def side(self, name: str, ids: list[int], rate: float) -> Iterator[Any]:
        def request() -> Answer:
            self.asked.append(name)
            seconds = 1.03 ** len(self.asked) / rate
            return Answer(ids, [0, round(seconds * 1e15)])

        yield request

    def ours(self) -> Any:
        return self.side("ours", self._ours_ids, 9.9)

    def theirs(self) -> Any:
        return self.side("theirs", [1, 2], 10.0)


def test_both_sides_are_asked_in_turn_and_launches_start_with_either() -> None:
    machine = DriftingMachine()
    take_turns("a / b", machine.ours, machine.theirs, launches=2, pairs=2)
    # One request each to warm up, then A B B A.
    first = [*("ours", "theirs"), *("ours", "theirs", "theirs", "ours")]
    second = [*("theirs", "ours"), *("theirs", "ours", "ours", "theirs")]
    assert machine.asked == [*first, *second]


def test_a_machine_that_drifts_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    machine = DriftingMachine()
    found = take_turns("a / b", machine.ours, machine.theirs, launches=3, pairs=4)
    assert found["ratio"] == pytest.approx(0.99, rel=1e-9)
    assert found["ci_low"] == pytest.approx(0.99, rel=1e-9)
    assert found["ci_high"] == pytest.approx(0.99, rel=1e-9)
    assert [len(pairs) for pairs in found["rates"]] == [4, 4, 4]
    assert "ratio 0.9900 [0.9900, 0.9900], 3 launches of 4 pairs" in capsys.readouterr().out


def test_the_engines_own_share_is_told_where_the_engine_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    @contextmanager
    def telling() -> Iterator[Any]:
        yield lambda: Answer([1, 2], [0, 2_000_000_000], engine_seconds=1.99)

    found = take_turns("a / b", telling, DriftingMachine().theirs, launches=2, pairs=3)
    assert found["engine_share"] == pytest.approx(0.995)
    assert "0.9950 [0.9950, 0.9950] of that time through cmp is the engine's own" in capsys.readouterr().out
    assert "engine_share" not in take_turns("a / b", DriftingMachine().ours, DriftingMachine().theirs, 2, 3)


def test_sides_that_compute_something_else_are_not_compared() -> None:
    machine = DriftingMachine(ours_ids=(1, 3))
    with pytest.raises(CmpError, match="expected the same tokens from both sides"):
        take_turns("a / b", machine.ours, machine.theirs, launches=1, pairs=1)


def test_the_launch_is_the_unit() -> None:
    # By hand: logs of launches are 0 and log 4, so the mean is log 2; t(1, 0.975) = 12.7062.
    found = summarize("a / b", [[(1.0, 2.0), (4.0, 2.0)], [(8.0, 2.0), (8.0, 2.0)]])
    assert found["ratio"] == pytest.approx(2.0)
    assert found["ci_high"] == pytest.approx(2.0 * 2.0**12.7062, rel=1e-4)
    assert found["ci_low"] == pytest.approx(2.0 / 2.0**12.7062, rel=1e-4)


def test_a_loop_answers_request_by_request() -> None:
    with bare("loop", [sys.executable, "-c", LOOP], {"FIRST": "7"}) as request:
        answers = [request(), request()]
    assert [answer.ids for answer in answers] == [[7, 0], [7, 1]]
    assert answers[0].decode_tokens_per_second == pytest.approx(1000.0)


def test_a_loop_that_ends_says_why() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with bare("loop", command, {}) as request, pytest.raises(CmpError, match="the loop ended and said: no such model"):
        request()


def test_an_engine_without_a_loop_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown engine 'mistralrs'; known: llamacpp, pytorch_baseline"):
        measure("mistralrs")
