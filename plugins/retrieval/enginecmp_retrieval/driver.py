"""The worker's half: makes the patterns, lets the engine build its index, and calls it batch by batch.

What is an engine's own and what is not is settled here: patterns are made before the clock starts, building is timed by
this module, and a call is one search of the engine with its result kept as it is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp_retrieval.patterns import QUERIES, bank, keys, parameters_of

Search = Callable[[NDArray[np.float32]], NDArray[np.integer[Any]]]

_KEPT = 64
"""Answers of a sample that are judged: the last ones, of many more where a call takes microseconds."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class _Answer:
    """One batch: the number of its first query, then the ids; turned into numbers after the clock has stopped."""

    __slots__ = ("_first", "_ids")

    def __init__(self, first: int, ids: NDArray[np.integer[Any]]) -> None:
        self._first, self._ids = first, ids

    def __iter__(self) -> Iterator[int]:
        yield self._first
        yield from np.asarray(self._ids).ravel().tolist()


class _Batches:
    """Searches the next batch at every call.

    Attributes:
        metrics: of building the index.
    """

    def __init__(self, search: Search, queries: NDArray[np.float32], batch: int, metrics: Mapping[str, float]) -> None:
        self.metrics = metrics
        self._search = search
        self._batches = [(first, queries[first : first + batch]) for first in range(0, len(queries), batch)]
        self._next = 0
        self._answers: deque[_Answer] = deque(maxlen=_KEPT)

    def __call__(self) -> deque[_Answer]:
        """Search one batch; return the last ones."""
        first, queries = self._batches[self._next]
        self._next = (self._next + 1) % len(self._batches)
        self._answers.append(_Answer(first, self._search(queries)))
        return self._answers


def drive(hook: Any, session: Any, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return a call that searches one batch of queries in the engine's index; see `docs/measures.md`.

    The engine gets `parameters` with `keys`, (patterns, dimension + steps) float32 in C order, through
    `cmp_operation(session, "retrieval", parameters)`, builds its index (squared Euclidean distance; ids are rows) and
    returns a function from queries (batch, dimension + steps) to ids (batch, k), nearest first.
    """
    from enginecmp.clock import now_ns

    settings = parameters_of({name: value for name, value in parameters.items() if name != "seed"})
    made = bank(settings, parameters["seed"])
    stored, queries = keys(made.patterns, made.steps, settings), keys(made.queries, made.query_steps, settings)
    del made
    before_bytes = _resident_bytes()
    start_ns = now_ns()
    search = hook.cmp_operation(session=session, kind="retrieval", parameters={**parameters, "keys": stored})
    seconds = (now_ns() - start_ns) / 1e9
    if search is None:
        return None
    growth_bytes = max(0, _resident_bytes() - before_bytes)
    assert len(queries) == QUERIES
    metrics = {"index_build_seconds": seconds, "index_growth_bytes": float(growth_bytes)}
    return _Batches(search, queries, settings.batch, metrics)


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
