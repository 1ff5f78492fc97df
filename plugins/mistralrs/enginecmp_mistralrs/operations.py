"""What the wheel offers by itself: its tokenizer. Sampling and products are inside the engine only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from enginecmp import hookimpl

from .loading import Session
from .panics import Native

_TOKENIZE = Native("tokenize")


@hookimpl
def cmp_operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return the engine's tokenizer in one direction; None for everything else."""
    if kind != "tokenize":
        return None
    runner = session.runner
    if parameters["direction"] == "encode":
        text = parameters["text"]
        encode = runner.tokenize_text

        def to_ids() -> Any:
            with _TOKENIZE:
                return encode(text, False, None)

        return to_ids
    token_ids = list(parameters["token_ids"])
    decode = runner.detokenize_text

    def to_text() -> Any:
        with _TOKENIZE:
            return decode(token_ids, False)

    return to_text
