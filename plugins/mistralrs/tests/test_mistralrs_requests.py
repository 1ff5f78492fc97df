"""Requests: token counts, raw prompts, refusals, and what an interrupted request leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import unchanged

from enginecmp import NO_ID, ModelInfo
from enginecmp.models.synth_vocab import END, byte_alphabet

pytestmark = unchanged.left_out_with("plugins/mistralrs")

Run = Callable[..., Any]
Tiny = Callable[..., ModelInfo]


@pytest.fixture(scope="session")
def text_of(vocabulary: list[str]) -> Callable[[list[int]], str]:
    """Return the function that decodes ids: bytes in the GPT-2 alphabet, special tokens silent."""
    byte_of = {char: byte for byte, char in enumerate(byte_alphabet())}

    def decode(ids: list[int]) -> str:
        tokens = [vocabulary[token] for token in ids if vocabulary[token] != END]
        return bytes(byte_of[char] for char in "".join(tokens)).decode("utf-8", "replace")

    return decode


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_the_streamed_text_is_llama_cpps_greedy_continuation_of_the_very_ids(
    scenario: Run, tiny: Tiny, prompt: list[int], text_of: Run, architecture: str
) -> None:
    wanted = scenario("oracle_greedy", model=tiny(architecture), token_ids=prompt, output_tokens=24)
    found = scenario("request", model=tiny(architecture), token_ids=prompt, output_tokens=24)
    # The engine trims the white space that an answer opens with.
    assert found["text"].lstrip() == text_of(wanted).lstrip()
    assert set(found["ids"]) == {NO_ID}
    assert found["total"] == 23


def test_tokens_are_counted_by_usage_where_chunks_are_fewer(scenario: Run, tiny: Tiny, prompt: list[int]) -> None:
    found = scenario("request", model=tiny("phi3"), token_ids=prompt, output_tokens=40)
    # Random weights write parts of characters: several tokens to a chunk.
    assert len(found["ids"]) < 40
    assert found["total"] == 39
    assert found["metrics"]["stream_chunk_count"] == len(found["ids"])
    assert set(found["metrics"]) == {"engine_prefill_seconds", "engine_decode_seconds", "stream_chunk_count"}


def test_end_of_sequence_does_not_end_a_request(scenario: Run, tiny: Tiny, variant: Run, prompt: list[int]) -> None:
    third = scenario("oracle_greedy", model=tiny(), token_ids=prompt, output_tokens=3)[-1]
    model = variant(tiny(), {"tokenizer.ggml.eos_token_id": ("UINT32", third)})
    assert scenario("request", model=model, token_ids=prompt, output_tokens=12)["total"] == 11


def test_one_token_is_prefill_only(scenario: Run, tiny: Tiny, prompt: list[int]) -> None:
    found = scenario("request", model=tiny(), token_ids=prompt, output_tokens=1)
    assert found["ids"] == [NO_ID]
    assert found["metrics"]["stream_chunk_count"] == 1


def test_requests_on_one_session_do_not_see_each_other(
    scenario: Run, tiny: Tiny, prompt: list[int], ids_of: Run
) -> None:
    other = ids_of("Ġthe", "Ġ", "r", "i", "v", "er")
    alone = scenario("request", model=tiny(), token_ids=prompt, output_tokens=16)
    found = scenario(
        "several",
        model=tiny(),
        requests=[[prompt, 16, 0], [other, 16, 0], [prompt, 16, 0], [prompt, 300, 3], [prompt, 16, 0]],
    )
    texts = [each["text"] for each in found]
    assert texts[0] == texts[2] == texts[4] == alone["text"]
    assert texts[1] != alone["text"]
    assert [each["total"] for each in found] == [15, 15, 15, None, 15]


def test_a_prompt_that_does_not_read_back_is_refused_and_the_engine_lives_on(
    scenario: Run, tiny: Tiny, ids_of: Run
) -> None:
    # "the" as three single bytes: the tokenizer would have merged h and e.
    ids = ids_of("Ġof", "Ġthe", "Ġ", "r", "t", "h", "e")
    found = scenario("refused_request", model=tiny(), token_ids=ids, output_tokens=4)
    assert found["error"][0] == "RoundTripError"
    assert "this prompt of 7 tokens reads back as 6" in found["error"][1]
    assert f"first difference at position 5, expected {ids[5]}, got {ids_of('he')[0]}" in found["error"][1]
    assert found["after"] == 3


def test_part_of_a_character_is_refused(scenario: Run, tiny: Tiny, ids_of: Run) -> None:
    # Ã stands for byte 0xC3, which opens a two-byte character.
    found = scenario("refused_request", model=tiny(), token_ids=ids_of("t", "Ã"), output_tokens=4)
    assert found["error"][0] == "RoundTripError"
    assert "at position 1" in found["error"][1]


@pytest.mark.parametrize("outside", [-1, 314])
def test_an_id_outside_the_vocabulary_is_named(scenario: Run, tiny: Tiny, prompt: list[int], outside: int) -> None:
    found = scenario("refused_request", model=tiny(), token_ids=[*prompt, outside], output_tokens=4)
    assert found["error"][0] == "EngineError"
    assert f"expected ids in [0, 314), got {outside} at position 12" in found["error"][1]


def test_the_context_asked_for_is_held_to_the_token(scenario: Run, tiny: Tiny, prompt: list[int]) -> None:
    # 12 + 5 - 1 = 16: the last token is never fed back.
    fits = scenario("request", model=tiny(), token_ids=prompt, output_tokens=5, context_tokens=16)
    assert fits["total"] == 4
    found = scenario("refused_request", model=tiny(), token_ids=prompt, output_tokens=6, context_tokens=16)
    assert found["error"][0] == "ContextOverflow"
    assert "12 prompt and 6 output tokens need 17 places, the context holds 16" in found["error"][1]


def test_the_models_own_context_is_reached_and_not_passed(scenario: Run, tiny: Tiny, prompt: list[int]) -> None:
    fits = scenario("request", model=tiny(), token_ids=prompt, output_tokens=501, context_tokens=4096)
    assert fits["total"] == 500
    found = scenario("refused_request", model=tiny(), token_ids=prompt, output_tokens=502, context_tokens=4096)
    assert "the context holds 512" in found["error"][1]


def test_an_engine_that_stops_short_is_an_error(scenario: Run, tiny: Tiny, prompt: list[int]) -> None:
    kind, message = scenario("cut_short", model=tiny(), token_ids=prompt, output_tokens=600)
    assert kind == "EngineError"
    assert "expected 600 tokens, the engine generated 50" in message


def test_another_prompt_length_in_the_engines_count_is_a_round_trip_error(
    scenario: Run, tiny: Tiny, prompt: list[int]
) -> None:
    kind, message = scenario("counted_otherwise", model=tiny(), token_ids=prompt)
    assert kind == "RoundTripError"
    assert "the prompt has 11 tokens, the engine counted 12" in message


def test_hooks_in_the_wrong_order_say_what_to_call(scenario: Run, tiny: Tiny, prompt: list[int]) -> None:
    found = scenario("misuse", model=tiny(), token_ids=prompt)
    assert {kind for kind, _ in found.values()} == {"EngineError"}
    assert "call cmp_prefill with output_tokens > 1" in found["decode_first"][1]
    assert "told 4 tokens in all, cmp_decode asks for 7 more; ask for 3" in found["wrong_count"][1]
    assert "call cmp_reset first" in found["no_reset"][1]
    assert "cmp_reset ended it" in found["resumed"][1]
    assert "call cmp_prefill with output_tokens > 1" in found["nothing_left"][1]


def test_a_native_panic_is_one_line_and_the_engine_lives_on(scenario: Run, tiny: Tiny) -> None:
    found = scenario("panic", model=tiny())
    assert found["error"] == ["EngineError", "mistralrs: could not run the prompt: panicked: no entry found for key"]
    assert found["after"] == 3


@pytest.mark.model
def test_an_interrupted_request_is_cancelled_not_waited_for(scenario: Run) -> None:
    from enginecmp.models.store import resolve

    model = resolve("smollm2-135m-instruct:q8_0", fetch=True)
    prompt = [504, 3575, 282, 4649, 314]  # "The capital of France is"
    # 8000 tokens take minutes; the scenario's process has two at most.
    found = scenario(
        "several", model=model, requests=[[prompt, 8, 0], [prompt, 8000, 3], [prompt, 8, 0]], context_tokens=8192
    )
    assert found[0]["text"] == found[2]["text"]
    assert found[0]["text"].startswith("Paris")
    assert found[2]["total"] == 7
