"""Seconds per component, from llama.cpp's own callback around the nodes of its graph.

llama.cpp asks before each node whether somebody wants to look when it is done, and computes everything up to a node
that is wanted in one go. So it is told to stop exactly where one component ends and the next begins: about ten times
a layer. Which nodes those are is learned in a first pass over the same batches, in which it never stops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import msgspec
import numpy as np

from . import ggml
from .native import Batch, decode_failure, lib

_BY_NAME = (
    (re.compile(r"result_output|output"), "lm_head"),
    (re.compile(r"embd|pos_embd|inp"), "embedding"),
    (re.compile(r"ffn_inp|l_out"), "other"),  # the sums around a layer's two halves
    (re.compile(r".*norm"), "norm"),
    (re.compile(r"ffn_|moe_"), "ffn"),
    (re.compile(r"[QKV]cur|wqkv|wq|wk|wv|cache_|kq|attn"), "attention"),
)


def component_of(name: str, operation: str, before: str) -> str:
    """Return which component a node belongs to.

    Args:
        name: of the tensor, e.g. "ffn_gate-7" or "node_21".
        operation: ggml's name of what computes it, e.g. "ROPE".
        before: component of the node before; what has no name of its own belongs to it.
    """
    if operation == "ROPE":
        return "rope"
    if operation in ("FLASH_ATTN_EXT", "SOFT_MAX"):
        return "attention"
    return next((component for pattern, component in _BY_NAME if pattern.match(name)), before)


class _Plan(msgspec.Struct):
    """Where to stop in the nodes of a prompt and the tokens after it.

    Attributes:
        stops: for each node, in the order of asking, whether its component ends with it.
        components: of each stop.
    """

    stops: list[bool]
    components: list[str]


class Profiler:
    """A second context of the session's model, whose graph is watched.

    Args:
        make_context: takes the callback and returns a llama_context.
        batch_tokens: most tokens in one llama_decode call.
    """

    def __init__(self, make_context: Callable[[Any], Any], batch_tokens: int) -> None:
        self._names = ggml.functions() or {}
        self._observe: Callable[[int, bool], bool] = lambda tensor, ask: False
        # ctypes keeps no reference to a callback that C holds.
        self._callback = lib.ggml_backend_sched_eval_callback(lambda tensor, ask, data: self._observe(tensor, ask))
        self._context = make_context(self._callback)
        self._batch = Batch(min(batch_tokens, lib.llama_n_batch(self._context)))
        self._plans: dict[tuple[int, int], _Plan] = {}

    def profile(self, vocabulary: int, token_ids: Sequence[int], n_tokens: int) -> dict[str, float]:
        """Return seconds per component of a prompt and `n_tokens` steps after it.

        Args:
            vocabulary: number of token ids.
            token_ids: the prompt.
            n_tokens: greedy steps after it.
        """
        key = (len(token_ids), n_tokens)
        if key not in self._plans:
            self._plans[key] = self._learn(vocabulary, token_ids, n_tokens)
        plan = self._plans[key]
        seconds_ns = dict.fromkeys((*plan.components, "sampling"), 0)
        node = stop = 0
        fresh = True
        start_ns = 0

        def observe(tensor: int, ask: bool) -> bool:
            nonlocal node, stop, fresh, start_ns
            if ask:
                if fresh:
                    fresh = False
                    start_ns = perf_counter_ns()
                node += 1
                return plan.stops[node - 1]
            seconds_ns[plan.components[stop]] += perf_counter_ns() - start_ns
            stop += 1
            fresh = True
            return True

        self._observe = observe
        seconds_ns["sampling"] += self._run(vocabulary, token_ids, n_tokens)
        return {component: spent_ns / 1e9 for component, spent_ns in seconds_ns.items()}

    def close(self) -> None:
        """Free the context."""
        lib.llama_free(self._context)

    def _learn(self, vocabulary: int, token_ids: Sequence[int], n_tokens: int) -> _Plan:
        """Run once without stopping and note which component each node belongs to."""
        nodes: list[str] = []
        name_of, operation_of = self._names["ggml_get_name"], self._names["ggml_op_desc"]

        def observe(tensor: int, ask: bool) -> bool:
            name, operation = name_of(tensor).decode(), operation_of(tensor).decode()
            nodes.append(component_of(name, operation, nodes[-1] if nodes else "other"))
            return False

        self._observe = observe
        self._run(vocabulary, token_ids, n_tokens)
        # The last node of a graph is its output and the first of the next its embedding, so no stop spans two graphs.
        following = [*nodes[1:], ""]
        stops = [component != after for component, after in zip(nodes, following, strict=True)]
        return _Plan(stops, [component for component, ends in zip(nodes, stops, strict=True) if ends])

    def _run(self, vocabulary: int, token_ids: Sequence[int], n_tokens: int) -> int:
        """Run prompt and steps, greedy; return the nanoseconds that choosing took."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        batch, chosen_ns = self._batch, 0
        ids = np.asarray(token_ids, np.int32)
        position = 0
        for _ in range(n_tokens + 1):
            for start in range(0, len(ids), batch.capacity):
                end = batch.put(0, ids[start : start + batch.capacity], position, 0)
                position += end
                batch.outputs[end - 1] = start + end == len(ids)
                batch.native.n_tokens = end
                if code := lib.llama_decode(self._context, batch.native):
                    raise decode_failure(code)
            lib.llama_synchronize(self._context)
            begin_ns = perf_counter_ns()
            row = np.ctypeslib.as_array(lib.llama_get_logits(self._context), (vocabulary,))
            ids = np.array([row.argmax()], np.int32)
            chosen_ns += perf_counter_ns() - begin_ns
        return chosen_ns
