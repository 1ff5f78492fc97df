"""One compiled model with its state: prefill, decode step, scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from enginecmp import EngineError, UnsupportedModel, plain
from enginecmp.plugin_tools.python_plugin import check_prompt, check_step

from .exporting import LAST
from .name import ENGINE


class Session:
    """What `cmp_load` returns.

    Args:
        folder: the export.
        precision: of activations: "auto" is OpenVINO's choice (bfloat16 where the CPU multiplies it).
        kv_cache: type of the cached keys and values: "auto" is OpenVINO's choice (8 bits on CPUs).
        context_tokens: that a request may need.
        vocabulary: number of token ids.
        threads: that compute.

    Raises:
        UnsupportedModel: OpenVINO cannot compile the export.
    """

    def __init__(
        self, *, folder: Path, precision: str, kv_cache: str, context_tokens: int, vocabulary: int, threads: int
    ) -> None:
        self._folder = folder
        self._settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if precision != "auto":
            self._settings["INFERENCE_PRECISION_HINT"] = precision
        if precision == "f32":
            # Float32 means float32: no activations rounded to 8 bits in front of compressed weights.
            self._settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        if kv_cache != "auto":
            self._settings["KV_CACHE_PRECISION"] = kv_cache
        self.limit = context_tokens
        self.vocabulary = vocabulary
        self._weights_bytes = (folder / LAST).with_suffix(".bin").stat().st_size
        self._request: Any = self._compiled()
        self._inputs = {port.get_any_name() for port in self._request.model_inputs}
        self.reset()

    def reset(self) -> None:
        """Empty the KV cache."""
        self.past = 0
        self._next: int | None = None
        self._request.reset_state()

    def check_prompt(self, token_ids: Sequence[int], needed: int) -> None:
        """Refuse a prompt that cannot run, or after which the cache would not hold `needed` tokens."""
        check_prompt(ENGINE, token_ids, needed, vocabulary=self.vocabulary, limit=self.limit)

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Run a prompt into the empty cache and return the first greedy id."""
        return self._greedy(token_ids)

    def step(self) -> int:
        """Feed the last id and return the next one.

        Raises:
            EngineError: there was no prefill.
            ContextOverflow: the cache is full.
        """
        check_step(ENGINE, prefilled=self._next is not None, past=self.past, limit=self.limit)
        assert self._next is not None
        return self._greedy([self._next])

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits at every position of a prompt, (T, vocabulary), and leave the cache empty.

        Token by token, through the model and the cache that generate: all positions in one inference would need the
        head that is timed nowhere, and would not read the 8-bit keys and values back.
        """
        self.reset()
        logits = np.empty((len(token_ids), self.vocabulary), np.float32)
        for position, token in enumerate(token_ids):
            logits[position] = self._logits([token])
        self.reset()
        return logits

    def metrics(self) -> dict[str, float]:
        """Return the size of the export's weights; OpenVINO tells no size of its state."""
        return {"weights_bytes": float(self._weights_bytes)}

    def close(self) -> None:
        """Free weights and cache."""
        self._request = None

    def _compiled(self) -> Any:
        try:
            return openvino.Core().compile_model(self._folder / LAST, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            msg = f"{ENGINE}: expected an export that OpenVINO compiles, got: {plain(str(error), 400)}"
            raise UnsupportedModel(msg) from error

    def _greedy(self, token_ids: Sequence[int]) -> int:
        self._next = int(self._logits(token_ids).argmax())
        return self._next

    def _logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Run some tokens on top of the cache and return the last one's logits, (vocabulary,); valid until the next."""
        try:
            # Blocks until the result is there.
            self._request.infer(self._fed(token_ids, self.past))
        except RuntimeError as error:
            msg = f"{ENGINE}: the inference failed: {plain(str(error), 400)}"
            raise EngineError(msg) from error
        self.past += len(token_ids)
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data[0, -1, : self.vocabulary]
        return logits

    def _fed(self, token_ids: Sequence[int], past: int) -> dict[str, NDArray[np.int64 | np.int32]]:
        """Return the inputs of one inference on top of `past` cached tokens."""
        tokens = len(token_ids)
        fed: dict[str, NDArray[np.int64 | np.int32]] = {
            "input_ids": np.array([token_ids], np.int64),
            "attention_mask": np.ones((1, past + tokens), np.int64),
            "position_ids": np.arange(past, past + tokens, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return {name: value for name, value in fed.items() if name in self._inputs}
