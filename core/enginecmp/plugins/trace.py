"""`CMP_TRACE_PLUGINS=1`: print every hook call with its time, to see in which order an engine is driven.

A worker's lines go to its launch's log. Printing happens around the call, so inside a request it is part of what is
measured: a traced run is for reading, not for comparing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pluggy

from enginecmp import clock

VARIABLE = "CMP_TRACE_PLUGINS"

_STARTED_NS = clock.now_ns()


def watch(manager: pluggy.PluginManager) -> None:
    """Print a line on stderr before and after every hook call of a manager."""
    began: list[int] = []

    def before(name: str, _impls: Sequence[Any], arguments: Any) -> None:
        began.append(clock.now_ns())
        _print(f"> {name}({', '.join(f'{key}={_brief(value)}' for key, value in arguments.items())})")

    def after(outcome: pluggy.Result[Any], name: str, _impls: Sequence[Any], _arguments: Any) -> None:
        seconds = (clock.now_ns() - began.pop()) / 1e9
        error = outcome.exception
        what = f"raised {type(error).__name__}: {error}" if error else _brief(outcome.get_result())
        _print(f"< {name} {seconds * 1e3:.3f} ms {what}")

    manager.add_hookcall_monitoring(before, after)


def _print(text: str) -> None:
    print(f"cmp {(clock.now_ns() - _STARTED_NS) / 1e9:9.6f} {text}", file=sys.stderr, flush=True)


def _brief(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 4:
        return f"[{value[0]}, {value[1]}, … {len(value)} in all]"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
