"""Drawing ids on the device: how the kernels of kernels/sampling.cu are launched."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ...device import build
from ...device.memory import Memory

if TYPE_CHECKING:
    from ...device import Device
    from ...device.graph import Graph
    from ...device.module import Launch

THREADS = 256
BINS = 2048
BIN_BYTES = 16
CUT_BYTES = 48
IDS_A_THREAD = 8
"""Ids that a thread of a large vocabulary looks at: enough blocks to read it at the memory's speed."""

TOP_K, TOP_P = 0, 1
"""Stages of gather and cut."""


class Strategy(msgspec.Struct, frozen=True, kw_only=True):
    """How an id is chosen; the filters come in this order.

    Attributes:
        temperature: divides the logits; 0 takes the largest and nothing else counts.
        top_k: how many of the most likely ids stay; 0 keeps all.
        top_p: of these the fewest most likely stay whose probabilities reach this; 1 keeps all.
        seed: of the noise, below 2**64.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class SamplingParams(ctypes.Structure):
    """Mirror of the struct of the same name in kernels/sampling.cu."""

    _fields_ = (
        ("logits", ctypes.c_uint64),
        ("largest", ctypes.c_uint64),
        ("position", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("best", ctypes.c_uint64),
        ("drawn", ctypes.c_uint64),
        ("arrived", ctypes.c_uint64),
        ("bins", ctypes.c_uint64),
        ("cut", ctypes.c_uint64),
        ("codes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("vocabulary", ctypes.c_int32),
        ("stage", ctypes.c_int32),
    )


class Sampler:
    """The sampling kernels over rows of logits that lie on the device.

    They run between a step's `head` and its `next`: `best` holds the greedy choice before and the drawn one after.

    Args:
        device: where.
        logits: address of float32 (rows, vocabulary).
        largest: address of uint64 (rows,), ordered bits of each row's largest logit in the high word; may be `best`.
        position: address of int32 (rows,); a row below 0 is left alone.
        count: address of int32 (rows,), ids that each request has been given before: every count draws anew.
        best: address of uint64 (rows,), what `next` reads.
        rows: sequences.
        vocabulary: ids.
    """

    def __init__(
        self,
        device: Device,
        *,
        logits: int,
        largest: int,
        position: int,
        count: int,
        best: int,
        rows: int,
        vocabulary: int,
    ) -> None:
        self._device = device
        self._module = build(device, "sampling", {})
        self._rows = rows
        self._blocks = max(1, min(device.multiprocessors, -(-vocabulary // (THREADS * IDS_A_THREAD))))
        self._addresses = {"logits": logits, "largest": largest, "position": position, "count": count, "best": best}
        self._vocabulary = vocabulary
        self._scratch: dict[str, Memory] = {}
        # Zero between steps: every kernel leaves it as it found it.
        for name, nbytes in (("drawn", 8), ("arrived", 4), ("cut", CUT_BYTES)):
            self._allocate(name, nbytes)

    def launches(self, strategy: Strategy, rows: int | None = None) -> list[Launch]:
        """Return the launches of one draw, in order.

        Args:
            strategy: how to choose.
            rows: only the first so many; all when None.
        """
        rows = self._rows if rows is None else rows
        grid = (self._blocks, rows, 1)
        names: list[tuple[str, tuple[int, int, int], int]] = []
        if strategy.temperature > 0:
            stages = [TOP_K] * (strategy.top_k > 0) + [TOP_P] * (strategy.top_p < 1)
            if stages:
                # Filters alone need these, and a batch that chooses greedily never has any.
                self._allocate("bins", BINS * BIN_BYTES)
                self._allocate("codes", self._vocabulary * 8)
                names.append(("sampling_histogram", grid, 0))
            for stage in stages:
                names += [("sampling_gather", grid, stage), ("sampling_cut", (1, rows, 1), stage)]
        names.append(("sampling_draw", grid, 0))
        return [
            self._device.prepare(self._module.kernel(name), extent, THREADS, 0, self._params(strategy, stage))
            for name, extent, stage in names
        ]

    def _allocate(self, name: str, row_bytes: int) -> None:
        if name not in self._scratch:
            memory = self._device.allocate(self._rows * row_bytes, f"sampling ({name})")
            self._device.fill(memory.address, memory.nbytes)
            self._scratch[name] = memory

    def close(self) -> None:
        """Free the scratch memory."""
        for memory in self._scratch.values():
            memory.free()

    def _params(self, strategy: Strategy, stage: int) -> SamplingParams:
        greedy = strategy.temperature == 0
        return SamplingParams(
            **self._addresses,
            **{name: memory.address for name, memory in self._scratch.items()},
            seed=strategy.seed & 0xFFFFFFFFFFFFFFFF,
            temperature=strategy.temperature,
            top_p=1.0 if greedy else strategy.top_p,
            top_k=0 if greedy else strategy.top_k,
            vocabulary=self._vocabulary,
            stage=stage,
        )


class Draws:
    """Draws from one row of logits, one id a call: a graph of the kernels, and the id in memory that the host sees.

    Args:
        device: where.
        logits: address of float32 (vocabulary,); copied.
        vocabulary: ids.
        strategy: how to choose.
    """

    def __init__(self, device: Device, logits: int, vocabulary: int, strategy: Strategy) -> None:
        self._device = device
        self._logits = device.allocate(4 * vocabulary, "logits to draw from")
        device.copy(self._logits.address, logits, 4 * vocabulary)
        self._largest = device.allocate(8, "the largest logit")
        self._position = device.allocate(4, "the position to draw at")
        device.fill(self._position.address, 4)
        self._shared = device.pinned(16, "the drawn id")  # best: 8 bytes, count: 4
        self._best = self._shared.array[:8].view(np.uint64)
        self._count = self._shared.array[8:12].view(np.int32)
        self._sampler = Sampler(
            device,
            logits=self._logits.address,
            largest=self._largest.address,
            position=self._position.address,
            count=self._shared.address + 8,
            best=self._shared.address,
            rows=1,
            vocabulary=vocabulary,
        )
        for launch in self._sampler.launches(Strategy(temperature=0)):
            launch.launch()
        device.copy(self._largest.address, self._shared.address, 8)
        device.synchronize()
        launches = self._sampler.launches(strategy)
        with device.capture() as capture:
            for launch in launches:
                launch.launch()
        self._graph = capture.graph
        # The callable that the worker holds is all that knows of this object: with it goes the memory.
        weakref.finalize(self, _let_go, self._graph, self._sampler, (self._logits, self._largest, self._position))
        weakref.finalize(self, self._shared.free)

    def draw(self) -> int:
        """Return one id; each call is a step further in the noise."""
        self._graph.launch()
        self._device.synchronize()
        self._count[0] += 1
        return 0xFFFFFFFF - (int(self._best[0]) & 0xFFFFFFFF)


def _let_go(graph: Graph, sampler: Sampler, memories: tuple[Memory, ...]) -> None:
    """Free what a `Draws` held."""
    graph.close()
    sampler.close()
    for memory in memories:
        memory.free()


def strategy_of(parameters: Mapping[str, Any]) -> Strategy:
    """Return how ids are chosen, by an operation's `temperature`, `top_k`, `top_p` and `seed`; docs/hooks.md."""
    return Strategy(
        temperature=float(parameters["temperature"]),
        top_k=int(parameters["top_k"]),
        top_p=float(parameters["top_p"]),
        seed=int(parameters["seed"]),
    )
