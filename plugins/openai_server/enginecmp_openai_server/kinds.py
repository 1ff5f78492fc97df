"""What each kind of server needs to be told, and how to tell which one it is.

Unknown fields are refused by some servers and ignored by others, so nothing beyond the API's own fields is sent to a
server whose kind is not known. Every one of these fields sees to it that all engines get the same work: exactly
the tokens asked for, the most likely one each time, nothing left over from the last request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from enginecmp import Decoding, EngineError

_NO_FIELDS: Mapping[str, Any] = {}


class Tokenize(NamedTuple):
    """A server's own tokenizer, by which a text prompt is proven.

    Attributes:
        path: endpoint, under the server's root.
        fields: (text, model) → body.
        ids: answer → ids.
    """

    path: str
    fields: Callable[[str, str], Mapping[str, Any]]
    ids: Callable[[Any], list[int]]


def response_format(schema: Any) -> Mapping[str, Any]:
    """Return the field of OpenAI's API that makes an answer follow a JSON Schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def _grammar(schema: Any) -> Mapping[str, Any]:
    """Return llama-cpp-python's field for it: its server takes a grammar where it takes no schema.

    Raises:
        EngineError: the library that makes the grammar is not here, or cannot make one.
    """
    try:
        from llama_cpp.llama_grammar import json_schema_to_gbnf
    except ImportError as error:
        msg = (
            "openai_server: expected llama-cpp-python here to make its server's grammar of a JSON Schema, got none; "
            "pip install llama-cpp-python"
        )
        raise EngineError(msg) from error
    try:
        return {"grammar": json_schema_to_gbnf(json.dumps(schema))}
    except Exception as error:
        msg = (
            f"openai_server: expected a JSON Schema that llama.cpp makes a grammar of, got {type(error).__name__}: "
            f"{str(error)[:200]}; use simpler keywords"
        )
        raise EngineError(msg) from error


class Kind(NamedTuple):
    """One kind of server.

    Attributes:
        title: its name.
        fields: sent with every request.
        least_field: sent with the number of tokens asked for; empty where there is none.
        salt_field: sent with a random text, so that no prefix is found in a cache; empty where there is none.
        control_bias: end tokens are kept out by a logit bias, because nothing else does.
        flush: endpoint under the root that empties the prefix cache between requests; empty where there is none.
        alone: it cuts an answer short when another request comes, or serves them one after the other.
        evict: its cache holds the last prompt only, and another prompt evicts it.
        tokenize: its own tokenizer, where it offers one.
        score: how its whole distributions are had; empty where they are not.
        sampling: decoding → what it is told beside temperature, top_p and seed, so that nothing else is cut off; None
            where only those are known.
        temperature_last: it cuts by top-p before it divides by the temperature.
        stop_field: sent with the ids that end a request, where it would know others; empty where there is none.
        schema: JSON Schema → how it is told that the answer follows it; OpenAI's own field where no other is known.
        version: endpoint under the root that tells its version, and the keys to it; empty where none does.
    """

    title: str
    fields: Mapping[str, Any] = _NO_FIELDS
    least_field: str = ""
    salt_field: str = ""
    control_bias: bool = False
    flush: str = ""
    alone: bool = False
    evict: bool = False
    tokenize: Tokenize | None = None
    score: str = ""
    sampling: Callable[[Decoding], Mapping[str, Any]] | None = None
    temperature_last: bool = False
    stop_field: str = ""
    schema: Callable[[Any], Mapping[str, Any]] = response_format
    version: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "vllm": Kind(
        title="vLLM",
        # It takes the model's own sampling defaults otherwise, a repetition penalty among them.
        fields={"ignore_eos": True, "repetition_penalty": 1.0, "return_token_ids": True},
        least_field="min_tokens",
        salt_field="cache_salt",
        tokenize=Tokenize(
            "/tokenize", lambda text, model: {"model": model, "prompt": text}, lambda answer: answer["tokens"]
        ),
        score="prompt_logprobs",
        sampling=lambda decoding: {"top_k": decoding.top_k or -1, "min_p": 0.0},
        stop_field="stop_token_ids",
        version=("/version", "version"),
    ),
    "sglang": Kind(
        title="SGLang",
        fields={"ignore_eos": True, "repetition_penalty": 1.0},
        least_field="min_tokens",
        flush="/flush_cache",
        sampling=lambda decoding: {"top_k": decoding.top_k or -1, "min_p": 0.0},
        stop_field="stop_token_ids",
        score="generate",
        version=("/get_server_info", "version"),
    ),
    "tensorrt_llm": Kind(
        title="TensorRT-LLM",
        fields={"ignore_eos": True, "repetition_penalty": 1.0},
        least_field="min_tokens",
        version=("/version", "version"),
    ),
    "tgi": Kind(
        title="Text Generation Inference",
        version=("/info", "version"),
        tokenize=Tokenize(
            "/tokenize", lambda text, _: {"inputs": text}, lambda answer: [token["id"] for token in answer]
        ),
    ),
    "llama_server": Kind(
        title="llama-server",
        fields={"ignore_eos": True, "cache_prompt": False, "repeat_penalty": 1.0},
        tokenize=Tokenize(
            "/tokenize",
            lambda text, _: {"content": text, "add_special": True, "parse_special": True},
            lambda answer: answer["tokens"],
        ),
        score="completion",
        # Its own order puts the temperature last, and its own defaults cut off more.
        sampling=lambda decoding: {
            "top_k": decoding.top_k,
            "min_p": 0.0,
            "samplers": ["temperature", "top_k", "top_p"],
        },
        schema=lambda schema: {"json_schema": schema},
        version=("/props", "build_info"),
    ),
    "llama_cpp_python": Kind(
        title="llama-cpp-python",
        # Its own default is 1.1, which is another choice than the most likely token.
        fields={"repeat_penalty": 1.0},
        control_bias=True,
        sampling=lambda decoding: {"top_k": decoding.top_k, "min_p": 0.0},
        temperature_last=True,
        schema=_grammar,
        alone=True,
        evict=True,
        version=("/openapi.json", "info", "version"),
        tokenize=Tokenize("/extras/tokenize", lambda text, _: {"input": text}, lambda answer: answer["tokens"]),
    ),
    "mistralrs": Kind(title="mistral.rs"),
    "ollama": Kind(title="Ollama", version=("/api/version", "version")),
    "openai": Kind(title="an OpenAI-compatible server"),
}
"""The kinds that are known, by the value of the option `server`."""

_OWNERS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "tensorrt_llm": "tensorrt_llm",
    "llamacpp": "llama_server",
    "local": "mistralrs",
    "library": "ollama",
}


def recognize(model: Mapping[str, Any], headers: Mapping[bytes, bytes], ask: Callable[[str], Any]) -> str:
    """Return the kind of a server.

    Args:
        model: the served model's entry in /models.
        headers: of that answer.
        ask: path under the root → decoded answer, None where there is none.

    Returns:
        A key of `KINDS`; "openai" where nothing tells.
    """
    if headers.get(b"server", b"").startswith(b"llama.cpp"):
        return "llama_server"
    owner = str(model.get("owned_by", ""))
    if owner in _OWNERS:
        return _OWNERS[owner]
    described = ask("/openapi.json")
    info = described.get("info") if isinstance(described, dict) else None
    title = str(info.get("title", "")) if isinstance(info, dict) else ""
    if "llama.cpp Python" in title:
        return "llama_cpp_python"
    told = ask("/info")
    if (
        isinstance(told, dict)
        and "model_id" in told
        and str(told.get("router", "text-generation")).startswith("text-gen")
    ):
        return "tgi"
    return "openai"
