"""The engine `numpy_federation`: aggregators in plain NumPy, each a preset of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from enginecmp import EngineInfo, LoadOptions, ModelInfo, hookimpl
from enginecmp_federation import frames
from enginecmp_federation.aggregators import RULES
from enginecmp_federation.choice import AGGREGATOR, checked, chosen, presets
from enginecmp_federation.compression import Floats, Parts
from enginecmp_federation.planted import split


class NumpyAggregator:
    """One aggregator over the wire format of `frames` (`rounds.Aggregator`)."""

    node_codec = "enginecmp_federation.frames:NodeFrames"

    def __init__(self, name: str, attackers: int) -> None:
        self._rule, self._attackers = RULES[name], attackers

    def requests(self, round_number: int, adapter: Sequence[Floats], nodes: int) -> list[bytes]:
        """Return the same message for every node."""
        return [frames.request(round_number, adapter)] * nodes

    def opened(self, reply: bytes) -> tuple[Parts, int]:
        """Return a node's parts and examples."""
        return frames.unpacked(reply)

    def aggregate(self, deltas: Sequence[Sequence[Floats]], examples: Sequence[int]) -> list[Floats]:
        """Return the aggregate: all matrices of a node are one vector."""
        stacked = np.stack([np.concatenate([matrix.ravel() for matrix in delta]) for delta in deltas])
        shapes = [(matrix.shape[0], matrix.shape[1]) for matrix in deltas[0]]
        return split(np.asarray(self._rule(stacked, self._attackers, examples), np.float32), shapes)


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the engine's facts."""
    return EngineInfo(
        name="numpy_federation",
        version=version("numpy"),
        licence="BSD-3-Clause",
        devices=("cpu",),
        architectures=(),
        quantizations=(),
        environment={"OMP_NUM_THREADS": "{threads}", "OPENBLAS_NUM_THREADS": "{threads}"},
        tuned="nothing to tune: nodes, attackers and compression are the scenario's",
        operations=("federation",),
        option_names=(AGGREGATOR,),
        presets=presets("numpy", "in plain NumPy"),
        homepage="https://numpy.org",
    )


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> str:
    """Return the session: the aggregator's name. No model is read."""
    return chosen("numpy_federation", options)


@hookimpl
def cmp_operation(session: str, kind: str, parameters: Mapping[str, Any]) -> NumpyAggregator | None:
    """Return the server's side of a federation."""
    if kind != "federation":
        return None
    return NumpyAggregator(session, checked("numpy_federation", session, parameters))
