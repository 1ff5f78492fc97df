"""One loaded model with its KV cache: prefill, decode step, scores, device times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from enginecmp import Decoding, EngineError
from enginecmp.denoising import Committed, denoise
from enginecmp.plugin_tools.python_plugin import check_denoising, check_prompt, check_step

from .config import ENGINE
from .model import KVCache, Transformer
from .sampling import Choice, choice


class Session:
    """What `cmp_load` returns.

    Args:
        model: with its weights resident.
        device: where they are.
        limit: most tokens that the cache may hold.
        fix: what to do when that is not enough; "{needed}" becomes the number of tokens.
        path: of the weights file.
        threads: that compute.
    """

    def __init__(self, model: Transformer, device: torch.device, limit: int, fix: str, path: str, threads: int) -> None:
        self.model: Transformer | None = model
        self.device = device
        self.limit = limit
        self.path = path
        self.threads = threads
        self._fix = fix
        self._vocabulary = model.config.vocabulary
        self._layers = model.config.layers
        self._diffusion = model.config.diffusion
        self.load_phases: dict[str, float] = {}
        # Tied weights are one tensor under two names: `parameters` names it once.
        self._weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.reset()

    def reset(self) -> None:
        """Empty the KV cache and forget the request's times."""
        self.cache: KVCache = [None] * self._layers
        self.past = 0
        self.choose: Choice | None = None  # greedy
        self._next: Tensor | None = None  # (1, 1), the last id handed out, not yet in the cache
        self._prefill_events: list[tuple[Any, Any]] = []
        self._decode_events: list[tuple[Any, Any]] = []

    def decode_by(self, decoding: Decoding) -> None:
        """Choose ids in this way until the next `reset`."""
        if decoding.temperature:
            self.choose = choice(decoding.temperature, decoding.top_k, decoding.top_p, decoding.seed, self.device)

    def check_prompt(self, token_ids: Sequence[int], needed: int) -> None:
        """Refuse a prompt that cannot run, or after which the cache would not hold `needed` tokens."""
        check_prompt(ENGINE, token_ids, needed, vocabulary=self._vocabulary, limit=self.limit, fix=self._fix)

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Run a prompt into the empty cache and return the first greedy id, the device done."""
        # The load is told before the first request, or never.
        self.load_phases = {}
        return self._run(torch.tensor([token_ids], device=self.device), self._prefill_events)

    def step(self) -> int:
        """Feed the last id and return the next one, the device done.

        Raises:
            EngineError: there was no prefill.
            ContextOverflow: the cache is full.
        """
        check_step(ENGINE, prefilled=self._next is not None, past=self.past, limit=self.limit, fix=self._fix)
        assert self._next is not None
        return self._run(self._next, self._decode_events)

    def forward(self, ids: Tensor, *, last_only: bool = True) -> Tensor:
        """Run (1, T) ids, append them to the cache and return logits, (1, T or 1, vocabulary)."""
        assert self.model is not None
        with torch.inference_mode():
            logits = self.model(ids, self.cache, self.past, last_only)
        self.past += ids.shape[1]
        return logits

    def pick(self, logits: Tensor) -> int:
        """Return the id that is chosen by the last position's logits and keep it for the next step."""
        if self.choose is None:
            self._next = logits[:, -1].argmax(dim=-1, keepdim=True)  # (1, 1)
            return int(self._next)
        token = self.choose(logits[0, -1].float())
        self._next = torch.tensor([[token]], device=self.device)
        return token

    def last_logits(self, token_ids: Sequence[int]) -> Tensor:
        """Run a prompt into the empty cache and return the logits of its last position, (vocabulary,), float32."""
        self.check_prompt(token_ids, len(token_ids))
        return self.forward(torch.tensor([token_ids], device=self.device))[0, -1].float()

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits at every position of a prompt, (T, vocabulary), and leave the cache empty."""
        self.reset()
        ids = torch.tensor([token_ids], device=self.device)
        if self._diffusion is None:
            logits = self.forward(ids, last_only=False)[0]
        else:
            logits = self._predict(ids, torch.zeros_like(ids[0]), torch.arange(len(token_ids), device=self.device))
        self.reset()
        scores: NDArray[np.float32] = logits.float().cpu().numpy()
        return scores

    def denoise(
        self, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
    ) -> Iterator[Committed]:
        """Yield what each denoising step commits, the device done.

        Raises:
            EngineError: the model is none of diffusion, or what is asked for cannot be denoised.
            ContextOverflow: it does not fit.
        """
        if self._diffusion is None:
            msg = f"{ENGINE}: expected a diffusion model to denoise with (llada, dream), got one that predicts the next"
            raise EngineError(msg)
        check_denoising(
            ENGINE, token_ids, output_tokens, steps, block_tokens,
            vocabulary=self._vocabulary, limit=self.limit, fix=self._fix,
        )  # fmt: skip
        mask = self._diffusion.mask

        def predict(ids: Any, sequences: Any, positions: Any) -> tuple[Any, Any]:
            on_device = (torch.from_numpy(each).to(self.device) for each in (ids, sequences, positions))
            with torch.inference_mode():
                logits = self._predict(*on_device).float()  # (M, vocabulary)
                logits[:, mask] = -torch.inf
                confidence, best = logits.log_softmax(dim=-1).max(dim=-1)
            return best.cpu().numpy(), confidence.cpu().numpy()  # waits for the device

        return denoise(predict, token_ids, output_tokens, steps, block_tokens, mask)

    def _predict(self, ids: Tensor, sequences: Tensor, positions: Tensor) -> Tensor:
        assert self.model is not None
        with torch.inference_mode():
            return self.model.predict(ids, sequences, positions)

    def metrics(self) -> dict[str, float]:
        """Return bytes of weights and cache, measured from the tensors; on CUDA the allocator's and event times too."""
        held = [tensor for pair in self.cache if pair is not None for tensor in pair]
        found = {
            "weights_bytes": float(self._weights_bytes),
            "kv_cache_bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in held)),
        }
        if self.device.type == "cuda":
            found["allocated_bytes"] = float(torch.cuda.memory_allocated(self.device))
            found["reserved_bytes"] = float(torch.cuda.memory_reserved(self.device))
        # Of the load, told once.
        found |= self.load_phases
        self.load_phases = {}
        if self._prefill_events:
            found["device_prefill_seconds"] = _seconds(self._prefill_events)
        if self._decode_events:
            found["device_decode_seconds"] = _seconds(self._decode_events)
        return found

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Free weights and cache."""
        self.reset()
        self.model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, ids: Tensor, events: list[tuple[Any, Any]]) -> int:
        if self.device.type != "cuda":
            return self.pick(self.forward(ids))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        token = self.pick(self.forward(ids))
        end.record()
        # Block: launches are asynchronous; an unfinished kernel reads as a fast one.
        torch.cuda.synchronize(self.device)
        events.append((start, end))
        return token


def _seconds(events: list[tuple[Any, Any]]) -> float:
    return sum(float(start.elapsed_time(end)) for start, end in events) / 1000.0
