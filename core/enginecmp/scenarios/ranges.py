"""Numbers and names of a scenario that no run can mean: refused before anything is made ready for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from enginecmp.format.text import plain
from enginecmp.prompts.lengths import MOST_TOKENS
from enginecmp.scenarios.scenario import Scenario

PROMPTS_PER_SECOND = 200
"""Prompts that are made ready for each second of a closed loop that is measured by time."""

_TOKENS = (0, MOST_TOKENS)
_SECONDS = (0, 1e7)
_SHARE = (0, 1e12)
_RATE = (0, 1e6)
_LEAST_RATE = 1e-6
_COUNT = (0, 10_000_000)

_RANGES: Mapping[str, tuple[float, float]] = {
    "blocks": (0, 1_000_000),
    "max_extra": (0, 1e6),
    "precision": (0, 1),
    "calibration": _RATE,
    "offered_cells": _COUNT,
    "requests": _COUNT,
    "requests_of": _COUNT,
    "warmup_requests": _COUNT,
    "replacement_requests": _COUNT,
    "seconds": _SECONDS,
    "give_up_after": (1, 1 << 31),
    "offered_load": (_LEAST_RATE, 1e6),
    "offered_limit": _RATE,
    "burstiness": (1e-6, 1e6),
    "trace_seconds": _SECONDS,
    "score_positions": _COUNT,
    "max_kl": (0, 1e6),
    "max_nll_increase": (0, 1e6),
    "cells.prompt_tokens": _TOKENS,
    "cells.output_tokens": _TOKENS,
    "cells.concurrency": (1, 1 << 16),
    "cells.rate_per_second": _RATE,
    "overload.queue_requests": (1, 1 << 31),
    "overload.queue_seconds": _SECONDS,
    **{f"goodput.{name}": (1e-9, 1e7) for name in ("ttft_seconds", "tpot_seconds", "e2e_seconds")},
    **{f"deadlines.{name}_seconds": (1e-3, 1e7) for name in ("load", "prefill", "decode", "score")},
    **{f"validity.{name}_share": _SHARE for name in ("foreign_cpu", "cpu_pressure", "steal", "late_dispatch")},
    **{f"validity.{name}_seconds": _SHARE for name in ("floor", "late_dispatch")},
    "expect.low": (-1e18, 1e18),
    "expect.high": (-1e18, 1e18),
}
"""Least and most of each number, by its place in the file; what stands in a list or a table is held one by one."""

_KEYS_OF_A_USER = ("requests_of", "calibration", "offered_cells")
"""Tables whose keys are cells or labels."""

_MOST_PROMPTS = 10_000_000
_MOST_STAMPS = 1 << 30
_NAME_CHARACTERS = 200


def outside(scenario: Scenario) -> Iterator[tuple[str, object]]:
    """Yield (what was expected, what came) for every number, name and size that cannot be."""
    for place, value in _numbers("", msgspec.to_builtins(scenario)):
        low, high = _RANGES.get(place, (-math.inf, math.inf))
        if not low <= value <= high:
            yield f"{place} from {low:g} to {high:g}", value
    names = [("name", scenario.name), *(("variant", cell.variant) for cell in scenario.cells if cell.variant)]
    names += [("workload", name) for name in scenario.workloads]
    names += [("decoding", name) for name in scenario.decodings]
    for what, name in [*names, *(("expect.engine", claim.engine) for claim in scenario.expect)]:
        if not name.isprintable() or not 0 < len(name) <= _NAME_CHARACTERS:
            yield f"{what}: 1 to {_NAME_CHARACTERS} printable characters", repr(plain(name, 80))
    for claim in scenario.expect:
        if claim.low is not None and claim.high is not None and claim.low > claim.high:
            yield f"low <= high in what is expected of {claim.engine}", f"{claim.low:g} and {claim.high:g}"
    for cell in scenario.cells:
        if cell.arrival and cell.arrival != "trace" and not (cell.rate_per_second or 0) >= _LEAST_RATE:
            yield f"rate_per_second >= {_LEAST_RATE:g} in an open loop", cell.rate_per_second
        prompts: float = cell.concurrency * scenario.warmup_requests + scenario.requests_in(cell)
        prompts += PROMPTS_PER_SECOND * (scenario.seconds or 0.0)
        if not prompts <= _MOST_PROMPTS:
            yield f"at most {_MOST_PROMPTS} prompts in a cell of one launch", f"{prompts:.3g}"
        elif not prompts * cell.output_tokens <= _MOST_STAMPS:
            yield f"at most {_MOST_STAMPS} output tokens in a cell of one launch", f"{prompts * cell.output_tokens:.3g}"


def _numbers(place: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield each number of a scenario as builtins, with its place; variants of operations are held by their own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "json_schema":  # numbers of its own
                continue
            yield from _numbers(place if place in _KEYS_OF_A_USER else f"{place}.{key}".lstrip("."), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(place, inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value
