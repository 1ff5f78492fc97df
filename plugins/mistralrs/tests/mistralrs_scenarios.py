"""What the tests do with the real engine, each scenario in a process of its own.

Native libraries read their environment once per process, so a test runs `python mistralrs_scenarios.py NAME
ARGUMENTS.json RESULT.json` through the `scenario` fixture. The engine is driven through its hooks, as the host's
worker does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from enginecmp import EngineError, LoadOptions, ModelInfo
from enginecmp.plugins.manager import load_object, manager_with

HOOK = manager_with(load_object("enginecmp_mistralrs")).hook


def load(model: ModelInfo, **options: Any) -> Any:
    """Return a session; one thread and exact numerics unless told otherwise."""
    wanted = {"threads": 1, "context_tokens": 512, "numerics": "exact"} | options
    return HOOK.cmp_load(model=model, options=msgspec.convert(wanted, LoadOptions))


def error_of(call: Callable[[], Any]) -> list[str]:
    """Return class name and message of the error that a call must raise."""
    try:
        call()
    except EngineError as error:
        return [type(error).__name__, str(error)]
    msg = "expected an error, got none"
    raise AssertionError(msg)


def generate(session: Any, token_ids: Sequence[int], output_tokens: int, stop_after: int = 0) -> dict[str, Any]:
    """Run one request; `stop_after` > 0 leaves it after so many chunks, as a caller that lost interest."""
    HOOK.cmp_reset(session=session)
    HOOK.cmp_prepare(session=session, token_ids=token_ids, output_tokens=output_tokens)
    ids = [HOOK.cmp_prefill(session=session, token_ids=token_ids, output_tokens=output_tokens)]
    text = [session.active.last.choices[0].delta.content]
    total = None
    if output_tokens > 1:
        tokens = HOOK.cmp_decode(session=session, n_tokens=output_tokens - 1)
        while not stop_after or len(ids) < stop_after:
            try:
                ids.append(next(tokens))
            except StopIteration as stop:
                total = stop.value
                break
            text.append(session.active.last.choices[0].delta.content)
    metrics = dict(HOOK.cmp_metrics(session=session))
    return {"ids": ids, "text": "".join(text), "total": total, "metrics": metrics}


def request(model: ModelInfo, token_ids: list[int], output_tokens: int, **options: Any) -> Any:
    """One request."""
    return generate(load(model, **options), token_ids, output_tokens)


def several(model: ModelInfo, requests: list[list[Any]], **options: Any) -> Any:
    """Several requests on one session: [token_ids, output_tokens, stop_after]."""
    session = load(model, **options)
    return [generate(session, *each) for each in requests]


def refused_request(model: ModelInfo, token_ids: list[int], output_tokens: int, **options: Any) -> Any:
    """A request that must fail, then an ordinary one on the same session."""
    session = load(model, **options)
    error = error_of(lambda: generate(session, token_ids, output_tokens))
    return {"error": error, "after": generate(session, tokenize(session, "the end"), 4)["total"]}


def refused_score(model: ModelInfo, token_ids: list[int], **options: Any) -> Any:
    """A prompt that cannot be scored."""
    session = load(model, **options)
    return error_of(lambda: HOOK.cmp_score(session=session, token_ids=token_ids))


def refused_load(model: ModelInfo, **options: Any) -> Any:
    """A model that must be refused: class and message, whatever the class."""
    try:
        load(model, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def architectures(models: list[dict[str, Any]]) -> Any:
    """What the wheel says of each file, by the architecture that its header claims; "" when it loads."""
    said = {}
    for entry in models:
        model = msgspec.convert(entry, ModelInfo)
        found = refused_load(model)
        said[model.architecture] = found[1] if found else ""
    return said


def quantizations(models: list[dict[str, Any]], token_ids: list[int]) -> Any:
    """Tokens that one request got after the first, by quantization of the file."""
    found = {}
    for entry in models:
        model = msgspec.convert(entry, ModelInfo)
        found[model.quantization] = generate(load(model, numerics="default"), token_ids, 6)["total"]
    return found


def scores(model: ModelInfo, out: str, token_ids: list[int] | None = None, text: str = "", **options: Any) -> Any:
    """Save teacher-forced rows to `out`; ids are returned, for the oracle."""
    session = load(model, **options)
    ids = token_ids or tokenize(session, text)
    HOOK.cmp_reset(session=session)
    np.save(out, HOOK.cmp_score(session=session, token_ids=ids))
    return ids


def tokenize(session: Any, text: str) -> list[int]:
    """Return the ids of a text, by the engine's own tokenizer."""
    ids: list[int] = session.runner.tokenize_text(text, False, None)
    return ids


def misuse(model: ModelInfo, token_ids: list[int]) -> Any:
    """Hooks called in the wrong order or with the wrong number."""
    session = load(model)
    found = {"decode_first": error_of(lambda: HOOK.cmp_decode(session=session, n_tokens=3))}

    def prefill(output_tokens: int) -> None:
        HOOK.cmp_prefill(session=session, token_ids=token_ids, output_tokens=output_tokens)

    prefill(4)
    found["wrong_count"] = error_of(lambda: HOOK.cmp_decode(session=session, n_tokens=7))
    found["no_reset"] = error_of(lambda: prefill(4))
    left = HOOK.cmp_decode(session=session, n_tokens=3)
    next(left)
    HOOK.cmp_reset(session=session)
    found["resumed"] = error_of(lambda: next(left))
    prefill(1)
    found["nothing_left"] = error_of(lambda: HOOK.cmp_decode(session=session, n_tokens=1))
    return found


def cut_short(model: ModelInfo, token_ids: list[int], output_tokens: int) -> Any:
    """The engine stops at the model's own context while our check is out of the way."""
    session = load(model)
    session.context_tokens = 10**9
    return error_of(lambda: generate(session, token_ids, output_tokens))


def counted_otherwise(model: ModelInfo, token_ids: list[int]) -> Any:
    """The engine gets a text of one token more than the ids that were proven."""
    session = load(model)
    HOOK.cmp_prepare(session=session, token_ids=token_ids, output_tokens=2)
    ids, output_tokens, text, request = session.prepared
    session.prepared = (ids[:-1], output_tokens, text, request)
    HOOK.cmp_prefill(session=session, token_ids=ids[:-1], output_tokens=2)
    return error_of(lambda: list(HOOK.cmp_decode(session=session, n_tokens=1)))


def panic(model: ModelInfo) -> Any:
    """A real Rust panic: a chat message without a role; then an ordinary request."""
    from enginecmp_mistralrs.panics import Native

    session = load(model)
    bad = session.chat_request(messages=[{"content": "x"}], model="default", max_tokens=1)

    def provoke() -> None:
        with Native("run the prompt"):
            session.runner.send_chat_completion_request(bad)

    return {"error": error_of(provoke), "after": generate(session, tokenize(session, "the end"), 4)["total"]}


def two_kv_types(model: ModelInfo) -> Any:
    """A second load in one process with another KV cache type."""
    load(model, numerics="exact")
    os.environ.pop("MISTRALRS_CPU_KV_F32", None)
    return refused_load(model, numerics="default")


def thread_names(model: ModelInfo, token_ids: list[int]) -> Any:
    """Names of the process' threads after a request (Linux)."""
    generate(load(model, threads=int(os.environ["CANDLE_NUM_THREADS"])), token_ids, 4)
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended since it was listed
            names.append(path.read_text().strip())
    return sorted(names)


def discovery() -> Any:
    """Extension modules and heavy packages that registering the plugin and its cheap hooks brought in."""
    HOOK.cmp_engine()
    HOOK.cmp_probe(options=LoadOptions(device="cpu"))
    HOOK.cmp_probe(options=LoadOptions(device="cuda"))
    return sorted(name for name in sys.modules if name.partition(".")[0] in ("mistralrs", "torch", "llama_cpp"))


def oracle_scores(model: ModelInfo, out: str, token_ids: list[int]) -> Any:
    """llama.cpp's logits at every position: float32 KV cache, no flash attention, CPU, one thread."""
    np.save(out, LlamaCpp(model).logits(token_ids))
    return None


def oracle_greedy(model: ModelInfo, token_ids: list[int], output_tokens: int) -> Any:
    """llama.cpp's greedy continuation, every token from a fresh pass over the whole prefix."""
    engine, ids = LlamaCpp(model), list(token_ids)
    for _ in range(output_tokens):
        ids.append(int(engine.logits(ids)[-1].argmax()))
    return ids[len(token_ids) :]


class LlamaCpp:
    """The oracle: llama.cpp through its low-level API; nothing of this engine or of the host is in it."""

    def __init__(self, model: ModelInfo) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._silence = llama_cpp.llama_log_callback(lambda level, text, user: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(model.path.encode(), parameters)
        assert self._model, f"llama.cpp refuses {model.path}"
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 256
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        assert self._context, "llama.cpp made no context"
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def logits(self, token_ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return logits of a fresh pass, shape (T, vocabulary)."""
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        batch = api.llama_batch_init(len(token_ids), 0, 1)
        batch.n_tokens = len(token_ids)
        for position, token in enumerate(token_ids):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        assert api.llama_decode(self._context, batch) == 0
        api.llama_synchronize(self._context)
        rows = [
            np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, position), (self._vocabulary,)).copy()
            for position in range(len(token_ids))
        ]
        api.llama_batch_free(batch)
        return np.stack(rows)


def main(name: str, arguments: str, result: str) -> None:
    """Run one scenario."""
    given = json.loads(Path(arguments).read_text())
    if "model" in given:
        given["model"] = msgspec.convert(given["model"], ModelInfo)
    found = globals()[name](**given)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
