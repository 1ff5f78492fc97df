"""Many requests at once, loading, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import custom_cuda_controls as control
import numpy as np
import pytest
from custom_cuda_oracle import sampling as oracle
from custom_cuda_sessions import generate

from enginecmp import ContextOverflow, EngineError, LoadOptions, Request, UnsupportedModel
from enginecmp.models.synth import write_synth
from enginecmp_custom_cuda import cmp_load, cmp_metrics, cmp_operation, cmp_prefill, cmp_reset, cmp_step, cmp_submit
from enginecmp_custom_cuda.engine.decode.step import DecodeStep
from enginecmp_custom_cuda.engine.sampling.sampling import Sampler, Strategy


def requests_of(token_ids: Sequence[int], count: int) -> list[Request]:
    """Requests that differ in prompt, length and output; one asks for a single token."""
    shapes = [(5, 9), (40, 3), (1, 12), (23, 1), (9, 9), (63, 6), (12, 20), (64, 4), (33, 2), (2, 7)]
    return [
        Request(id=f"r{number}", token_ids=token_ids[number:][:length], output_tokens=wanted)
        for number, (length, wanted) in enumerate((shapes * 4)[:count])
    ]


def alone(session: Any, requests: Sequence[Request]) -> dict[str, list[int]]:
    return {each.id: generate(session, each.token_ids, each.output_tokens) for each in requests}


def together(session: Any, requests: Sequence[Request], every: int = 0) -> dict[str, list[int]]:
    """Submit as soon as there is room, but at least `every` steps apart."""
    waiting, steps = list(requests), 0
    answers: dict[str, list[int]] = {request.id: [] for request in requests}
    while waiting or any(len(answers[each.id]) < each.output_tokens for each in requests):
        while waiting and (not every or steps >= every) and cmp_submit(session, waiting[0]):
            waiting.pop(0)
            steps = 0
        for request_id, token in cmp_step(session):
            answers[request_id].append(token)
        steps += 1
    assert list(cmp_step(session)) == []
    return answers


@pytest.fixture(scope="module")
def expected(tiny: Any, device: Any, token_ids: list[int]) -> dict[str, list[int]]:
    session = cmp_load(tiny(), LoadOptions(device=device.kind, context_tokens=128, numerics="exact"))
    answers = alone(session, requests_of(token_ids, 20))
    session.close()
    return answers


@pytest.mark.parametrize(
    ("sequences", "every", "extra"),
    [
        (1, 0, {}),
        (3, 3, {}),
        (3, 0, {"prefill_chunk": "16"}),
        (7, 3, {"decoder": "launches", "prefill_chunk": "40"}),
        (20, 3, {}),
        (20, 0, {"decoder": "launches"}),
    ],
)
def test_ids_are_those_of_single_requests_whatever_joins_and_leaves(
    sequences: int, extra: dict[str, str], every: int, tiny: Any, load: Any, token_ids: list[int], expected: Any
) -> None:
    session = load(tiny(), context_tokens=128, max_sequences=sequences, extra=extra)
    requests = requests_of(token_ids, 20 if sequences > 8 else 8)
    wanted = {each.id: expected[each.id] for each in requests}
    assert together(session, requests, every) == wanted
    # Slots and pages are used again, so nothing of their earlier request may show.
    assert together(session, requests[::-1], every) == wanted
    assert session.cache.pages.unpromised == session.cache.pages.count


def test_a_sequence_as_long_as_the_last_one_in_its_place_starts_afresh(
    tiny: Any, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny(), context_tokens=128, max_sequences=2)
    # "a" ends with 12 tokens in the cache, and "b", which takes its slot, has a prompt of 12.
    first = Request(id="a", token_ids=token_ids[:8], output_tokens=5)
    second = Request(id="b", token_ids=token_ids[30:42], output_tokens=6)
    assert together(session, [first]) | together(session, [second]) == alone(load(tiny()), [first, second])


def test_sequences_move_into_the_rows_of_a_small_step(tiny: Any, load: Any, token_ids: list[int]) -> None:
    """Nine run, through the kernels of prompts; those that stay longest sit in the last rows and must move down."""
    session = load(tiny(), context_tokens=128, max_sequences=9)
    requests = [Request(id=str(n), token_ids=token_ids[n : n + 6], output_tokens=4 + (n > 5) * 6) for n in range(9)]
    rows = [session.batching._runner._rows]
    seen = []
    for request in requests:
        assert cmp_submit(session, request)
    answers: dict[str, list[int]] = {each.id: [] for each in requests}
    while pairs := cmp_step(session):
        for name, token in pairs:
            answers[name].append(token)
        seen.append(sorted(rows[0].values()))
    assert [0, 1, 2] in seen or [0, 1, 3] in seen, seen
    assert max(seen[0]) == 8
    cmp_reset(session)
    assert answers == alone(session, requests)


def test_a_prompt_in_a_low_row_changes_places_with_a_sequence_that_generates(
    tiny: Any, load: Any, token_ids: list[int], expected: Any
) -> None:
    session = load(tiny(), context_tokens=128, max_sequences=2)
    passes = session.batching._runner
    short, long = (Request(id=name, token_ids=token_ids[:9], output_tokens=9) for name in ("a", "b"))
    assert cmp_submit(session, short)
    assert cmp_submit(session, long)
    wanted = generate(load(tiny()), token_ids[:9], 9)
    answers: dict[str, list[int]] = {"a": [], "b": []}
    for name, token in cmp_step(session):
        answers[name].append(token)
    # As if "a" were still a prompt: only "b" is in the next pass, and its row is not the first.
    from enginecmp_custom_cuda.engine.batching.scheduler import Piece

    assert passes._rows == {0: 0, 1: 1}
    (token,) = passes.enqueue([Piece(1, np.array([answers["b"][0]], np.int32), 9, True)])()
    assert token == wanted[1]
    assert passes._rows == {0: 1, 1: 0}
    (token,) = passes.enqueue([Piece(0, np.array([answers["a"][0]], np.int32), 9, True)])()
    assert token == wanted[1]


def test_a_running_request_gets_a_token_a_step_while_a_long_prompt_comes_in(
    tiny: Any, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny(), max_sequences=2, extra={"prefill_chunk": "16"})
    cmp_submit(session, Request(id="running", token_ids=token_ids[:4], output_tokens=12))
    cmp_step(session)
    cmp_submit(session, Request(id="long", token_ids=token_ids[:60], output_tokens=2))
    steps = [[name for name, _ in cmp_step(session)] for _ in range(8)]
    assert steps == [["running"]] * 7 + [["running", "long"]]


def test_reset_drops_requests_in_flight(tiny: Any, load: Any, token_ids: list[int], expected: Any) -> None:
    requests = requests_of(token_ids, 4)
    session = load(tiny(), context_tokens=128, max_sequences=2)
    cmp_submit(session, requests[1])
    cmp_submit(session, requests[0])
    cmp_step(session)
    assert cmp_metrics(session)["kv_cache_bytes"] > 0
    cmp_reset(session)
    assert cmp_metrics(session)["kv_cache_bytes"] == 0
    assert list(cmp_step(session)) == []
    assert together(session, requests) == {each.id: expected[each.id] for each in requests}
    assert generate(session, requests[0].token_ids, 9) == expected["r0"], "and one alone after many"


def test_a_request_that_can_never_fit_leaves_the_others_alone(tiny: Any, load: Any, token_ids: list[int]) -> None:
    session = load(tiny(), context_tokens=32, max_sequences=2)
    assert cmp_submit(session, Request(id="a", token_ids=token_ids[:8], output_tokens=3))
    with pytest.raises(ContextOverflow, match="load it with context_tokens=33"):
        cmp_submit(session, Request(id="b", token_ids=token_ids[:30], output_tokens=4))
    assert cmp_submit(session, Request(id="c", token_ids=token_ids[:8], output_tokens=3))
    assert [sorted(name for name, _ in cmp_step(session)) for _ in range(3)] == [["a", "c"]] * 3


@pytest.fixture
def memory(emulated: Any) -> Any:
    """Set the emulated device's memory to what is used now plus so many bytes."""
    total, free = emulated.total_bytes, emulated.free_bytes()
    yield lambda spare: control.set_memory(total - free + spare)
    control.set_memory()


def test_a_cache_that_does_not_hold_everybody_lets_them_wait(
    tiny: Any, load: Any, token_ids: list[int], expected: Any
) -> None:
    session = load(tiny(), context_tokens=128, max_sequences=3)
    pages = session.cache.pages
    pages.count, pages._free = 2, [1, 0]  # as on a device with room for one whole sequence
    requests = requests_of(token_ids, 8)
    assert together(session, requests) == {each.id: expected[each.id] for each in requests}


def test_a_model_or_a_cache_larger_than_the_memory_says_what_would_fit(
    tiny: Any, memory: Any, token_ids: list[int]
) -> None:
    memory(100_000)
    with pytest.raises(EngineError, match=r"custom_cuda: expected .* free on .* for the weights, got .*; "):
        cmp_load(tiny(), LoadOptions(device="emulated", context_tokens=64))
    memory(4_000_000)
    with pytest.raises(
        EngineError, match=r"KV cache of 8192 tokens, .* has .* free; choose .* at most \d+ tokens"
    ) as said:
        cmp_load(tiny(), LoadOptions(device="emulated", context_tokens=8192, numerics="exact"))
    fits = int(str(said.value).rpartition("at most ")[2].split()[0])
    session = cmp_load(tiny(), LoadOptions(device="emulated", context_tokens=fits, numerics="exact"))
    assert len(generate(session, token_ids[:20], 3)) == 3
    session.close()


def test_an_architecture_that_is_not_implemented_is_refused(tmp_path: Any, device: Any) -> None:
    model = write_synth(tmp_path / "gpt2.gguf", like="tiny-gpt2")
    with pytest.raises(UnsupportedModel, match="expected an architecture among llama, qwen2, phi3, got 'gpt2'"):
        cmp_load(model, LoadOptions(device=device.kind, context_tokens=64))


def test_cublaslt_needs_a_gpu(tiny: Any, emulated: Any) -> None:
    with pytest.raises(EngineError, match="gemm=own on emulated, got cublaslt"):
        cmp_load(tiny(), LoadOptions(device="emulated", context_tokens=64, extra={"gemm": "cublaslt"}))


def test_a_drawn_id_is_what_the_next_step_goes_on_from(tiny: Any, load: Any, token_ids: list[int]) -> None:
    """The sampling kernels between head and next: the sequence goes on with the drawn id, not with the likeliest."""
    session = load(tiny())
    session.begin_alone(40)
    from dataclasses import replace

    step = DecodeStep(session.device, session.model, 1, replace(session._decoding, logits=True), session.cache)
    buffers = step.buffers
    sampler = Sampler(
        session.device,
        logits=buffers.logits,
        largest=buffers.best,
        position=buffers.position,
        count=buffers.count,
        best=buffers.best,
        rows=1,
        vocabulary=session.config.vocabulary,
    )
    strategy = Strategy(temperature=1.5, top_k=80, top_p=0.95, seed=5)
    draw = sampler.launches(strategy)
    history = list(token_ids[:12])
    session.run_prompt(history[:-1])
    step.bind(0, 11, history[-1])
    assert buffers.ring.wait(0) == history[-1]
    *phases, following = step.phases
    greedy = 0
    for count in range(1, 9):
        for phase in phases:
            for launch in phase.launches:
                launch.launch()
        logits = session.device.download(buffers.logits, session.config.vocabulary, np.float32)
        for launch in (*draw, *following.launches):
            launch.launch()
        token = buffers.ring.wait(0)
        assert token == oracle.sample(logits, 1.5, 80, 0.95, 5, count)
        greedy += token == int(logits.argmax())
        history.append(token)
    assert greedy < 8
    scores = session.score(history[:-1])
    np.testing.assert_allclose(scores[-1], logits, atol=1e-4, rtol=0)


def test_operations_repeat_with_their_seed_and_leave_requests_alone(tiny: Any, load: Any, token_ids: list[int]) -> None:
    session = load(tiny())
    before = generate(session, token_ids[:20], 6)
    cmp_reset(session)
    parameters = {"token_ids": token_ids[:20], "temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 8}
    draw = cmp_operation(session, "sampling", parameters)
    assert draw is not None
    drawn = [draw() for _ in range(10)]
    again = cmp_operation(session, "sampling", parameters)
    assert again is not None
    assert [again() for _ in range(10)] == drawn
    assert len(set(drawn)) > 1
    greedy = cmp_operation(session, "sampling", parameters | {"temperature": 0.0})
    assert greedy is not None
    assert {greedy() for _ in range(3)} == {before[0]}
    assert cmp_operation(session, "matmul", {}) is None
    assert cmp_operation(session, "tokenize", {}) is None
    assert cmp_prefill(session, token_ids[:20], 6) == before[0]
