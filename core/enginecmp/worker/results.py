"""What an engine's hooks return, turned into what the protocol carries; else an error that names the hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginecmp.errors import EngineError
from enginecmp.wire.answers import MAX_MESSAGE_BYTES, require_own_metrics


def numbers(hook: str, found: Any) -> dict[str, float]:
    """Return names and numbers.

    Args:
        hook: that returned them.
        found: a mapping; None is an empty one.

    Raises:
        EngineError: it is something else.
    """
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        msg = f"{hook} returned a {type(found).__name__}, expected a dict of names and numbers"
        raise EngineError(msg)
    plain: dict[str, float] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 200:
            msg = f"{hook} returned a number named {ascii(name)[:200]}, expected a short printable name"
            raise EngineError(msg)
        try:
            plain[name] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            msg = f"{hook} returned a {type(value).__name__} for {name!r}, expected a number that a float can hold"
            raise EngineError(msg) from error
    return plain


def engine_metrics(found: Any) -> dict[str, float]:
    """Return what `cmp_metrics` returned.

    Raises:
        EngineError: it is something else, or has a name under which host or worker write what they read.
    """
    metrics = numbers("cmp_metrics", found)
    try:
        require_own_metrics("cmp_metrics", metrics)
    except ValueError as error:
        raise EngineError(str(error)) from error
    return metrics


def float32_matrix(hook: str, values: Any) -> dict[str, Any]:
    """Return an array's shape and its float32 bytes.

    Raises:
        EngineError: it is no matrix, or larger than a message can be.
    """
    import numpy as np

    try:
        rows = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        msg = f"{hook} returned a {type(values).__name__}, expected a matrix of float32"
        raise EngineError(msg) from error
    if np.ndim(values) != 2 or not rows.size:
        msg = f"{hook} returned shape {np.shape(values)}, expected a matrix (rows, columns)"
        raise EngineError(msg)
    if rows.nbytes >= MAX_MESSAGE_BYTES:
        msg = f"{hook} returned {rows.nbytes} bytes of shape {rows.shape}, expected less than {MAX_MESSAGE_BYTES}"
        raise EngineError(msg)
    return {"shape": list(rows.shape), "data": rows.data.cast("B")}
