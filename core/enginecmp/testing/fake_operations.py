"""The fake engine's single operations: right answers, made-up times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from enginecmp.measure import exact
from enginecmp.operands import matrices
from enginecmp.testing.fake_sampling import nucleus
from enginecmp.testing.fake_session import FakeSession

if TYPE_CHECKING:
    pass

SHARES = {
    "embedding": 0.02,
    "norm": 0.06,
    "rope": 0.04,
    "attention": 0.30,
    "ffn": 0.45,
    "lm_head": 0.10,
    "sampling": 0.01,
    "other": 0.02,
}
"""Of a profile's time, by component."""


def operation(session: FakeSession, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return an operation that takes `operation_us` of the session's clock; None for kinds that do not exist."""
    make = _MAKERS.get(kind)
    if make is None:
        return None
    session.draw_factor(parameters.get("token_ids", ()))
    answer = make(session, parameters, session.settings["wrong"] == kind)
    seconds = session.number("operation_us") / 1e6

    def call() -> Any:
        session.spend(seconds)
        return answer()

    return call


def _tokenize(session: FakeSession, parameters: Mapping[str, Any], wrong: bool) -> Callable[[], Any]:
    from enginecmp.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(session.path)
    if parameters["direction"] == "decode":
        text = tokenizer.decode(parameters["token_ids"])
        return lambda: text + wrong * "!"
    ids = tokenizer.encode(parameters["text"])
    return lambda: ids + wrong * [0]


def _sampling(session: FakeSession, parameters: Mapping[str, Any], wrong: bool) -> Callable[[], int]:
    import numpy as np

    token_ids = parameters["token_ids"]
    logits = session.logits(len(token_ids) - 1, token_ids[-1])
    if wrong:
        logits = -logits
    if parameters["temperature"] == 0:
        return lambda: int(logits.argmax())
    chances = nucleus(logits, parameters)
    random = np.random.default_rng(parameters["seed"])
    return lambda: int(random.choice(len(chances), p=chances))


def _matmul(session: FakeSession, parameters: Mapping[str, Any], wrong: bool) -> Callable[[], Any]:
    left, right = matrices(*(parameters[name] for name in ("rows", "inner", "columns", "seed")))
    product = left @ right * (1.01 if wrong else 1.0)
    return lambda: product


def _elementwise(session: FakeSession, parameters: Mapping[str, Any], wrong: bool) -> Callable[[], Any]:
    answer = exact.elementwise(parameters) * (1.01 if wrong else 1.0)
    return lambda: answer


def _layer(session: FakeSession, parameters: Mapping[str, Any], wrong: bool) -> Callable[[], Any]:
    answer = exact.layer(parameters) * (1.01 if wrong else 1.0)
    return lambda: answer


_MAKERS = {
    "tokenize": _tokenize,
    "sampling": _sampling,
    "matmul": _matmul,
    "elementwise": _elementwise,
    "layer": _layer,
}
