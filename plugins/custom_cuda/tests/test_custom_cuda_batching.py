"""The scheduler of continuous batching, over a runner that only remembers what it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginecmp import ContextOverflow, Request
from enginecmp_custom_cuda.engine.batching import Batching, Piece

CONTEXT = 96


def next_of(history: Sequence[int]) -> int:
    """A model whose next id depends on every id before it."""
    state = 7
    for token in history:
        state = (state * 131 + token * 17 + 3) % 99991
    return state % 251


class Remembering:
    """Keeps the ids of every slot, refuses gaps, and counts what passes carry."""

    def __init__(self, pages: int = 10**6) -> None:
        self.slots: dict[int, list[int]] = {}
        self.promised: dict[int, int] = {}
        self.pages = pages
        self.passes: list[list[tuple[int, int]]] = []

    def promise(self, slot: int, tokens: int) -> bool:
        assert slot not in self.promised, "a slot is used twice"
        if sum(self.promised.values()) + tokens > self.pages:
            return False
        self.promised[slot] = tokens
        self.slots[slot] = []
        return True

    def release(self, slot: int) -> None:
        del self.promised[slot], self.slots[slot]

    def run(self, pieces: Sequence[Piece]) -> list[int]:
        assert pieces, "an empty pass"
        assert len({piece.slot for piece in pieces}) == len(pieces), "a sequence twice in one pass"
        self.passes.append([(piece.slot, len(piece.ids)) for piece in pieces])
        answers = []
        for piece in pieces:
            held = self.slots[piece.slot]
            assert piece.start == len(held), "tokens out of place"
            assert piece.ids.dtype == np.int32
            held.extend(piece.ids.tolist())
            assert len(held) <= self.promised[piece.slot], "more tokens than promised"
            if piece.answers:
                answers.append(next_of(held))
        return answers


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
@given(data=st.data(), slots=st.integers(1, 5), chunk=st.integers(1, 40))
def test_every_request_gets_the_tokens_it_would_get_alone(data: Any, slots: int, chunk: int) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=9))
    waiting = [request(f"r{n}", *shape) for n, shape in enumerate(shapes)]
    expected = {each.id: alone(each) for each in waiting}
    runner = Remembering(pages=data.draw(st.integers(CONTEXT, 4 * CONTEXT)))
    batching = Batching(runner, slots, chunk, check_room)
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


def test_a_running_request_gets_a_token_a_step_while_a_long_prompt_comes_in() -> None:
    runner = Remembering()
    batching = Batching(runner, 2, 16, check_room)
    assert batching.submit(request("running", 4, 12))
    batching.step()
    assert batching.submit(request("long", 60, 2))
    # 8 of the prompt's 60 ids a step beside the running request: eight steps until its first answer.
    steps = [[name for name, _ in batching.step()] for _ in range(8)]
    assert steps == [["running"]] * 7 + [["running", "long"]]


def test_prompts_that_wait_alone_share_whole_passes() -> None:
    runner = Remembering()
    batching = Batching(runner, 4, 16, check_room)
    for name in "abcd":
        assert batching.submit(request(name, 6, 2))
    assert [name for name, _ in batching.step()] == ["a", "b"]
    assert runner.passes == [[(0, 6), (1, 6), (2, 4)]]
    # The two that run go first; eight ids of the prompts fit beside them.
    assert [name for name, _ in batching.step()] == ["a", "b", "c", "d"]
    assert runner.passes[1] == [(0, 1), (1, 1), (2, 2), (3, 6)]
    assert [name for name, _ in batching.step()] == ["c", "d"]


def test_submit_says_no_while_slots_or_pages_are_taken() -> None:
    runner = Remembering(pages=30)
    batching = Batching(runner, 2, 64, check_room)
    assert batching.submit(request("a", 10, 5))
    assert not batching.submit(request("b", 15, 3)), "14 + 17 tokens are more than 30"
    assert batching.submit(request("c", 8, 2))
    assert not batching.submit(request("d", 1, 1)), "both slots are taken"
    batching.step()
    batching.step()
    assert batching.submit(request("d", 1, 1))


def test_a_request_that_can_never_fit_leaves_the_others_alone() -> None:
    runner = Remembering()
    batching = Batching(runner, 2, 64, check_room)
    assert batching.submit(request("a", 8, 4))
    with pytest.raises(ContextOverflow):
        batching.submit(request("b", CONTEXT, 2))
    assert batching.submit(request("c", 8, 4))
    assert [sorted(name for name, _ in batching.step()) for _ in range(4)] == [["a", "c"]] * 4


def test_clear_forgets_everybody_and_gives_their_room_back() -> None:
    runner = Remembering()
    batching = Batching(runner, 3, 8, check_room)
    for name in "abc":
        batching.submit(request(name, 10, 4))
    batching.step()
    assert batching.tokens > 0
    batching.clear()
    assert (runner.promised, batching.tokens, batching.step()) == ({}, 0, [])
    assert batching.submit(request("d", 3, 1))
    assert batching.step() == [("d", alone(request("d", 3, 1))[0])]
