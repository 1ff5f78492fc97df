"""Batches whose steps are enqueued before the ids of those before them are known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from custom_cuda_sessions import generate

from enginecmp import LoadOptions, Request
from enginecmp_custom_cuda import cmp_load, cmp_metrics, cmp_reset, cmp_step, cmp_submit
from enginecmp_custom_cuda.engine.prefill import split_attention

AHEAD = 5
SMALL, LARGE = 3, 10
CONTEXT = 128


def requests_of(token_ids: Sequence[int], outputs: Sequence[int]) -> list[Request]:
    """Requests with prompts of 4 to 9 ids."""
    return [
        Request(id=f"r{number}", token_ids=token_ids[number:][: 4 + number % 6], output_tokens=output)
        for number, output in enumerate(outputs)
    ]


def positions(session: Any, count: int) -> list[int]:
    """Where each of `count` sequences goes on when everything that is under way is done, in the order of rows."""
    session.device.synchronize()
    small = count <= session._passes._small.most
    address = session.buffers.position if small else session._passes._large.position
    found: list[int] = session.device.download(address, count, np.int32).tolist()
    return found


def begun(session: Any, requests: Sequence[Request]) -> dict[str, list[int]]:
    """Submit requests whose prompts fit one pass; return their first ids."""
    for request in requests:
        assert cmp_submit(session, request)
    found = {name: [token] for name, token in cmp_step(session)}
    assert list(found) == [request.id for request in requests]
    return found


@pytest.fixture(scope="module")
def expected(tiny: Any, device: Any, token_ids: list[int]) -> dict[str, list[int]]:
    """The ids of every request of `requests_of`, alone, as far as any test asks for."""
    session = cmp_load(tiny(), LoadOptions(device=device.kind, context_tokens=CONTEXT, numerics="exact"))
    found = {each.id: generate(session, each.token_ids, 24) for each in requests_of(token_ids, [24] * 20)}
    session.close()
    return found


@pytest.mark.parametrize("decoder", ["graph", "launches"])
@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_as_many_steps_are_under_way_as_were_asked_for(
    count: int, decoder: str, tiny: Any, load: Any, token_ids: list[int], expected: Any
) -> None:
    extra = {"ahead": str(AHEAD), "decoder": decoder}
    session = load(tiny(), context_tokens=CONTEXT, max_sequences=count, extra=extra)
    requests = requests_of(token_ids, [20] * count)
    answers = begun(session, requests)
    for handed_out in (2, 3, 4):
        for name, token in cmp_step(session):
            answers[name].append(token)
        # The last id that was handed out is at this position, and AHEAD - 1 steps are under way behind its own.
        last = [len(each.token_ids) + handed_out - 1 for each in requests]
        assert positions(session, count) == [each + AHEAD - 1 for each in last]
        tokens = sum(each + AHEAD - 1 for each in last)
        assert cmp_metrics(session)["kv_cache_bytes"] == tokens * session.cache.token_bytes
    while pairs := cmp_step(session):
        for name, token in pairs:
            answers[name].append(token)
    assert answers == {each.id: expected[each.id][:20] for each in requests}


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_a_sequence_that_ends_stands_still_while_the_others_go_on(
    count: int, tiny: Any, load: Any, token_ids: list[int], expected: Any
) -> None:
    session = load(tiny(), context_tokens=CONTEXT, max_sequences=count)
    requests = requests_of(token_ids, [12] * (count - 1) + [6])  # the last row is free then, and nobody has to move
    answers = begun(session, requests)
    for _ in range(5):
        for name, token in cmp_step(session):
            answers[name].append(token)
    assert len(answers[requests[-1].id]) == 6
    # One step beyond the end is under way, and the row is empty in it.
    assert positions(session, count) == [len(each.token_ids) + 6 for each in requests[:-1]] + [-1]
    while pairs := cmp_step(session):
        for name, token in pairs:
            answers[name].append(token)
    assert answers == {each.id: expected[each.id][: each.output_tokens] for each in requests}


@pytest.mark.parametrize(("sequences", "ahead", "seed"), [(3, 8, 1), (11, 8, 3), (20, 1, 5)])
def test_any_order_of_submits_ends_and_resets_gives_the_ids_of_single_requests(
    sequences: int, ahead: int, seed: int, tiny: Any, load: Any, token_ids: list[int], expected: Any
) -> None:
    extra = {"ahead": str(ahead), "prefill_chunk": "24"}
    session = load(tiny(), context_tokens=CONTEXT, max_sequences=sequences, extra=extra)
    drawn = random.Random(seed)
    for ended_by_reset in (False, True, False):
        waiting = requests_of(token_ids, [drawn.choice((1, 2, 5, 9, 24)) for _ in range(20)])
        drawn.shuffle(waiting)
        asked = {each.id: each.output_tokens for each in waiting}
        answers: dict[str, list[int]] = {name: [] for name in asked}
        steps = 0
        while waiting or any(len(answers[name]) < count for name, count in asked.items()):
            while waiting and drawn.random() < 0.6 and cmp_submit(session, waiting[0]):
                waiting.pop(0)
            for name, token in cmp_step(session):
                answers[name].append(token)
            steps += 1
            if ended_by_reset and steps == 12:
                break
        if not ended_by_reset:
            assert list(cmp_step(session)) == []
            assert answers == {name: expected[name][:count] for name, count in asked.items()}
        else:
            assert all(ids == expected[name][: len(ids)] for name, ids in answers.items())
            cmp_reset(session)
        assert session.cache.pages.unpromised == session.cache.pages.count
    assert generate(session, token_ids[:4], 24) == expected["r0"], "and one alone after them"


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_a_reset_in_mid_window_leaves_nothing_in_the_ring(
    count: int, tiny: Any, load: Any, token_ids: list[int], expected: Any
) -> None:
    session = load(tiny(), context_tokens=CONTEXT, max_sequences=count)
    requests = requests_of(token_ids, [24] * count)
    for _ in range(2):
        answers = begun(session, requests)
        for _ in range(3):
            for name, token in cmp_step(session):
                answers[name].append(token)
        assert answers == {each.id: expected[each.id][:4] for each in requests}
        cmp_reset(session)
        assert cmp_metrics(session)["kv_cache_bytes"] == 0
        assert list(cmp_step(session)) == []


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_sequences_as_long_as_the_last_ones_in_their_places_start_afresh(
    count: int, tiny: Any, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny(), context_tokens=CONTEXT, max_sequences=count)
    # Everybody of the first wave ends with 4 + 5 - 1 tokens in the cache, and the second wave's prompts have 8.
    waves = [
        [
            Request(id=str(n), token_ids=token_ids[n + 20 * wave :][: 4 + 4 * wave], output_tokens=5)
            for n in range(count)
        ]
        for wave in range(2)
    ]
    answers = []
    for wave in waves:
        answers.append(begun(session, wave))
        while pairs := cmp_step(session):
            for name, token in pairs:
                answers[-1][name].append(token)
    assert answers == [{each.id: generate(session, each.token_ids, 5) for each in wave} for wave in waves]


def test_a_long_context_beside_short_ones_is_split_and_computed_the_same(
    tiny: Any, load: Any, token_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_attention, "BLOCKS", 64)  # a small device would not split
    session = load(tiny(), context_tokens=800, max_sequences=LARGE)
    assert session.prefiller.splits(LARGE) == 3
    requests = requests_of(token_ids, [6] * LARGE)
    # 507 tokens: while it generates, the sequence grows into its third split.
    requests[4] = Request(id="r4", token_ids=(token_ids * 6)[:507], output_tokens=9)
    answers: dict[str, list[int]] = {each.id: [] for each in requests}
    for request in requests:
        assert cmp_submit(session, request)
    while pairs := cmp_step(session):
        for name, token in pairs:
            answers[name].append(token)
    assert answers == {each.id: generate(session, each.token_ids, each.output_tokens) for each in requests}
