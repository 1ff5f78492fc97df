"""The scheduler of continuous batching, over a runner that only remembers what it was given."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginecmp import ContextOverflow, Request
from enginecmp_custom_cuda.engine.batching.scheduler import AWAITED, Batching, Piece

CONTEXT = 96
AHEAD = 4


def next_of(history: Sequence[int]) -> int:
    """A model whose next id depends on every id before it."""
    state = 7
    for token in history:
        state = (state * 131 + token * 17 + 3) % 99991
    return state % 251


class Remembering:
    """Keeps the ids of every slot, refuses gaps, and counts what passes carry.

    Args:
        pages: tokens that there is room for.
        goes_on: whether a pass of awaited ids follows the last one where that had no prompts; always when None.
    """

    def __init__(self, pages: int = 10**6, goes_on: Callable[[], bool] | None = None) -> None:
        self.slots: dict[int, list[int]] = {}
        self.promised: dict[int, int] = {}
        self.pages = pages
        self.goes_on = goes_on
        self.passes: list[list[tuple[int, int]]] = []
        self.answers: deque[dict[int, int]] = deque()  # of every pass under way, by slot
        self.last: dict[int, int] = {}  # answers of the last pass, if others can follow
        self.most_under_way = 0

    def promise(self, slot: int, tokens: int) -> bool:
        assert slot not in self.promised, "a slot is used twice"
        if sum(self.promised.values()) + tokens > self.pages:
            return False
        self.promised[slot] = tokens
        self.slots[slot] = []
        return True

    def release(self, slot: int) -> None:
        assert not any(slot in answers for answers in self.answers), "a sequence with ids under way is let go"
        del self.promised[slot], self.slots[slot]

    def follows(self, pieces: Sequence[Piece]) -> bool:
        assert self.answers, "nothing is under way that it could follow"
        return self.last.keys() >= {piece.slot for piece in pieces} and (self.goes_on is None or self.goes_on())

    def enqueue(self, pieces: Sequence[Piece]) -> Callable[[], list[int]]:
        assert pieces, "an empty pass"
        assert len({piece.slot for piece in pieces}) == len(pieces), "a sequence twice in one pass"
        self.passes.append([(piece.slot, len(piece.ids)) for piece in pieces])
        answers = {}
        for piece in pieces:
            held = self.slots[piece.slot]
            assert piece.start == len(held), "tokens out of place"
            assert piece.ids.dtype == np.int32
            ids = piece.ids.tolist()
            if self.answers:
                assert ids == [AWAITED], "the host cannot know an id that is under way"
                ids = [self.last[piece.slot]]
            assert AWAITED not in ids, "nobody knows this id"
            held.extend(ids)
            assert len(held) <= self.promised[piece.slot], "more tokens than promised"
            if piece.wants_id:
                answers[piece.slot] = next_of(held)
        self.answers.append(answers)
        self.most_under_way = max(self.most_under_way, len(self.answers))
        self.last = answers if all(count == 1 for _, count in self.passes[-1]) else {}

        def wait() -> list[int]:
            assert self.answers.popleft() is answers, "passes end in their order"
            return list(answers.values())

        return wait


def check_room(token_ids: Sequence[int], output_tokens: int) -> None:
    if len(token_ids) + output_tokens - 1 > CONTEXT:
        msg = "too long"
        raise ContextOverflow(msg)


def alone(request: Request) -> list[int]:
    history = list(request.token_ids)
    for _ in range(request.output_tokens):
        history.append(next_of(history))
    return history[len(request.token_ids) :]


def request(name: str, prompt: int, output: int) -> Request:
    start = sum(map(ord, name))
    return Request(id=name, token_ids=[(start + i * i) % 251 for i in range(prompt)], output_tokens=output)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), slots=st.integers(1, 5), chunk=st.integers(1, 40), ahead=st.integers(1, 9))
def test_every_request_gets_the_tokens_it_would_get_alone(data: Any, slots: int, chunk: int, ahead: int) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=9))
    waiting = [request(f"r{n}", *shape) for n, shape in enumerate(shapes)]
    expected = {each.id: alone(each) for each in waiting}
    drawn, steady = random.Random(data.draw(st.integers(0, 99))), data.draw(st.sampled_from((0.0, 0.7, 1.0)))
    runner = Remembering(data.draw(st.integers(CONTEXT, 4 * CONTEXT)), lambda: drawn.random() < steady)
    batching = Batching(runner, slots, chunk, check_room, ahead)
    answers: dict[str, list[int]] = {each.id: [] for each in waiting}
    idle = 0
    while waiting or runner.promised:
        # Requests arrive whenever they like.
        while waiting and data.draw(st.booleans()) and batching.submit(waiting[0]):
            waiting.pop(0)
        if not runner.promised:
            idle += 1
            assert batching.step() == []
            if idle > 3:
                assert batching.submit(waiting.pop(0)), "with nothing in flight a request must be taken"
            continue
        pairs = batching.step()
        assert pairs, "something is in flight"
        assert len({name for name, _ in pairs}) == len(pairs)
        for name, token in pairs:
            answers[name].append(token)
    assert answers == expected
    assert batching.step() == []
    assert max(sum(count for _, count in each) for each in runner.passes) <= max(chunk, slots)
    assert runner.most_under_way <= (ahead if steady else 1)
    assert not runner.answers


def test_a_running_request_gets_a_token_a_step_while_a_long_prompt_comes_in() -> None:
    runner = Remembering()
    batching = Batching(runner, 2, 16, check_room, AHEAD)
    assert batching.submit(request("running", 4, 12))
    batching.step()
    assert batching.submit(request("long", 60, 2))
    # 8 of the prompt's 60 ids a step beside the running request: eight steps until its first answer.
    steps = [[name for name, _ in batching.step()] for _ in range(8)]
    assert steps == [["running"]] * 7 + [["running", "long"]]


def test_prompts_that_wait_alone_share_whole_passes() -> None:
    runner = Remembering()
    batching = Batching(runner, 4, 16, check_room, AHEAD)
    for name in "abcd":
        assert batching.submit(request(name, 6, 2))
    assert [name for name, _ in batching.step()] == ["a", "b"]
    assert runner.passes == [[(0, 6), (1, 6), (2, 4)]]
    # The two that run go first; eight ids of the prompts fit beside them.
    assert [name for name, _ in batching.step()] == ["a", "b", "c", "d"]
    assert runner.passes[1] == [(0, 1), (1, 1), (2, 2), (3, 6)]
    assert [name for name, _ in batching.step()] == ["c", "d"]


def steady_batching(runner: Remembering, *output: int, slots: int = 3, ahead: int = AHEAD) -> Batching:
    """Requests "a", "b" and so on with so much output, after the pass of their prompts."""
    batching = Batching(runner, slots, 64, check_room, ahead)
    for name, tokens in zip("abc", output, strict=False):
        assert batching.submit(request(name, 5, tokens))
    assert len(batching.step()) == len(output)
    return batching


def test_passes_are_under_way_before_the_ids_of_those_before_them_are_known() -> None:
    runner = Remembering()
    batching = steady_batching(runner, 30, 30)
    found: dict[str, list[int]] = {"a": [], "b": []}
    for _ in range(10):
        for name, token in batching.step():
            found[name].append(token)
        assert len(runner.answers) == AHEAD - 1
    assert found == {name: alone(request(name, 5, 30))[1:11] for name in "ab"}
    assert batching.tokens == 2 * (5 + 10 + AHEAD - 1)


def test_a_request_that_joins_waits_for_the_passes_under_way_and_no_more() -> None:
    runner = Remembering()
    batching = steady_batching(runner, 30, 30)
    batching.step()
    before = len(runner.passes)
    assert batching.submit(request("c", 5, 2))
    steps = [[name for name, _ in batching.step()] for _ in range(AHEAD)]
    assert steps == [["a", "b"]] * (AHEAD - 1) + [["a", "b", "c"]]
    assert runner.passes[before] == [(0, 1), (1, 1), (2, 5)], "nothing was enqueued past it"


@pytest.mark.parametrize(("ahead", "beyond"), [(1, 0), (2, 1), (9, 1)])
def test_whoever_takes_the_place_of_another_waits_for_one_pass(ahead: int, beyond: int) -> None:
    runner = Remembering()
    batching = steady_batching(runner, 30, 7, slots=2, ahead=ahead)
    while len(pairs := batching.step()) == 2:
        ended = pairs == [("a", alone(request("a", 5, 30))[6]), ("b", alone(request("b", 5, 7))[6])]
        if ended:
            break
        assert not batching.submit(request("c", 5, 2))
    assert ended
    assert len(runner.answers) == beyond
    assert batching.submit(request("c", 5, 2))
    names = [[name for name, _ in batching.step()] for _ in range(beyond + 1)]
    assert names == [["a"]] * beyond + [["a", "c"]]


def test_nothing_is_computed_that_nobody_asked_for() -> None:
    runner = Remembering()
    batching = steady_batching(runner, 6, 3, 4)
    while batching.step():
        pass
    # The last id of a request is never run.
    assert sum(count for each in runner.passes for _, count in each) == 3 * 5 + 5 + 2 + 3


def test_clear_in_mid_window_forgets_what_is_under_way() -> None:
    runner = Remembering()
    batching = steady_batching(runner, 30, 30)
    batching.step()
    runner.answers.clear()  # the device has ended them
    batching.clear()
    assert (runner.promised, batching.tokens, batching.step()) == ({}, 0, [])
    assert batching.submit(request("c", 3, 2))
    assert [batching.step(), batching.step()] == [[("c", each)] for each in alone(request("c", 3, 2))]


def test_submit_says_no_while_slots_or_pages_are_taken() -> None:
    runner = Remembering(pages=30)
    batching = Batching(runner, 2, 64, check_room, AHEAD)
    assert batching.submit(request("a", 10, 5))
    assert not batching.submit(request("b", 15, 3)), "14 + 17 tokens are more than 30"
    assert batching.submit(request("c", 8, 2))
    assert not batching.submit(request("d", 1, 1)), "both slots are taken"
    batching.step()
    batching.step()
    assert batching.submit(request("d", 1, 1))


def test_a_request_that_can_never_fit_leaves_the_others_alone() -> None:
    runner = Remembering()
    batching = Batching(runner, 2, 64, check_room, AHEAD)
    assert batching.submit(request("a", 8, 4))
    with pytest.raises(ContextOverflow):
        batching.submit(request("b", CONTEXT, 2))
    assert batching.submit(request("c", 8, 4))
    assert [sorted(name for name, _ in batching.step()) for _ in range(4)] == [["a", "c"]] * 4


def test_clear_forgets_everybody_and_gives_their_room_back() -> None:
    runner = Remembering()
    batching = Batching(runner, 3, 8, check_room, AHEAD)
    for name in "abc":
        batching.submit(request(name, 10, 4))
    batching.step()
    assert batching.tokens > 0
    batching.clear()
    assert (runner.promised, batching.tokens, batching.step()) == ({}, 0, [])
    assert batching.submit(request("d", 3, 1))
    assert batching.step() == [("d", alone(request("d", 3, 1))[0])]
