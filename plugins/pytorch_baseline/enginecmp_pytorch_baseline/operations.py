"""Single operations as the library baseline has them: the `tokenizers` library, the rest in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from enginecmp import layer_shapes, layer_tensor, load_tokenizer, matrices, vectors

from .config import ModelConfig, RopeConfig
from .model import Block, RMSNorm, Rope
from .sampling import choice

if TYPE_CHECKING:
    from torch import Tensor

    from .session import Session


def operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return an operation ready to be called, or None where there is none of that kind."""
    make = _MAKERS.get(kind)
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
    logits = session.last_logits(parameters["token_ids"])  # (vocabulary,)
    temperature, top_k, top_p, seed = (parameters[name] for name in ("temperature", "top_k", "top_p", "seed"))
    choose = choice(temperature, top_k, top_p, seed, logits.device)
    return lambda: choose(logits)


def _matmul(session: Session, parameters: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the product in float32: dot by dot in a Python loop, on one thread, or on all of them."""
    rows, inner, columns, seed = (parameters[name] for name in ("rows", "inner", "columns", "seed"))
    left, right = (torch.from_numpy(array).to(session.device) for array in matrices(rows, inner, columns, seed))
    if parameters["method"] == "naive":
        transposed = right.T.contiguous()  # (columns, inner)
        return lambda: _Rows(
            torch.stack([torch.stack([row.dot(column) for column in transposed]) for row in left]), rows
        )

    def call() -> _Rows:
        product = torch.mm(left, right)
        # Block: on CUDA the launch returns at once.
        session.synchronize()
        return _Rows(product, rows)

    return call


def _elementwise(session: Session, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return a function between the products, in float32, each as the model has it."""
    rows, length, head_dim = (parameters[name] for name in ("rows", "length", "head_dim"))
    a, b = (torch.from_numpy(array).to(session.device) for array in vectors(rows, length, parameters["seed"]))
    compute: Callable[[], Tensor]
    # One closure each: looking up the function inside the call would be timed.
    match parameters["function"]:
        case "add":
            compute = lambda: a + b  # noqa: E731
        case "silu_mul":
            compute = lambda: F.silu(a) * b  # noqa: E731
        case "softmax":
            compute = lambda: a.softmax(dim=-1)  # noqa: E731
        case "rms_norm":
            norm = RMSNorm(length, parameters["epsilon"])
            norm.load_state_dict({"weight": b[0]}, assign=True)
            compute = lambda: norm(a)  # noqa: E731
        case "rope":
            start = parameters["start"]
            rope = Rope(_rope_config(parameters), start + rows, None).to(session.device)
            heads = a.view(1, rows, -1, head_dim).transpose(1, 2)  # (1, heads, rows, head_dim)
            compute = lambda: rope(heads, start).transpose(1, 2)  # noqa: E731
        case _:
            return None
    return _answering(session, compute, rows)


def _layer(session: Session, parameters: Mapping[str, Any]) -> Callable[[], Any]:
    """Return one block of the model's own kind in float32, its cache grown by the rows in every call."""
    past = parameters["past"]
    config = ModelConfig(
        architecture="llama",
        layers=1,
        width=parameters["width"],
        heads=parameters["heads"],
        kv_heads=parameters["kv_heads"],
        head_dim=parameters["head_dim"],
        feed_forward=parameters["feed_forward"],
        vocabulary=0,
        epsilon=parameters["epsilon"],
        context_length=past + parameters["rows"],
        sliding_window=0,
        rope=_rope_config(parameters),
    )
    arrays = {
        name: torch.from_numpy(layer_tensor(name, parameters)).to(session.device) for name in layer_shapes(parameters)
    }
    rope = Rope(_rope_config(parameters), config.context_length, None).to(session.device)
    with torch.device("meta"):
        block = Block(config, rope, 0, ())
    # "attention.attn_q.weight" is the array "attn_q".
    block.load_state_dict({name: arrays[name.split(".")[-2]] for name in block.state_dict()}, assign=True)
    x = arrays["x"][None]  # (1, rows, width)
    keys, values = (arrays[name].transpose(0, 1)[None].contiguous() for name in ("keys", "values"))
    before = (keys, values) if past else None  # each (1, kv_heads, past, head_dim)
    return _answering(session, lambda: block(x, [before], past), parameters["rows"])


def _rope_config(parameters: Mapping[str, Any]) -> RopeConfig:
    return RopeConfig(parameters["rope_base"], parameters["head_dim"], False, 1.0, 1.0, None)


def _answering(session: Session, compute: Callable[[], Tensor], rows: int) -> Callable[[], _Rows]:
    """Return a call that computes, waits for the device and keeps the answer there."""

    def call() -> _Rows:
        with torch.inference_mode():
            answer = compute()
        session.synchronize()
        return _Rows(answer, rows)

    return call


class _Rows:
    """A matrix that leaves its device only when somebody reads it, which is after the clock.

    Args:
        tensor: whatever shape holds a matrix row by row.
        rows: of the matrix.
    """

    ndim = 2

    def __init__(self, tensor: Tensor, rows: int) -> None:
        self._tensor = tensor
        self._rows = rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._tensor.cpu().numpy().reshape(self._rows, -1)


_MAKERS = {
    "tokenize": _tokenize,
    "sampling": _sampling,
    "matmul": _matmul,
    "elementwise": _elementwise,
    "layer": _layer,
}
