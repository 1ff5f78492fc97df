"""The worker's half: starts the nodes, and runs rounds whose messages and aggregation are the engine's.

What is an engine's own and what is not is settled here: nodes, compression and sockets are the same for all; what is
written on the wire, and how deltas become an aggregate, is the engine's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from enginecmp.errors import EngineError
from enginecmp_federation import planted, small_model
from enginecmp_federation.compression import Floats, decompressed
from enginecmp_federation.nodes import Nodes
from enginecmp_federation.rounds import Aggregator
from enginecmp_federation.settings import MOST_DRAWS, Parameters, parameters_of
from enginecmp_federation.wire import FRAMING_BYTES


class _Answer:
    """The draw, then the vector of every round; put into a matrix (rounds, 1 + values) after the clock has stopped."""

    ndim = 2

    def __init__(self, draw: int, rounds: list[list[Floats]]) -> None:
        self._draw, self._rounds = draw, rounds

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Floats:
        rows = [np.concatenate([[self._draw], *(matrix.ravel() for matrix in each)]) for each in self._rounds]
        return np.asarray(rows, np.float32)


class _Federation:
    """Runs all rounds of a federation at every call."""

    def __init__(self, aggregator: Aggregator, settings: Parameters, seed: int, draw: int) -> None:
        self._aggregator, self._settings, self._draw = aggregator, settings, draw
        if settings.task == "planted":
            self._shapes = planted.shapes_of(settings)
            self._start = [np.zeros(shape, np.float32) for shape in self._shapes]
        else:
            self._shapes = small_model.shapes_of(settings)
            self._start = small_model.start(settings, seed)
        self._nodes = Nodes("federation", aggregator.node_codec, settings, seed, draw)
        self._forget()

    def __call__(self) -> _Answer:
        """Run the rounds from the start; return what came of each: a delta where it is planted, else an adapter."""
        from enginecmp.clock import now_ns

        settings, adapter, found = self._settings, self._start, []
        for number in range(settings.rounds if settings.task == "training" else 1):
            start_ns = now_ns()
            requests = self._aggregator.requests(number, adapter, settings.nodes)
            replies = self._nodes.ask(requests)
            deltas, examples = [], []
            for reply in replies:
                parts, count = self._aggregator.opened(reply)
                deltas.append(decompressed(parts, settings.compression, self._shapes))
                examples.append(count)
            aggregation_ns = now_ns()
            aggregate = self._aggregator.aggregate(deltas, examples)
            end_ns = now_ns()
            adapter = [old + change for old, change in zip(adapter, aggregate, strict=True)]
            found.append(adapter)
            self._rounds += 1
            self._round_ns += end_ns - start_ns
            self._aggregation_ns += end_ns - aggregation_ns
            self._down_bytes += sum(map(len, requests))
            self._up_bytes += sum(map(len, replies))
        return _Answer(self._draw, found)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Means over the rounds since this was last read."""
        rounds, messages = self._rounds, self._rounds * self._settings.nodes
        if not rounds:
            return {}
        told = {
            "round_seconds": self._round_ns / rounds / 1e9,
            "aggregation_seconds": self._aggregation_ns / rounds / 1e9,
            "node_upload_bytes": self._up_bytes / messages + FRAMING_BYTES,
            "node_download_bytes": self._down_bytes / messages + FRAMING_BYTES,
            # Nodes are processes of the engine: their work is no load of others.
            "engine_cpu_seconds": self._nodes.cpu_seconds() - self._cpu_seconds,
        }
        self._forget()
        return told

    def _forget(self) -> None:
        self._rounds = self._round_ns = self._aggregation_ns = self._up_bytes = self._down_bytes = 0
        self._cpu_seconds = self._nodes.cpu_seconds()


def drive(hook: Any, session: Any, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return a call that runs the rounds of a federation; see `docs/measures.md`.

    The engine gets `parameters` through `cmp_operation(session, "federation", parameters)` and returns a
    `rounds.Aggregator`.

    Raises:
        EngineError: the engine's aggregator does not allow so many attackers, or the nodes did not come up.
    """
    settings = parameters_of({name: value for name, value in parameters.items() if name != "seed"})
    aggregator = hook.cmp_operation(session=session, kind="federation", parameters=parameters)
    if aggregator is None:
        return None
    if not hasattr(aggregator, "aggregate"):
        msg = (
            f"cmp_operation returned a {type(aggregator).__name__}, expected an enginecmp_federation.rounds.Aggregator"
        )
        raise EngineError(msg)
    draw = settings.draw or 1 + secrets.randbelow(MOST_DRAWS)
    return _Federation(aggregator, settings, parameters["seed"], draw)
