"""Many sequences at once, shared beginnings, contexts that are full: against single requests, token for token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from enginecmp import ContextOverflow, ModelInfo, Request
from enginecmp.testing.tiny_models import TOKEN_IDS
from enginecmp_custom_cpu import cmp_metrics, cmp_reset, cmp_score, cmp_step, cmp_submit

Tiny = Callable[..., ModelInfo]
PROMPTS = [TOKEN_IDS[:5], TOKEN_IDS[5:50], TOKEN_IDS, TOKEN_IDS[:33], TOKEN_IDS[10:12], TOKEN_IDS[::-1]]


@pytest.mark.parametrize("extra", [{}, {"prompt_chunk": "8"}, {"kv_type": "q8_0"}, {"sliding_window": "12"}])
@pytest.mark.parametrize(("architecture", "kind"), [("llama", "Q8_0"), ("phi3", "Q4_0"), ("gpt2", "F32")])
def test_batches_give_the_ids_of_single_requests(
    architecture: str, kind: str, extra: dict[str, str], tiny: Tiny, load: Any, generate: Any, batch: Any
) -> None:
    session = load(tiny(architecture, kind), numerics="default", max_sequences=4, extra=extra)
    single = [generate(session, prompt, 12) for prompt in PROMPTS]
    for every in (0, 1, 5):
        assert batch(session, PROMPTS, 12, every) == single


def test_a_long_prompt_does_not_stop_those_that_generate(tiny: Tiny, load: Any) -> None:
    session = load(tiny(), max_sequences=2, extra={"prompt_chunk": "8"})
    cmp_submit(session, Request(id="first", token_ids=TOKEN_IDS[:4], output_tokens=40))
    assert [identity for identity, _ in cmp_step(session)] == ["first"]
    cmp_submit(session, Request(id="long", token_ids=TOKEN_IDS, output_tokens=2))
    # Half of 8 rows beside it: its own token, and three of the prompt's 60.
    alone = 0
    while [identity for identity, _ in cmp_step(session)] == ["first"]:
        alone += 1
    assert alone == 19


def test_no_more_than_fit_are_taken_and_one_too_long_is_refused(tiny: Tiny, load: Any) -> None:
    session = load(tiny(), max_sequences=2, context_tokens=64)
    requests = [Request(id=str(n), token_ids=TOKEN_IDS[:3], output_tokens=2) for n in range(3)]
    assert [cmp_submit(session, request) for request in requests] == [True, True, False]
    with pytest.raises(ContextOverflow, match="holds 64"):
        cmp_submit(session, Request(id="x", token_ids=TOKEN_IDS, output_tokens=6))
    assert {identity for identity, _ in cmp_step(session)} == {"0", "1"}
    assert not cmp_submit(session, requests[2])
    cmp_step(session)
    assert cmp_submit(session, requests[2])
    cmp_reset(session)
    assert cmp_step(session) == []


def test_prompts_that_begin_alike_share_pages_and_keep_their_ids(
    tiny: Tiny, load: Any, generate: Any, batch: Any
) -> None:
    long = TOKEN_IDS + TOKEN_IDS[:20]  # two whole pages and a half
    prompts = [long, (*long[:64], 7, 8, 9), long, long[:64], (*long[:40], 1), (3, *long)]
    model = tiny("llama", "Q8_0")
    plain = load(model, numerics="default", max_sequences=3)
    wanted = [generate(plain, prompt, 40) for prompt in prompts]
    session = load(model, numerics="default", max_sequences=3, extra={"prefix_cache": "on"})
    hits = []
    for prompt, ids in zip(prompts, wanted, strict=True):
        assert generate(session, prompt, 40) == ids
        hits.append(cmp_metrics(session)["prefix_cache_hit_tokens"])
    # Of a prompt that is all there, the last page is computed again: its last token must be.
    assert hits == [0, 64, 64, 32, 32, 0]
    assert batch(session, prompts, 40) == wanted
    # What was generated is shared as well.
    generate(session, [*long, *wanted[0][:39]], 2)
    assert cmp_metrics(session)["prefix_cache_hit_tokens"] == 96
    assert "prefix_cache_hit_tokens" not in cmp_metrics(plain)


def test_more_prefixes_than_there_is_room_for_are_forgotten(tiny: Tiny, load: Any, generate: Any) -> None:
    session = load(tiny(), context_tokens=128, extra={"prefix_cache": "on"})
    plain = load(tiny(), context_tokens=128)
    prompts = [tuple((id + shift) % 250 for id in TOKEN_IDS + TOKEN_IDS) for shift in range(6)]
    for prompt in prompts + prompts[::-1]:
        assert generate(session, prompt, 5) == generate(plain, prompt, 5)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("prefix_cache", ["off", "on"])
def test_a_full_context_shifts_and_goes_on(
    kind: str, prefix_cache: str, tiny: Tiny, load: Any, generate: Any, batch: Any
) -> None:
    model = tiny("llama")
    extra = {"kv_type": kind, "context_shift": "on", "prefix_cache": prefix_cache}
    session = load(model, numerics="default", context_tokens=128, max_sequences=2, extra=extra)
    wide = load(model, numerics="default", context_tokens=512, max_sequences=2, extra={"kv_type": kind})
    ids = generate(session, TOKEN_IDS, 300)
    # Until the context is full nothing is different; the token after 128 positions is still computed from all of them.
    assert ids[:69] == generate(wide, TOKEN_IDS, 300)[:69]
    assert generate(session, TOKEN_IDS, 300) == ids
    assert batch(session, [TOKEN_IDS, TOKEN_IDS[:7]], 200)[0] == ids[:200]
    assert cmp_score(session, TOKEN_IDS).shape[0] == len(TOKEN_IDS)


def test_what_is_left_after_a_shift_predicts_as_if_it_were_all(tiny: Tiny, load: Any, generate: Any) -> None:
    """In a model of one layer keys and values are of their own tokens alone, so what was dropped leaves no trace."""
    model = tiny("llama", layers=1)
    session = load(model, context_tokens=128, extra={"context_shift": "on", "kv_type": "f32"})
    ids = [*TOKEN_IDS, *generate(session, TOKEN_IDS, 140)]
    # 128 positions are full: the first page stays, (4 - 1) // 2 = 1 page goes.
    kept = [*ids[:32], *ids[64:129]]
    rows = cmp_score(load(model), kept)
    assert rows[-1].argmax() == ids[129]
