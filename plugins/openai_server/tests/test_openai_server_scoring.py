"""Whole distributions by token id, in the three forms in which servers give them, and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import EngineError, ModelInfo

IDS = [30, 31, 32]


@pytest.fixture
def rows(tiny: ModelInfo) -> NDArray[np.float64]:
    """Log-probabilities that a server has: after every prefix of IDS, and after one token more."""
    logits = np.random.default_rng(0).normal(size=(len(IDS) + 1, tiny.vocabulary))
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def scored(driver: Any) -> Any:
    return driver.hook.cmp_score(session=driver.session, token_ids=IDS)


def shuffled(row: NDArray[np.float64]) -> list[int]:
    """Return ids most likely first, as servers list them."""
    return [int(token) for token in np.argsort(-row)]


def llama_server(stub: Any, rows: NDArray[np.float64], **changes: Any) -> None:
    """As llama-server answers /completion: one token after the prompt, its alternatives by id."""

    def completion(talk: Any, body: dict[str, Any]) -> None:
        assert body["n_probs"] == rows.shape[1]
        assert body["logit_bias"][0][0] == 97
        row = rows[len(body["prompt"]) - 1]
        entries = [{"id": token, "token": "", "bytes": [], "logprob": row[token]} for token in shuffled(row)]
        talk.reply(200, {"completion_probabilities": [{"top_logprobs": entries}]})

    stub.models = [{"id": "m", "owned_by": "llamacpp"}]
    stub.routes |= {"/completion": completion, "/tokenize": {"tokens": [1, 97]}} | changes


def vllm(stub: Any, rows: NDArray[np.float64]) -> None:
    """As vLLM answers `prompt_logprobs`: null first, then for every place the tokens that could have stood there."""

    def completions(talk: Any, body: dict[str, Any]) -> None:
        if "prompt_logprobs" not in body:
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
            if body["stream"]:
                talk.stub.always(talk, body)
            else:
                talk.reply(200, {"usage": usage})
            return
        places = [
            {str(token): {"logprob": row[token], "rank": rank + 1} for rank, token in enumerate(shuffled(row))}
            for row in rows[: len(body["prompt"]) - 1]
        ]
        talk.reply(200, {"choices": [{"prompt_logprobs": [None, *places]}]})

    stub.models = [{"id": "m", "owned_by": "vllm"}]
    stub.routes["/v1/completions"] = completions


def sglang(stub: Any, rows: NDArray[np.float64]) -> None:
    """As SGLang answers /generate: [log-probability, id, text] for every place of the prompt."""

    def generate(talk: Any, body: dict[str, Any]) -> None:
        places = [[[row[token], token, None] for token in shuffled(row)] for row in rows[: len(body["input_ids"]) - 1]]
        talk.reply(200, {"text": "x", "meta_info": {"input_top_logprobs": [None, *places]}})

    stub.models = [{"id": "m", "owned_by": "sglang"}]
    stub.routes["/generate"] = generate


@pytest.mark.parametrize("server", [llama_server, vllm, sglang])
def test_rows_are_those_of_the_server_by_id(stub: Any, drive: Any, rows: NDArray[np.float64], server: Any) -> None:
    server(stub, rows)
    found = scored(drive())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rows[: len(IDS)], rtol=1e-6)


def test_a_server_that_names_the_most_likely_only_is_refused(
    stub: Any, drive: Any, rows: NDArray[np.float64], tiny: ModelInfo
) -> None:
    def completion(talk: Any, body: dict[str, Any]) -> None:
        entries = [{"id": token, "logprob": rows[0][token]} for token in shuffled(rows[0])[:20]]
        talk.reply(200, {"completion_probabilities": [{"top_logprobs": entries}]})

    llama_server(stub, rows, **{"/completion": completion})
    with pytest.raises(EngineError, match=f"of all {tiny.vocabulary} token ids at position 0, llama-server named 20"):
        scored(drive())


def test_a_row_that_is_no_distribution_is_refused(stub: Any, drive: Any, rows: NDArray[np.float64]) -> None:
    llama_server(stub, rows + 0.1)
    with pytest.raises(EngineError, match=r"sum to 1 at position 0, they sum to 1\.1"):
        scored(drive())


def test_an_unknown_server_says_why_nothing_can_be_proven(stub: Any, drive: Any) -> None:
    with pytest.raises(EngineError, match=r"an OpenAI-compatible server names the most likely ones only, by text"):
        scored(drive())
