"""Continuous batching: the same tokens as one request after the other, whatever shares the batch."""

from __future__ import annotations

from typing import Any

import pytest
from llamacpp_requests import one_by_one, requests_of, together

from enginecmp import ContextOverflow, EngineError, ModelInfo, Request
from enginecmp_llamacpp import cmp_metrics, cmp_reset, cmp_step, cmp_submit


@pytest.mark.parametrize("kv_unified", ["0", "1"])
@pytest.mark.parametrize(("max_sequences", "n_batch"), [(3, 2048), (3, 8), (7, 16), (1, 2048)])
def test_batched_tokens_are_those_of_single_requests(
    kv_unified: str, max_sequences: int, n_batch: int, tiny: ModelInfo, load: Any, token_ids: list[int]
) -> None:
    requests = requests_of(token_ids)
    expected = one_by_one(load(tiny), requests)
    session = load(tiny, max_sequences=max_sequences, extra={"kv_unified": kv_unified, "n_batch": str(n_batch)})
    assert together(session, requests) == expected
    # Sequences are used again, so nothing of their earlier request may show.
    assert together(session, requests[::-1]) == expected


def test_submit_says_no_while_every_sequence_is_taken(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny, max_sequences=2)
    first, second, third = (
        Request(id=name, token_ids=token_ids[:4], output_tokens=wanted)
        for name, wanted in (("a", 2), ("b", 5), ("c", 1))
    )
    assert cmp_submit(session, first) is True
    assert cmp_submit(session, second) is True
    assert cmp_submit(session, third) is False
    cmp_step(session)
    assert cmp_submit(session, third) is False
    cmp_step(session)  # the second and last token of "a"
    assert cmp_submit(session, third) is True
    assert sorted(name for name, _ in cmp_step(session)) == ["b", "c"]


def test_a_running_request_gets_a_token_a_step_while_a_long_prompt_comes_in(
    tiny: ModelInfo, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny, max_sequences=2, extra={"n_batch": "8"})
    cmp_submit(session, Request(id="running", token_ids=token_ids[:4], output_tokens=12))
    cmp_step(session)
    cmp_submit(session, Request(id="long", token_ids=token_ids, output_tokens=2))
    # 60 ids, 7 of them a step beside the running request's one: nine steps until the first answer.
    steps = [[name for name, _ in cmp_step(session)] for _ in range(9)]
    assert steps == [["running"]] * 8 + [["running", "long"]]


def test_requests_in_one_batch_share_a_step(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny, max_sequences=3)
    for name in "abc":
        cmp_submit(session, Request(id=name, token_ids=token_ids[:10], output_tokens=3))
    for _ in range(3):
        pairs = cmp_step(session)
        assert [name for name, _ in pairs] == ["a", "b", "c"]
        assert len({token for _, token in pairs}) == 1
    assert cmp_step(session) == []


def test_finished_requests_leave_the_cache(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny, max_sequences=3)
    empty = cmp_metrics(session)["kv_cache_bytes"]
    together(session, requests_of(token_ids))
    assert cmp_metrics(session)["kv_cache_bytes"] == empty


def test_reset_drops_requests_in_flight(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    requests = requests_of(token_ids)
    session = load(tiny, max_sequences=2)
    expected = together(session, requests)
    cmp_submit(session, requests[5])
    cmp_submit(session, requests[6])
    cmp_step(session)
    cmp_reset(session)
    assert cmp_step(session) == []
    assert together(session, requests) == expected


def test_each_sequence_has_the_whole_context_to_itself(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny, context_tokens=300, max_sequences=3)
    prompt = (token_ids * 5)[:290]
    requests = [Request(id=name, token_ids=prompt, output_tokens=11) for name in "abc"]
    answers = together(session, requests)
    assert answers["a"] == answers["b"] == answers["c"]
    assert len(answers["a"]) == 11
    with pytest.raises(ContextOverflow, match=r"prompt has 290 tokens and 12 are to come.*holds 300"):
        cmp_submit(session, Request(id="d", token_ids=prompt, output_tokens=12))


def test_an_empty_prompt_is_refused_before_it_takes_a_sequence(tiny: ModelInfo, load: Any, token_ids: Any) -> None:
    session = load(tiny)
    with pytest.raises(EngineError, match="at least one token"):
        cmp_submit(session, Request(id="empty", token_ids=[], output_tokens=1))
    assert cmp_submit(session, Request(id="next", token_ids=token_ids, output_tokens=1))


def test_a_shared_cache_without_a_token_to_spare_never_runs_out(
    tiny: ModelInfo, load: Any, token_ids: list[int]
) -> None:
    # 4 x 64 tokens are one multiple of 256, so the cache holds exactly what four full requests need.
    session = load(tiny, context_tokens=64, max_sequences=4)
    shapes = [(3 + 7 * number % 55, 65 - (3 + 7 * number % 55)) for number in range(24)]
    requests = [
        Request(id=f"r{number}", token_ids=(token_ids * 2)[number:][:length], output_tokens=wanted)
        for number, (length, wanted) in enumerate(shapes)
    ]
    assert {name: len(ids) for name, ids in together(session, requests).items()} == {
        request.id: request.output_tokens for request in requests
    }


def test_batching_takes_fewer_steps_than_a_queue(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    requests = [Request(id=str(n), token_ids=token_ids[n:][:10], output_tokens=8) for n in range(12)]
    session = load(tiny, max_sequences=4)
    waiting, steps, given = list(requests), 0, 0
    while given < 12 * 8:
        while waiting and cmp_submit(session, waiting[0]):
            waiting.pop(0)
        given += len(cmp_step(session))
        steps += 1
    # Three rounds of four requests take 8 steps each; one request after the other would take 12 x 8.
    assert steps == 24


def test_a_request_that_can_never_fit_leaves_the_others_alone(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny, context_tokens=32, max_sequences=2)
    assert cmp_submit(session, Request(id="a", token_ids=token_ids[:8], output_tokens=4))
    with pytest.raises(ContextOverflow, match="holds 32"):
        cmp_submit(session, Request(id="b", token_ids=token_ids[:30], output_tokens=4))
    assert cmp_submit(session, Request(id="c", token_ids=token_ids[:8], output_tokens=4))
    assert [sorted(name for name, _ in cmp_step(session)) for _ in range(4)] == [["a", "c"]] * 4
    assert cmp_step(session) == []
