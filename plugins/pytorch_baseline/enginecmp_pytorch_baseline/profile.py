"""Seconds per component, by hooks that exist only while a profile runs: the timed path carries none of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

import torch

from .model import Attention, FeedForward, Rope
from .session import Session

COMPONENTS = ("embedding", "norm", "rope", "attention", "ffn", "lm_head", "sampling", "other")


class Stopwatch:
    """Splits time among nested regions: each moment belongs to the innermost one, so the parts sum to the whole.

    Args:
        session: waited for at every boundary, so that a kernel's time falls to the region that launched it.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._open = ["other"]
        self._last_ns = 0
        self.nanoseconds = dict.fromkeys(COMPONENTS, 0)

    def start(self) -> None:
        """Start the clock outside every region."""
        self._session.synchronize()
        self._last_ns = perf_counter_ns()

    def enter(self, component: str) -> None:
        """Begin a region."""
        self._charge()
        self._open.append(component)

    def leave(self) -> None:
        """End the innermost region."""
        self._charge()
        self._open.pop()

    def stop(self) -> None:
        """Stop the clock outside every region."""
        self._charge()
        assert self._open == ["other"]

    def _charge(self) -> None:
        self._session.synchronize()
        now_ns = perf_counter_ns()
        self.nanoseconds[self._open[-1]] += now_ns - self._last_ns
        self._last_ns = now_ns


def profile(session: Session, token_ids: Sequence[int], n_tokens: int) -> dict[str, float]:
    """Run a prompt and `n_tokens` decode steps and return seconds per component.

    The hooks cost time of their own, and on a GPU every region waits for the device: the shares mean something,
    the sum is more than an undisturbed request takes. "attention" holds its four projections, the cache's
    concatenation, mask, matmuls and softmax, without the rotary embedding.

    Args:
        session: its cache is emptied before and after.
        token_ids: the prompt.
        n_tokens: decode steps after it.
    """
    session.reset()
    ids = torch.tensor([token_ids], device=session.device)
    watch = Stopwatch(session)
    with _hooked(session.model, watch):
        watch.start()
        for _ in range(n_tokens + 1):
            logits = session.forward(ids)
            watch.enter("sampling")
            token = session.pick(logits)
            watch.leave()
            ids = torch.tensor([[token]], device=session.device)
        watch.stop()
    session.reset()
    return {component: spent_ns / 1e9 for component, spent_ns in watch.nanoseconds.items()}


@contextmanager
def _hooked(model: Any, watch: Stopwatch) -> Iterator[None]:
    """Report every module that is a component to the stopwatch."""
    handles = []
    for name, module in model.named_modules():
        component = _component(name, module)
        if component is None:
            continue

        def enter(module: Any, arguments: Any, component: str = component) -> None:
            watch.enter(component)

        def leave(module: Any, arguments: Any, answer: Any) -> None:
            watch.leave()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _component(name: str, module: Any) -> str | None:
    """Return which component a module is, or None when it is a part of one or holds several."""
    if isinstance(module, Rope):
        return "rope"
    if isinstance(module, Attention):
        return "attention"
    if isinstance(module, FeedForward):
        return "ffn"
    if name.endswith("_norm"):
        return "norm"
    return {"token_embd": "embedding", "position_embd": "embedding", "output": "lm_head"}.get(name)
