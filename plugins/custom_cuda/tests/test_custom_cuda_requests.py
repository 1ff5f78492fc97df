"""One request after the other: which ids come, when, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_cuda_sessions import generate

from enginecmp import ContextOverflow, EngineError
from enginecmp_custom_cuda import cmp_decode, cmp_metrics, cmp_prefill, cmp_reset, cmp_score, cmp_unload
from enginecmp_custom_cuda.config import ARCHITECTURES
from enginecmp_custom_cuda.engine.profile import COMPONENTS, phases, table


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generated_ids_are_the_argmax_of_teacher_forced_scores(
    architecture: str, tiny: Any, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny(architecture))
    # 55 + 24 tokens: generation crosses from the first page to the second.
    generated = generate(session, token_ids[:55], 24)
    cmp_reset(session)
    rows = cmp_score(session, token_ids[:55] + generated[:-1])
    assert generated == rows[54:].argmax(axis=1).tolist()
    assert len(set(generated)) > 4


@pytest.mark.parametrize(
    "extra",
    [
        {"ahead": "1"},
        {"ahead": "3", "overlap": "0"},
        {"decoder": "launches"},
        {"decoder": "persistent", "ahead": "3"},
        {"prefill_chunk": "1"},
        {"prefill_chunk": "17"},
    ],
    ids=lambda extra: "-".join(f"{key}{value}" for key, value in extra.items()),
)
def test_options_that_change_only_the_way_leave_the_ids_alone(
    extra: dict[str, str], tiny: Any, load: Any, token_ids: list[int]
) -> None:
    expected = generate(load(tiny()), token_ids[:50], 20)
    session = load(tiny(), extra=extra)
    assert generate(session, token_ids[:50], 20) == expected
    assert generate(session, token_ids[:50], 20) == expected, "the second time, from recorded graphs"


def test_a_request_leaves_nothing_behind(tiny: Any, load: Any, token_ids: list[int]) -> None:
    session = load(tiny())
    first = generate(session, token_ids[:9], 12)
    generate(session, token_ids[20:], 70)
    assert generate(session, token_ids[:9], 12) == first
    cmp_reset(session)
    cmp_score(session, token_ids)
    assert generate(session, token_ids[:9], 12) == first


def test_ids_come_in_portions_as_they_are_asked_for(tiny: Any, load: Any, token_ids: list[int]) -> None:
    expected = generate(load(tiny()), token_ids[:20], 31)
    session = load(tiny())
    ids = [cmp_prefill(session, token_ids[:20], 31)]
    for portion in (1, 12, 0, 17):
        ids += cmp_decode(session, portion)
    assert ids == expected


def test_an_iterator_that_was_dropped_loses_no_ids(tiny: Any, load: Any, token_ids: list[int]) -> None:
    expected = generate(load(tiny()), token_ids[:20], 31)
    session = load(tiny())
    ids = [cmp_prefill(session, token_ids[:20], 31)]
    dropped = cmp_decode(session, 25)
    ids += [next(dropped) for _ in range(3)]
    dropped.close()  # eight steps were under way
    ids += cmp_decode(session, 2)
    ids += cmp_decode(session, 25)
    assert ids == expected


def test_no_step_is_queued_that_nobody_asked_for(tiny: Any, load: Any, token_ids: list[int]) -> None:
    session = load(tiny(), extra={"ahead": "100"})
    cmp_prefill(session, token_ids[:20], 8)
    next(cmp_decode(session, 7))
    session.device.synchronize()
    position = session.device.download(session.buffers.position, 1, np.int32)
    assert position.tolist() == [27]


def test_a_context_can_be_filled_to_its_last_token(tiny: Any, load: Any, token_ids: list[int]) -> None:
    session = load(tiny(), context_tokens=70)
    assert len(generate(session, token_ids[:60], 11)) == 11
    with pytest.raises(
        ContextOverflow, match="expected at most 70 tokens, got 71 to run; load it with context_tokens=71"
    ):
        list(cmp_decode(session, 1))
    assert generate(session, token_ids[:70], 1) == generate(load(tiny()), token_ids[:70], 1)


def test_what_does_not_fit_is_refused_with_the_numbers_and_the_engine_lives_on(
    tiny: Any, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny(), context_tokens=40)
    said = "custom_cuda: prompt has 38 tokens and 4 are to come, the context holds 40; load it with context_tokens=41"
    with pytest.raises(ContextOverflow, match=said):
        cmp_prefill(session, token_ids[:38], 4)
    with pytest.raises(ContextOverflow, match="load it with context_tokens=41"):
        cmp_score(session, token_ids[:41])
    assert len(generate(session, token_ids[:38], 3)) == 3


@pytest.mark.parametrize(
    ("ids", "said"),
    [([], "expected a prompt of at least one token"), ([1, 314], "ids below 314, got 314"), ([-1], "got -1")],
)
def test_a_prompt_that_is_none_is_refused(ids: list[int], said: str, tiny: Any, load: Any) -> None:
    with pytest.raises(EngineError, match=said):
        cmp_prefill(load(tiny()), ids, 1)


def test_decode_before_prefill_is_refused(tiny: Any, load: Any, token_ids: list[int]) -> None:
    session = load(tiny())
    with pytest.raises(EngineError, match="expected a prompt before ids are asked for"):
        next(cmp_decode(session, 1))
    generate(session, token_ids[:5], 2)
    cmp_reset(session)
    with pytest.raises(EngineError, match="call cmp_prefill first"):
        next(cmp_decode(session, 1))


def test_metrics_are_of_the_last_request(tiny: Any, load: Any, token_ids: list[int]) -> None:
    session = load(tiny(), context_tokens=128)
    fresh = cmp_metrics(session)
    assert set(fresh) == {"weights_bytes", "library_weights_bytes", "kv_cache_bytes", "allocated_bytes"}
    assert fresh["kv_cache_bytes"] == fresh["library_weights_bytes"] == 0
    cmp_prefill(session, token_ids[:20], 6)
    assert set(cmp_metrics(session)) == set(fresh) | {"device_prefill_seconds"}
    list(cmp_decode(session, 5))
    found = cmp_metrics(session)
    # 25 tokens are in the cache: the last id is never run. 2 layers, 2 heads, K and V, 16 float32 values.
    assert found["kv_cache_bytes"] == 25 * 2 * 2 * 2 * 16 * 4
    assert found["device_prefill_seconds"] > 0
    assert found["device_decode_seconds"] > 0
    assert found["allocated_bytes"] > found["weights_bytes"] + session.cache.nbytes
    cmp_reset(session)
    assert cmp_metrics(session) == fresh


def test_half_the_cache_is_what_f16_is_for(tiny: Any, load: Any, token_ids: list[int]) -> None:
    sizes = {}
    for kv in ("f16", "f32"):
        session = load(tiny(), numerics="default", extra={"kv": kv})
        generate(session, token_ids[:20], 1)
        sizes[kv] = cmp_metrics(session)["kv_cache_bytes"]
    assert sizes["f32"] == 2 * sizes["f16"]


def test_two_sessions_one_after_the_other(tiny: Any, load: Any, token_ids: list[int]) -> None:
    first = load(tiny())
    expected = generate(first, token_ids[:20], 8)
    cmp_unload(first)
    cmp_unload(first)
    with pytest.raises(EngineError, match="closed"):
        cmp_prefill(first, token_ids[:20], 8)
    assert generate(load(tiny()), token_ids[:20], 8) == expected


@pytest.mark.parametrize("extra", [{}, {"prefill_chunk": "16"}])
def test_components_are_measured_and_requests_go_on_as_before(
    extra: dict[str, str], tiny: Any, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny(), extra=extra)
    before = generate(session, token_ids[:40], 6)
    cmp_reset(session)
    found = phases(session, token_ids[:40], 3)
    chunks = 3 if extra else 1
    runs = {(phase.part, phase.name): phase.count for phase in found}
    assert {name for part, name in runs if part == "decode"} == {
        "qkv", "attention", "output", "ffn", "lm_head", "next",
    }  # fmt: skip
    assert runs["decode", "qkv"] == runs["decode", "ffn"] == 2 * 3
    assert runs["decode", "lm_head"] == 3
    assert runs["prefill", "embedding"] == chunks
    assert runs["prefill", "attention"] == runs["prefill", "ffn"] == 2 * chunks
    assert runs["prefill", "begin"] == 1
    assert all(phase.seconds > 0 for phase in found)
    assert {phase.name for phase in found} <= set(COMPONENTS)
    read = {phase.name: phase.nbytes for phase in found if phase.part == "decode"}
    assert read["qkv"] + read["output"] + read["ffn"] + read["lm_head"] == 3 * session.step.nbytes
    # Positions 40, 41 and 42, each with all before it, in two layers.
    assert read["attention"] == (41 + 42 + 43) * session.cache.token_bytes
    assert len(table(found).splitlines()) == 1 + len(found)
    assert generate(session, token_ids[:40], 6) == before


LOST = """
import sys
from enginecmp import LoadOptions, ModelInfo
import msgspec
from enginecmp_custom_cuda import cmp_decode, cmp_load, cmp_metrics, cmp_prefill, cmp_reset, cmp_unload
import custom_cuda_controls as emulated

def attempt(act):
    try:
        print("no error", act())
    except Exception as error:
        print(type(error).__name__, error)

model = msgspec.json.decode(sys.argv[1], type=ModelInfo)
session = cmp_load(model, LoadOptions(device="emulated", context_tokens=64, extra={"decoder": sys.argv[2]}))
cmp_prefill(session, [1, 2, 3], 20)
ids = cmp_decode(session, 19)
next(ids)
emulated.fail(sys.argv[3], 719, after=1)
attempt(lambda: list(ids))
emulated.fail(None)
attempt(lambda: cmp_reset(session))
attempt(lambda: cmp_prefill(session, [1, 2, 3], 2))
attempt(lambda: cmp_metrics(session))
cmp_unload(session)
print("unloaded")
"""


@pytest.mark.parametrize(("decoder", "call"), [("graph", "cuGraphLaunch"), ("launches", "cuLaunchKernelEx")])
def test_a_device_that_is_lost_in_mid_run_says_so_and_hangs_nobody(
    decoder: str, call: str, tiny: Any, emulated: Any
) -> None:
    import msgspec

    arguments = [msgspec.json.encode(tiny()).decode(), decoder, call]
    result = subprocess.run(
        [sys.executable, "-c", LOST, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *lines, last = result.stdout.splitlines()
    assert (result.returncode, last) == (0, "unloaded"), result.stderr
    assert len(lines) == 4
    assert all("LostDeviceError custom_cuda:" in line and "CUDA_ERROR_LAUNCH_FAILED" in line for line in lines)
    assert all(line.endswith("the device is lost to this process, start a new one") for line in lines)
