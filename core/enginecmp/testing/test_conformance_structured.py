"""What an engine that offers output under a JSON Schema must do: follow it, end there, be free without one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginecmp.launch.launch import Launch
from enginecmp.models.end_tokens import end_tokens
from enginecmp.models.tokenizer import load_tokenizer
from enginecmp.plugins.plugin import Plugin
from enginecmp.scenarios.json_schema import follows_schema
from enginecmp.testing.conftest import DEADLINES, Prompts
from enginecmp.testing.test_conformance_decoding import require
from enginecmp.types import GREEDY, NO_ID, Decoding, ModelInfo

MOST = 64

SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
        "required": ["ok", "size"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
}


class Said:
    """Runs requests and reads what they say.

    Args:
        launch: with the model loaded.
        model: whose tokenizer and end tokens count.
    """

    def __init__(self, launch: Launch, model: ModelInfo) -> None:
        self._launch, self._tokenizer = launch, load_tokenizer(model.path)
        self.end_ids = end_tokens(model.path)

    def __call__(self, prompt: tuple[int, ...], decoding: Decoding, tokens: int = MOST) -> tuple[str, bool]:
        """Return the text of an answer without the token that ended it, and whether it ended by itself."""
        answer = self._launch.request(prompt, tokens, DEADLINES, decoding)
        assert answer["error"] is None, answer["error"]
        ids = answer["ids"]
        if NO_ID in ids:
            return answer.get("text", ""), answer["output_tokens"] < tokens
        ended = ids[-1] in decoding.end_ids
        return self._tokenizer.decode(ids[:-1] if ended else ids), ended


@pytest.fixture
def said(launch: Launch, plugin: Plugin, model: ModelInfo) -> Said:
    require(plugin, "json_schema")
    found = Said(launch, model)
    assert found.end_ids, "the model has no end-of-sequence token"
    return found


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_greedy_output_follows_the_schema_and_ends(said: Said, prompts: Prompts, schema: dict[str, Any]) -> None:
    decoding = Decoding(end_ids=said.end_ids, json_schema=json.dumps(schema))
    for prompt in prompts[:2]:
        text, ended = said(prompt, decoding)
        assert ended, f"cut off after {MOST} tokens: {text!r}"
        assert follows_schema(text, decoding.json_schema), text


def test_sampled_output_follows_the_schema_whatever_is_drawn(said: Said, plugin: Plugin, prompts: Prompts) -> None:
    require(plugin, "sampling")
    texts = set()
    for seed in range(12):
        decoding = Decoding(temperature=1.0, seed=seed, end_ids=said.end_ids, json_schema=json.dumps(SCHEMAS["object"]))
        text, ended = said(prompts[0], decoding)
        assert ended, f"cut off after {MOST} tokens: {text!r}"
        assert follows_schema(text, decoding.json_schema), text
        texts.add(text)
    assert len(texts) > 1, "twelve draws and one text"


def test_an_answer_that_is_cut_off_is_the_beginning_of_the_whole_one(said: Said, prompts: Prompts) -> None:
    decoding = Decoding(end_ids=said.end_ids, json_schema=json.dumps(SCHEMAS["object"]))
    whole, _ = said(prompts[0], decoding)
    text, ended = said(prompts[0], decoding, 3)
    assert not ended
    assert whole.startswith(text)
    assert not follows_schema(text, decoding.json_schema)


def test_without_a_schema_nothing_is_forced(launch: Launch, said: Said, prompts: Prompts) -> None:
    before = launch.request(prompts[0], 12, DEADLINES, GREEDY)
    said(prompts[0], Decoding(end_ids=said.end_ids, json_schema=json.dumps(SCHEMAS["object"])))
    after = launch.request(prompts[0], 12, DEADLINES, GREEDY)
    assert after["error"] is None
    assert (after["ids"], after["output_tokens"]) == (before["ids"], before["output_tokens"])
    assert after["output_tokens"] == 12
    text, _ = said(prompts[0], Decoding(end_ids=said.end_ids))
    assert not follows_schema(text, json.dumps(SCHEMAS["object"])), "it follows the schema by itself: proves nothing"
