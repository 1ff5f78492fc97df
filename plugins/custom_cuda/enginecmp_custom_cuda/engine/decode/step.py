"""The decode step: one token of each of up to 8 sequences, as launches, and as graphs of them.

A step is, for every layer, qkv, attention, output, gate_up and down, then head and next, which chooses the id, hands it
to the host through a ring, and looks up its embedding: the state in which the following step begins. So steps follow
one another without the host. What each kernel gets of the device is decided in `geometry.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from enginecmp import EngineError

from ...device import build
from ...weights.kinds import KINDS
from ..memory import params
from . import geometry
from .buffers import DecodeBuffers, DecodeSettings

if TYPE_CHECKING:
    from ...device import Device, Module
    from ...device.graph import Graph
    from ...device.module import Grid, Launch
    from ...weights.model import DeviceMatrix, DeviceModel

BATCHES = (1, 2, 4, 8)
ELEMENT_BYTES = {"f16": 2, "f32": 4}


class CacheLayout(Protocol):
    """Where keys and values are; `pages.Cache` is one."""

    @property
    def table_address(self) -> int:
        """Of the block tables, int32 (slots, table_stride); row b is of the step's sequence b."""
        ...

    @property
    def table_stride(self) -> int:
        """Entries of a row."""
        ...

    def layer_address(self, layer: int) -> int:
        """Return where a layer's pages begin."""
        ...


@dataclass(frozen=True)
class Phase:
    """Neighbouring launches of a step that are measured as one.

    Attributes:
        name: "qkv", "attention", "output", "ffn", "lm_head" or "next".
        launches: in order.
        nbytes: of weights that they read.
    """

    name: str
    launches: tuple[Launch, ...]
    nbytes: int


class DecodeStep:
    """The launches of one step for a batch size.

    Sequence b uses row b of the block table and of every buffer. A sequence enters with `begin` or `bind` and leaves
    with `end`; steps in between advance it. The caller keeps pages behind every position that a step may reach, never
    enqueues steps beyond the cache's capacity, and at most `ring_slots` ahead of the ids it has taken.

    Args:
        device: where.
        model: its weights.
        batch: 1, 2, 4 or 8.
        settings: how it computes.
        cache: keys and values, elements of `settings.kv`.
        buffers: to work on; own ones when not given.

    Attributes:
        batch: sequences.
        buffers: what it works on.
        phases: its launches, in order.
        nbytes: of weights that a step reads, the embedding's rows apart.

    Raises:
        EngineError: not a batch size, or one whose activations the device's shared memory cannot hold.
    """

    def __init__(
        self,
        device: Device,
        model: DeviceModel,
        batch: int,
        settings: DecodeSettings,
        cache: CacheLayout,
        buffers: DecodeBuffers | None = None,
    ) -> None:
        if batch not in BATCHES:
            msg = f"custom_cuda: expected a batch of {', '.join(map(str, BATCHES))}, got {batch}; take the next larger"
            raise EngineError(msg)
        self.batch = batch
        self.buffers = buffers or DecodeBuffers(device, model.config, batch, settings)
        self._owns_buffers = buffers is None
        if self.buffers.batch < batch or (settings.logits and not self.buffers.logits):
            msg = f"custom_cuda: expected buffers for {batch} sequences, got {self.buffers.batch}; allocate larger ones"
            raise EngineError(msg)
        self._device = device
        self._model = model
        self._settings = settings
        self._cache = cache
        self._graphs: dict[int, Graph] = {}
        self._grid = geometry.attention_grid(
            model.config.heads,
            model.config.kv_heads,
            model.config.head_dim,
            ELEMENT_BYTES[settings.kv],
            batch,
            settings.positions,
            device.multiprocessors,
        )
        self.phases = tuple(
            phase for layer in range(model.config.layers) for phase in self._layer(layer)
        ) + self._ending(self.buffers.position)
        self.nbytes = sum(phase.nbytes for phase in self.phases)
        # The same head for one sequence alone, from a hidden state anywhere.
        self._entry = [phase.launches[0] for phase in self._ending(self.buffers.active)]
        self._begin = self._prepare(
            self._module(model.head.kind), "begin", 1, params.Begin(**self._state()), block=32, overlap=False
        )

    # Steps

    def enqueue(self, between: Callable[[str], None] | None = None) -> None:
        """Launch one step.

        Args:
            between: called with a phase's name after its launches, for instance to record an event.
        """
        for phase in self.phases:
            for launch in phase.launches:
                launch.launch()
            if between is not None:
                between(phase.name)

    def graph(self, steps: int = 1) -> Graph:
        """Return a graph of so many steps, captured at the first call."""
        if steps not in self._graphs:
            with self._device.capture() as capture:
                for _ in range(steps):
                    self.enqueue()
            self._graphs[steps] = capture.graph
        return self._graphs[steps]

    # Sequences

    def begin(self, slot: int, position: int, x: int) -> None:
        """Take a sequence in after its prompt, and enqueue the choice of its first id, number 0 in the ring.

        Nothing of the slot's last sequence may be under part; the other sequences stay as they are.

        Args:
            slot: below `batch`.
            position: of the prompt's last token.
            x: address of that token's hidden state behind the last layer, float32 (hidden,).
        """
        self._place(slot, position, -1)
        head, following = self._entry
        # The head reads row `slot` only: the other rows lie wherever they do.
        head.params.x = x - slot * self._model.config.width * 4
        head.launch()
        following.launch()

    def bind(self, slot: int, position: int, token: int) -> None:
        """Take a sequence in whose next token is known: it comes out of the ring as number 0.

        Args:
            slot: below `batch`.
            position: of the token, which the next step computes.
            token: its id.
        """
        self._place(slot, position - 1, token)
        self._entry[1].launch()

    def end(self, slot: int) -> None:
        """Let a sequence go: steps enqueued from here on leave the slot alone."""
        self._enqueue_begin(slot, -1, -1)

    def close(self) -> None:
        """Give graphs, and buffers of its own, back."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs = {}
        if self._owns_buffers:
            self.buffers.close()

    # Parts

    def _place(self, slot: int, at: int, token: int) -> None:
        self.buffers.ring.clear(slot)
        self._enqueue_begin(slot, at, token)

    def _enqueue_begin(self, slot: int, at: int, token: int) -> None:
        assert 0 <= slot < self.batch, "no such slot"
        begin = self._begin.params
        begin.slot, begin.at, begin.token = slot, at, token
        self._begin.launch()

    def _layer(self, number: int) -> tuple[Phase, ...]:
        """Return the phases of a layer."""
        config, buffers, layer = self._model.config, self.buffers, self._model.layers[number]
        cache = params.Cache(
            self._cache.layer_address(number), self._cache.table_address, self._cache.table_stride, config.kv_heads
        )
        splits = {"heads": config.heads, "splits": self._grid.splits}
        partial = {"partial": buffers.partial, "partial_ml": buffers.partial_ml, "position": buffers.position}
        qkv = params.Qkv(
            x=buffers.x,
            norm=layer.attention_norm,
            bias=layer.qkv_bias,
            rope=self._model.rope,
            position=buffers.position,
            q=buffers.q,
            cache=cache,
            epsilon=config.epsilon,
            heads=config.heads,
            rope_dims=config.rope.dimensions,
        )
        attention = params.Attention(q=buffers.q, cache=cache, **partial, **splits)
        output = params.Output(x=buffers.x, **partial, **splits)
        gate_up = params.GateUp(
            x=buffers.x, norm=layer.ffn_norm, position=buffers.position, h=buffers.h, epsilon=config.epsilon
        )
        down = params.Down(h=buffers.h, position=buffers.position, x=buffers.x)
        module = self._module(layer.qkv.kind)
        return (
            Phase("qkv", (self._multiply("qkv", layer.qkv, qkv),), layer.qkv.nbytes),
            Phase("attention", (self._prepare(module, "attention", self._grid.grid, attention),), 0),
            Phase("output", (self._multiply("output", layer.output, output),), layer.output.nbytes),
            Phase(
                "ffn",
                (self._multiply("gate_up", layer.gate_up, gate_up), self._multiply("down", layer.down, down)),
                layer.gate_up.nbytes + layer.down.nbytes,
            ),
        )

    def _ending(self, active: int) -> tuple[Phase, ...]:
        """Return head and next for the sequences whose entry at the address `active` is not below 0."""
        buffers, model = self.buffers, self._model
        state = self._state()
        head = params.Head(
            x=buffers.x,
            norm=model.output_norm,
            position=active,
            logits=buffers.logits if self._settings.logits else 0,
            best=buffers.best,
            epsilon=model.config.epsilon,
        )
        following = params.Next(
            table=params.matrix_of(model.embedding),
            token=buffers.token,
            ring=buffers.ring.address,
            x=buffers.x,
            ring_slots=buffers.ring.slots,
            ring_stride=buffers.ring.stride,
            **state | {"active": active},
        )
        module = self._module(model.embedding.kind)
        return (
            Phase("lm_head", (self._multiply("head", model.head, head),), model.head.nbytes),
            Phase("next", (self._prepare(module, "next", self.batch, following),), 0),
        )

    def _state(self) -> dict[str, int]:
        buffers = self.buffers
        return {each: getattr(buffers, each) for each in ("position", "active", "count", "best")}

    def _multiply(self, name: str, matrix: DeviceMatrix, arguments: ctypes.Structure) -> Launch:
        """Return the launch of a matrix kernel; fills in the matrix and its split-K."""
        quantized = self._quantized(matrix.kind)
        grid = geometry.matrix_grid(
            matrix.rows, matrix.columns, matrix.kind, quantized, self.batch, self._device.multiprocessors
        )
        arguments.w = params.matrix_of(matrix)
        arguments.split_k = grid.split_k
        return self._prepare(self._module(matrix.kind), name, grid.blocks, arguments, grid.shared_bytes)

    def _prepare(
        self,
        module: Module,
        name: str,
        grid: Grid,
        arguments: ctypes.Structure,
        shared_bytes: int = 0,
        block: int = geometry.THREADS,
        overlap: bool = True,
    ) -> Launch:
        kernel = module.kernel(name)
        need = kernel.static_shared_bytes + shared_bytes
        if need > self._device.shared_bytes:
            msg = (
                f"custom_cuda: expected at most {self._device.shared_bytes} bytes of shared memory a block "
                f"({self._device.name}), got {need} of {name} for {self.batch} sequences; pass fewer sequences"
            )
            raise EngineError(msg)
        overlap = overlap and self._settings.overlap
        return self._device.prepare(kernel, grid, block, shared_bytes, arguments, overlap=overlap)

    def _quantized(self, kind: str) -> bool:
        return KINDS[kind].scaled and not self._settings.exact

    def _module(self, kind: str) -> Module:
        config, settings = self._model.config, self._settings
        return build(self._device, "decode", defines(kind, settings.exact, settings.kv, config.head_dim, self.batch))


def defines(kind: str, exact: bool, kv: str, head_dim: int, batch: int) -> dict[str, str]:
    """Return what kernels/decode.cu is compiled with for matrices of a kind.

    Args:
        kind: a name from `weights.kinds.KINDS`.
        exact: float32 activations also where weights are integers.
        kv: "f16" or "f32".
        head_dim: length of a head.
        batch: sequences of a step.
    """
    return {
        "WEIGHT": f"WEIGHT_{kind}",
        "ACTIVATION": "ACTIVATION_Q8" if KINDS[kind].scaled and not exact else "ACTIVATION_F32",
        "KV": f"KV_{kv.upper()}",
        "HEAD_DIM": str(head_dim),
        "BATCH": str(batch),
    }


__all__ = [
    "BATCHES",
    "ELEMENT_BYTES",
    "CacheLayout",
    "DecodeBuffers",
    "DecodeSettings",
    "DecodeStep",
    "Phase",
    "defines",
]
