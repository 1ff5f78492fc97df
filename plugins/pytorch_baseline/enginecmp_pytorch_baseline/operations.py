"""Single operations as the library baseline has them: the `tokenizers` library, sampling and products in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from enginecmp import load_tokenizer, matrices

if TYPE_CHECKING:
    from torch import Tensor

    from .session import Session


def operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return an operation ready to be called, or None where there is none of that kind."""
    make = {"tokenize": _tokenize, "sampling": _sampling, "matmul": _matmul}.get(kind)
    # Here and not in the call: it would be timed. Every operation says anew what it wants.
    torch.set_num_threads(1 if parameters.get("method") == "library" else session.threads)
    return make(session, parameters) if make else None


def _tokenize(session: Session, parameters: Mapping[str, Any]) -> Callable[[], Any]:
    tokenizer = load_tokenizer(session.path)
    if parameters["direction"] == "encode":
        text: str = parameters["text"]
        return lambda: tokenizer.encode(text)
    token_ids = list(parameters["token_ids"])
    return lambda: tokenizer.decode(token_ids)


def _sampling(session: Session, parameters: Mapping[str, Any]) -> Callable[[], int]:
    """Temperature, then top-k, then top-p, then a draw from what is left, each as the plainest torch call for it."""
    logits = session.last_logits(parameters["token_ids"])  # (vocabulary,)
    temperature, top_k, top_p = (parameters[name] for name in ("temperature", "top_k", "top_p"))
    if temperature == 0:
        return lambda: int(logits.argmax())
    generator = torch.Generator(device=logits.device).manual_seed(parameters["seed"])

    def call() -> int:
        scaled, ids = logits / temperature, None
        if top_k:
            scaled, ids = scaled.topk(min(top_k, len(scaled)))  # (top_k,)
        chances = scaled.softmax(dim=-1)
        if top_p < 1:
            chances, ids = _nucleus(chances, ids, top_p)
        drawn = torch.multinomial(chances, 1, generator=generator)
        return int(drawn if ids is None else ids[drawn])

    return call


def _nucleus(chances: Tensor, ids: Tensor | None, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the fewest most likely entries that reach top_p together, the others at 0, in falling order."""
    ordered, order = chances.sort(descending=True)
    # The entry that passes top_p belongs to the nucleus.
    ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0
    return ordered, order if ids is None else ids[order]


def _matmul(session: Session, parameters: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the product in float32: dot by dot in a Python loop, on one thread, or on all of them."""
    rows, inner, columns, seed = (parameters[name] for name in ("rows", "inner", "columns", "seed"))
    left, right = (torch.from_numpy(array).to(session.device) for array in matrices(rows, inner, columns, seed))
    if parameters["method"] == "naive":
        transposed = right.T.contiguous()  # (columns, inner)
        return lambda: _Product(torch.stack([torch.stack([row.dot(column) for column in transposed]) for row in left]))

    def call() -> _Product:
        product = torch.mm(left, right)
        # Block: on CUDA the launch returns at once.
        session.synchronize()
        return _Product(product)

    return call


class _Product:
    """A matrix that leaves its device only when somebody reads it, which is after the clock.

    Args:
        tensor: (rows, columns).
    """

    ndim = 2

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._tensor.cpu().numpy()
