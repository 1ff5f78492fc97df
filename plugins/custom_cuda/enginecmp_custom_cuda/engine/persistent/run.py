"""The persistent kernel as an engine drives it: one launch hands out many tokens of one sequence.

It works on the buffers of a decode step of batch 1 and leaves them as steps do, so that the two can take turns. What a
model and a device must have for it says `plan.misfit`.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from enginecmp import EngineError

from ...compiling import EMULATED
from ...device import LostDeviceError, build
from ..decode.step import DecodeSettings, DecodeStep, defines
from .abort_diagnostics import STATUS_WORDS, abort_diagnostics
from .layout import RESULT_TILES, THREADS
from .params import Layer, Params
from .plan import plan_of, ring_of, unsuited
from .schedule import COUNTERS
from .validate import check_positions

if TYPE_CHECKING:
    from ...device import Device, Memory
    from ...weights.model import DeviceModel
    from ..decode.step import CacheLayout, DecodeBuffers

COUNTER_BYTES = 128
PATIENCE = 1 << 22
"""Polls before a block gives up: seconds on a GPU, where one takes about half a microsecond."""
EMULATED_PATIENCE = 1 << 30
"""The emulator itself finds out when nothing can go on."""


class PersistentDecoder:
    """Tokens of one sequence, many a launch.

    The sequence is number 0 of the block table and of the buffers. It enters with `begin` or `bind` as it does into a
    step, then every `enqueue` hands out so many ids through the ring of the buffers. The caller keeps pages behind
    every position that a launch may reach.

    Args:
        device: where.
        model: its weights.
        settings: how it computes; the same as of the step.
        cache: keys and values, elements of `settings.kv`.
        buffers: to work on; own ones when not given.
        portion: most tokens of a launch, for who asks.
        multiprocessors: that take part; all when not given.
        splits: of the positions in attention; fitting when not given.
        slots: of the ring of weights; as many as fit when not given.
        ring: "RING_BULK" or "RING_ASYNC", how weights get there; the device's best when not given.
        patience: polls after which a block gives up.
        result_tiles: tiles whose sums a block keeps before it stores them, 1 to the layout's.

    Attributes:
        portion: as given.
        schedule: that the kernel follows.
        step: a step on the same buffers.
        buffers: what both work on.

    Raises:
        EngineError: the model and the device do not go together; `plan.misfit` says why beforehand. Or one block for
            each multiprocessor is more than run at once.
    """

    def __init__(
        self,
        device: Device,
        model: DeviceModel,
        settings: DecodeSettings,
        cache: CacheLayout,
        buffers: DecodeBuffers | None = None,
        *,
        portion: int = 1,
        multiprocessors: int | None = None,
        splits: int | None = None,
        slots: int | None = None,
        ring: str | None = None,
        patience: int | None = None,
        result_tiles: int = RESULT_TILES,
    ) -> None:
        reason = unsuited(device, model)
        if not reason:
            self.schedule, faults = plan_of(
                device, model, settings, multiprocessors=multiprocessors, splits=splits, slots=slots
            )
            reason = f"expected a plan that fits, got {faults[0]}" if faults else None
        if reason:
            msg = f"custom_cuda: {reason}; pass -o custom_cuda.decoder=graph"
            raise EngineError(msg)
        if not 1 <= result_tiles <= RESULT_TILES:
            msg = f"custom_cuda: expected result_tiles 1 to {RESULT_TILES}, got {result_tiles}; pass another number"
            raise EngineError(msg)
        self.portion = portion
        self._device = device
        self._settings = settings
        self._model = model
        self._position = -1
        self._memory: list[Memory] = []
        self.step = DecodeStep(device, model, 1, settings, cache, buffers)
        self.buffers = self.step.buffers
        self._status = device.pinned(
            self.schedule.multiprocessors * STATUS_WORDS * 4, what="the blocks' abort diagnostics"
        )
        self._counters = self._allocate(COUNTERS * COUNTER_BYTES, "counters")
        names = defines(model.head.kind, settings.exact, settings.kv, model.config.head_dim, 1)
        module = build(device, "persistent", names | {"RING": ring or ring_of(device) or ""})
        self.module = module
        if patience is None:
            patience = EMULATED_PATIENCE if device.architecture == EMULATED else PATIENCE
        try:
            self._launch = device.prepare(
                module.kernel("decode_persistent"),
                self.schedule.multiprocessors,
                THREADS,
                self.schedule.layout.total,
                self._params(cache, patience, result_tiles),
                cooperative=True,
            )
        except EngineError as error:  # its blocks do not fit at once
            msg = f"{error}, or pass -o custom_cuda.decoder=graph"
            raise EngineError(msg) from error

    # A sequence

    def begin(self, position: int, x: int) -> None:
        """Take a sequence in after its prompt, and enqueue the choice of its first id, number 0 in the ring.

        Args:
            position: of the prompt's last token.
            x: address of that token's hidden state behind the last layer, float32 (hidden,).
        """
        self.step.begin(0, position, x)
        self._position = position + 1

    def bind(self, position: int, token: int) -> None:
        """Take a sequence in whose next token is known: it comes out of the ring as number 0.

        Args:
            position: of the token, which the next launch computes first.
            token: its id.
        """
        self.step.bind(0, position, token)
        self._position = position

    def enqueue(self, tokens: int) -> None:
        """Launch the kernel for so many tokens; their ids come through the ring.

        Raises:
            EngineError: there is no sequence, or no place for the tokens.
        """
        slots = self.buffers.ring.slots
        if not 1 <= tokens <= slots:
            msg = f"custom_cuda: expected 1 to {slots} tokens a launch, got {tokens}; pass fewer, or more ring_slots"
            raise EngineError(msg)
        positions = self._settings.positions
        if faults := check_positions(self._position, tokens, positions, self._model.positions):
            msg = f"custom_cuda: expected tokens that have a place, got {faults[0]}; begin a sequence, or pass fewer"
            raise EngineError(msg)
        self._device.fill(self._counters, COUNTERS * COUNTER_BYTES)
        self._launch.params.tokens = tokens
        self._launch.launch()
        self._position += tokens

    def synchronize(self) -> None:
        """Wait until everything is done.

        Raises:
            LostDeviceError: a block gave up, with what it had waited for.
        """
        try:
            self._device.synchronize()
        except LostDeviceError as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Give the memory back."""
        self.step.close()
        for memory in self._memory:
            memory.free()
        self._memory = []
        self._status.free()

    # Parts

    def _explained(self, error: LostDeviceError) -> LostDeviceError:
        """Return the error with what the blocks said before they gave up."""
        if not (words := abort_diagnostics(self._status.array, self.schedule)):
            return error
        return LostDeviceError(f"{error}; {words}", error.code)

    def _allocate(self, nbytes: int, what: str) -> int:
        self._memory.append(self._device.allocate(nbytes, what=f"the persistent kernel's {what}"))
        return self._memory[-1].address

    def _upload(self, array: NDArray[np.int32], what: str) -> int:
        address = self._allocate(array.nbytes, what)
        self._device.upload(address, array)
        return address

    def _params(self, cache: CacheLayout, patience: int, result_tiles: int) -> Params:
        model, config, buffers, schedule = self._model, self._model.config, self.buffers, self.schedule
        layers = (Layer * config.layers)()
        for number, layer in enumerate(model.layers):
            layers[number].matrix[:] = [int(each) for each in schedule.bases[number]]
            layers[number].attention_norm = layer.attention_norm
            layers[number].ffn_norm = layer.ffn_norm
            layers[number].bias = layer.qkv_bias
            layers[number].pages = cache.layer_address(number)
        layers_at = self._allocate(ctypes.sizeof(layers), "addresses")
        self._device.upload(layers_at, bytes(layers))
        layout, heads = schedule.layout, config.heads * schedule.splits
        best = self._allocate(schedule.multiprocessors * 8, "best ids")
        self._device.fill(best, schedule.multiprocessors * 8)  # for blocks without a row of the head
        return Params(
            rows=self._upload(schedule.rows, "plan"),
            offsets=self._upload(schedule.offsets, "plan's offsets"),
            layers=layers_at,
            counters=self._counters,
            per_token=(ctypes.c_int32 * COUNTERS)(*schedule.per_token.tolist()),
            layers_at=layout.layers,
            barriers_at=layout.barriers,
            activation_at=layout.activation,
            results_at=layout.results,
            scratch_at=layout.scratch,
            ring_at=layout.ring,
            slot_bytes=layout.slot_bytes,
            slots=layout.slots,
            result_tiles=result_tiles,
            head=model.head.address,
            embedding=model.embedding.address,
            output_norm=model.output_norm,
            rope=model.rope,
            table=cache.table_address,
            x=buffers.x,
            q=buffers.q,
            partial=self._allocate(heads * config.head_dim * 4, "attention"),
            partial_ml=self._allocate(heads * 8, "attention's sums"),
            h=buffers.h,
            logits=buffers.logits,
            best=best,
            token=buffers.token,
            position=buffers.position,
            count=buffers.count,
            ring=buffers.ring.address,
            status=self._status.address,
            ring_slots=buffers.ring.slots,
            ring_stride=buffers.ring.stride,
            layer_count=config.layers,
            hidden=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            inner=config.feed_forward,
            vocabulary=model.head.rows,
            rope_dims=config.rope.dimensions,
            splits=schedule.splits,
            patience=patience,
            epsilon=config.epsilon,
        )
