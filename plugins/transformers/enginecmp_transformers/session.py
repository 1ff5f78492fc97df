"""One loaded model with its KV cache: prefill, decode step, scores."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from enginecmp import EngineError, UnsupportedModel, plain
from enginecmp.plugin_tools.python_plugin import check_prompt, check_step

from .name import ENGINE

MOST_STATIC_TOKENS = 2**24
"""Longest static cache that is tried: it is reserved at once."""


class Session:
    """What `cmp_load` returns.

    Args:
        folder: the Hugging Face folder.
        device: "cpu" or "cuda".
        dtype: of weights and activations; "auto" takes what config.json says.
        attention: transformers' `attn_implementation`.
        static: a cache of fixed size, reserved at load, in place of one that grows.
        context_tokens: that a request may need.
        threads: that compute.

    Raises:
        UnsupportedModel: transformers cannot load the folder.
        EngineError: no such device.
    """

    def __init__(
        self, *, folder: str, device: str, dtype: str, attention: str, static: bool, context_tokens: int, threads: int
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            msg = f"{ENGINE}: expected a CUDA device, torch {torch.__version__} finds none; pass --device cpu"
            raise EngineError(msg)
        torch.set_num_threads(threads)
        with contextlib.suppress(RuntimeError):  # refused once parallel work has begun; a worker is fresh
            torch.set_num_interop_threads(1)
        # Float32 means float32: no TF32 on CUDA, no bfloat16 passes on CPU. This is also torch's own default.
        torch.set_float32_matmul_precision("highest")
        transformers.utils.logging.disable_progress_bar()
        try:
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                device_map=None,
            ).to(device)
        except (ValueError, OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            msg = f"{ENGINE}: expected a folder that transformers loads, got: {plain(str(error), 400)}; {folder}"
            raise UnsupportedModel(msg) from error
        self.model.eval()
        self.device = torch.device(device)
        self.vocabulary = int(self.model.config.vocab_size)
        positions = int(self.model.config.max_position_embeddings)
        # Learned positions end; rotary ones go on, and say nothing sensible.
        self.limit = min(context_tokens, positions) if self.model.config.model_type == "gpt2" else context_tokens
        self._weights_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self._static: Any = None
        if static:
            if self.limit > MOST_STATIC_TOKENS:
                fix = "choose a scenario with fewer tokens in its cells"
                msg = f"{ENGINE}: a static cache of {self.limit} tokens is reserved at load; {fix}"
                raise EngineError(msg)
            self._static = transformers.StaticCache(config=self.model.config, max_cache_len=self.limit)
            # Reserved at the first use: the first request of a launch must not pay for it.
            self.forward(torch.zeros((1, 1), dtype=torch.long, device=self.device), self._static)
        self.reset()
        self._synchronize()

    def reset(self) -> None:
        """Empty the KV cache."""
        self.past = 0
        self._next: Tensor | None = None  # (1, 1), the last id handed out, not yet in the cache
        if self._static is not None:
            with torch.inference_mode():  # in which its tensors were made
                self._static.reset()
        self.cache: Any = self._static or transformers.DynamicCache(config=self.model.config)

    def check_prompt(self, token_ids: Sequence[int], needed: int) -> None:
        """Refuse a prompt that cannot run, or after which the cache would not hold `needed` tokens."""
        fix = "load it with context_tokens={needed} where the model has so many positions"
        check_prompt(ENGINE, token_ids, needed, vocabulary=self.vocabulary, limit=self.limit, fix=fix)

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Run a prompt into the empty cache and return the first greedy id, the device done."""
        return self._greedy(torch.tensor([token_ids], device=self.device))

    def step(self) -> int:
        """Feed the last id and return the next one, the device done.

        Raises:
            EngineError: there was no prefill.
            ContextOverflow: the cache is full.
        """
        check_step(ENGINE, prefilled=self._next is not None, past=self.past, limit=self.limit)
        assert self._next is not None
        return self._greedy(self._next)

    def forward(self, ids: Tensor, cache: Any, last_only: bool = True) -> Tensor:
        """Run (1, T) ids on top of a cache and return logits, (1, T or 1, vocabulary)."""
        with torch.inference_mode():
            said = self.model(
                input_ids=ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1 if last_only else 0
            )
        logits: Tensor = said.logits
        return logits

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits at every position of a prompt, (T, vocabulary), and leave the cache empty."""
        self.reset()
        logits = self.forward(torch.tensor([token_ids], device=self.device), None, last_only=False)
        scores: NDArray[np.float32] = logits[0].float().cpu().numpy()
        return scores

    def metrics(self) -> dict[str, float]:
        """Return bytes of weights and cache, measured from the tensors; a static cache is all reserved."""
        pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in self.cache.layers]
        held = [tensor for pair in pairs for tensor in pair if isinstance(tensor, Tensor)]
        found = {
            "weights_bytes": float(self._weights_bytes),
            "kv_cache_bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in held)),
        }
        if self.device.type == "cuda":
            found["allocated_bytes"] = float(torch.cuda.memory_allocated(self.device))
            found["reserved_bytes"] = float(torch.cuda.memory_reserved(self.device))
        return found

    def close(self) -> None:
        """Free weights and cache."""
        self.model = self.cache = self._static = self._next = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _greedy(self, ids: Tensor) -> int:
        self._next = self.forward(ids, self.cache)[:, -1].argmax(dim=-1, keepdim=True)  # (1, 1)
        self.past += ids.shape[1]
        # The conversion blocks until the device is done.
        return int(self._next)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
