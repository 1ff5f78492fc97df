"""One loaded model with one generator: prefill, decode step, scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
from numpy.typing import NDArray

from enginecmp import EngineError, UnsupportedModel, plain
from enginecmp.plugin_tools.python_plugin import check_prompt, check_step

from .building import CONFIG, MODEL
from .name import ENGINE

NO_TOKEN = -1
"""An id that no token has."""


class Session:
    """What `cmp_load` returns.

    Args:
        folder: the export.
        context_tokens: that a request may need.
        threads: that compute.

    Raises:
        UnsupportedModel: ONNX Runtime cannot load the export.
    """

    def __init__(self, *, folder: Path, context_tokens: int, threads: int) -> None:
        facts: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())["model"]
        # Past the positions of the model there is no row in the graph's table of rotary angles.
        self.limit = min(context_tokens, int(facts["context_length"]))
        self.vocabulary = int(facts["vocab_size"])
        self._decoder: dict[str, Any] = facts["decoder"]
        self._weights_bytes = sum(path.stat().st_size for path in folder.glob(f"{MODEL}*"))
        changes = {
            "model": {
                # The last token of a request is returned and never fed, so that the sequence is one longer than the
                # cache; where that is one more than the model has positions, only this check would refuse it.
                "context_length": self.limit + 1,
                # Whoever pads marks tokens that are not there: a prompt whose last token has the id of the padding
                # would answer with the logits of an earlier one.
                "pad_token_id": NO_TOKEN,
                "decoder": {"session_options": {"intra_op_num_threads": threads}},
            },
            "search": {"do_sample": False, "max_length": self.limit + 1, "min_length": 0},
        }
        onnxruntime_genai.disable_telemetry_events()
        try:
            config = onnxruntime_genai.Config(str(folder))
            config.overlay(json.dumps(changes))
            model = onnxruntime_genai.Model(config)
            self._generator: Any = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
        except RuntimeError as error:
            msg = f"{ENGINE}: expected an export that ONNX Runtime loads, got: {plain(str(error), 400)}"
            raise UnsupportedModel(msg) from error
        self.reset()

    def reset(self) -> None:
        """Empty the KV cache, which stays reserved."""
        self.past = 0
        self._next: int | None = None
        self._generator.rewind_to(0)

    def check_prompt(self, token_ids: Sequence[int], needed: int) -> None:
        """Refuse a prompt that cannot run, or after which the cache would not hold `needed` tokens."""
        fix = "load it with context_tokens={needed} where the model has so many positions and no shorter sliding window"
        check_prompt(ENGINE, token_ids, needed, vocabulary=self.vocabulary, limit=self.limit, fix=fix)

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Run a prompt into the empty cache and return the first greedy id."""
        try:
            self._append(token_ids)
            self._generator.generate_next_token()  # of the logits that are there
        except RuntimeError as error:
            raise _failed(error) from error
        return self._selected()

    def step(self) -> int:
        """Feed the last id and return the next one.

        Raises:
            EngineError: there was no prefill.
            ContextOverflow: the cache is full.
        """
        check_step(ENGINE, prefilled=self._next is not None, past=self.past, limit=self.limit)
        assert self._next is not None
        try:
            if self._generator.token_count() == self.past:
                # The id ends the text: the generator left it out of its sequence, and generates no more until it is
                # told of further tokens. The work is the same.
                self._append([self._next])
                self._generator.generate_next_token()
            else:
                self._generator.generate_next_token()
                self.past += 1
        except RuntimeError as error:
            raise _failed(error) from error
        return self._selected()

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits at every position of a prompt, (T, vocabulary), and leave the cache empty.

        Token by token, through the model and the cache that generate: the head that is timed sees one position.
        """
        self.reset()
        logits = np.empty((len(token_ids), self.vocabulary), np.float32)
        try:
            for position, token in enumerate(token_ids):
                self._append([token])
                logits[position] = self._generator.get_logits()[0, -1, : self.vocabulary]
        except RuntimeError as error:
            raise _failed(error) from error
        self.reset()
        return logits

    def metrics(self) -> dict[str, float]:
        """Return the size of the export, and of the cache, which is all reserved at load."""
        keys: NDArray[Any] = self._generator.get_input(self._decoder["inputs"]["past_key_names"] % 0)
        return {
            "weights_bytes": float(self._weights_bytes),
            "kv_cache_bytes": float(2 * keys.nbytes * int(self._decoder["num_hidden_layers"])),
        }

    def close(self) -> None:
        """Free weights and cache."""
        self._generator = None

    def _append(self, token_ids: Sequence[int]) -> None:
        """Run some tokens on top of the cache; blocks until their logits are there."""
        self._generator.append_tokens(np.array([token_ids], np.int32))
        self.past += len(token_ids)

    def _selected(self) -> int:
        self._next = int(self._generator.get_next_tokens()[0])
        return self._next


def _failed(error: RuntimeError) -> EngineError:
    return EngineError(f"{ENGINE}: the inference failed: {plain(str(error), 400)}")
