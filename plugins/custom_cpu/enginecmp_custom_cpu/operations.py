"""Single operations for the micro scenarios: the host's tokenizer, everything else in Rust."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from enginecmp import layer_tensor, load_tokenizer, matrices, vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._shim import Elements, Layer, Product
    from .loaded import LoadedModel


def operation(model: LoadedModel, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return an operation ready to be called, or None where there is none of that kind."""
    make = _MAKERS.get(kind)
    return make(model, parameters) if make else None


def _tokenize(model: LoadedModel, parameters: Mapping[str, Any]) -> Callable[[], Any]:
    tokenizer = load_tokenizer(model.path)
    if parameters["direction"] == "encode":
        text: str = parameters["text"]
        return lambda: tokenizer.encode(text)
    token_ids = list(parameters["token_ids"])
    return lambda: tokenizer.decode(token_ids)


def _sampling(model: LoadedModel, parameters: Mapping[str, Any]) -> Callable[[], int]:
    """Run the prompt once; each call goes from its last logits to an id."""
    return model.session.draws_after(
        list(parameters["token_ids"]),
        parameters["temperature"],
        parameters["top_k"],
        parameters["top_p"],
        parameters["seed"] & 0xFFFF_FFFF_FFFF_FFFF,
    ).draw


def _matmul(model: LoadedModel, parameters: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the product in float32: as the definition says, by the kernels on one thread, or on all of them."""
    rows, inner, columns, seed = (parameters[name] for name in ("rows", "inner", "columns", "seed"))
    left, right = matrices(rows, inner, columns, seed)
    threads = {"naive": 0, "library": 1, "parallel": model.threads}[parameters["method"]]
    product = model.session.product(left.tobytes(), right.T.tobytes(), inner, threads)

    def call() -> _Answer:
        product.multiply()
        return _Answer(product, (rows, columns))

    return call


def _elementwise(model: LoadedModel, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return one of the functions between the products, by the kernels of a pass and on its threads."""
    rows, length = parameters["rows"], parameters["length"]
    a, b = vectors(rows, length, parameters["seed"])
    settings = {name: parameters[name] for name in ("head_dim", "start", "rope_base", "epsilon")}
    elements = model.session.elements(parameters["function"], a.tobytes(), b.tobytes(), length=length, **settings)
    return None if elements is None else _running(elements, (rows, length))


def _layer(model: LoadedModel, parameters: Mapping[str, Any]) -> Callable[[], Any]:
    """Return one layer as a pass runs it, weights in float32, the cache as the session stores numbers."""
    shape = {name: value for name, value in parameters.items() if name != "seed"}
    layer = model.session.layer(lambda name: layer_tensor(name, parameters).tobytes(), **shape)
    return _running(layer, (parameters["rows"], parameters["width"]))


def _running(work: Elements | Layer, shape: tuple[int, int]) -> Callable[[], Any]:
    def call() -> _Answer:
        work.run()
        return _Answer(work, shape)

    return call


class _Answer:
    """A matrix that leaves Rust only when somebody reads it, which is after the clock.

    Args:
        work: what has been computed.
        shape: of its answer.
    """

    ndim = 2

    def __init__(self, work: Product | Elements | Layer, shape: tuple[int, int]) -> None:
        self._work = work
        self._shape = shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        return np.frombuffer(self._work.answer(), np.float32).reshape(self._shape)


_MAKERS = {
    "tokenize": _tokenize,
    "sampling": _sampling,
    "matmul": _matmul,
    "elementwise": _elementwise,
    "layer": _layer,
}
