"""What a session is made of, by its settings: how prompts are multiplied, which steps there are, what launches them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from enginecmp import EngineError, LoadOptions

from ..device import DriverError
from .decode.step import BATCHES, DecodeBuffers, DecodeSettings, DecodeStep
from .decode.stream import Steps
from .memory.pages import ELEMENT_BYTES, PAGE_TOKENS, pages_for
from .prefill.gemm_choice import Choice, choose_gemm, library_bytes
from .prefill.prefill import Prefill

if TYPE_CHECKING:
    from ..device import Device
    from ..options import Settings
    from ..weights.model import DeviceModel
    from .decode.stream import Launcher
    from .memory.pages import Cache

RING_SLOTS = 64

SPARE_BYTES = 256 << 20
"""Of a GPU's memory, left for sums of split products and for what the driver loads later."""


def spare_bytes(device: Device, model: DeviceModel, settings: Settings, tokens: int, sequences: int) -> int:
    """Return how much of the device's free memory the KV cache must leave to others, generously.

    Args:
        device: where.
        model: its weights.
        settings: of the session.
        tokens: most of a chunk of a prompt.
        sequences: most at once.
    """
    config = model.config
    widest = max(config.width, config.feed_forward, config.heads * config.head_dim)
    spare = (tokens + 64) * 4 * (config.width + 2 * config.heads * config.head_dim + config.feed_forward + 2 * widest)
    spare += (2 * sequences + 64) * config.vocabulary * 4  # logits, also those of a score
    if device.timed:
        spare += SPARE_BYTES
    if settings.gemm == "cublaslt":
        spare += library_bytes(model, tokens)
    return spare


def settle_gemm(
    device: Device, model: DeviceModel, settings: Settings, spare: int, options: LoadOptions
) -> tuple[Settings, Choice]:
    """Return the settings with "auto" replaced by what it becomes here, and why.

    Args:
        device: where.
        model: its weights.
        settings: what was asked for.
        spare: from `spare_bytes`, without the library.
        options: how many tokens the KV cache is to hold.

    Raises:
        EngineError: cuBLASLt is asked for on the emulated device.
    """
    config = model.config
    token_bytes = config.layers * config.kv_heads * 2 * config.head_dim * ELEMENT_BYTES[settings.kv]
    cache = pages_for(options.context_tokens) * options.max_sequences * PAGE_TOKENS * token_bytes
    choice = choose_gemm(device, model, settings, cache + spare)
    return msgspec.structs.replace(settings, gemm=choice.gemm), choice


def prefill_of(device: Device, model: DeviceModel, cache: Cache, settings: Settings, max_tokens: int) -> Prefill:
    """Return what runs prompts; by own kernels where `gemm` is not settled.

    Raises:
        EngineError: cuBLASLt is asked for and not here, or there is no room.
    """
    if settings.gemm != "cublaslt":
        return Prefill(device, model, cache, precise=settings.precise, max_tokens=max_tokens)
    from .prefill.cublaslt import Backend
    from .prefill.cublaslt_library import open_library

    library = Backend(device, open_library())
    prefill = Prefill(device, model, cache, precise=settings.precise, max_tokens=max_tokens, library=library)
    # Copies of the weights are made with the first launches: now, not in somebody's prompt.
    prefill.program(16, True)
    return prefill


def decoding_of(settings: Settings, context_tokens: int) -> DecodeSettings:
    """Return how steps compute."""
    return DecodeSettings(
        positions=context_tokens,
        kv=settings.kv,
        exact=settings.precise,
        overlap=settings.overlap,
        ring_slots=max(RING_SLOTS, 2 * settings.ahead),
    )


def steps_of(
    device: Device, model: DeviceModel, cache: Cache, decoding: DecodeSettings, buffers: DecodeBuffers, graphs: bool
) -> dict[int, DecodeStep]:
    """Return a decode step for every batch size that the buffers hold and that fits.

    A block keeps all sequences' activations in its shared memory, so large batches of wide models may not fit; such
    passes go through the kernels of prompts.
    """
    steps: dict[int, DecodeStep] = {}
    for batch in (each for each in BATCHES if each <= buffers.batch):
        try:
            steps[batch] = DecodeStep(device, model, batch, decoding, cache, buffers)
        except EngineError as error:
            if batch == 1 or isinstance(error, DriverError):
                raise
            break
        if graphs:
            steps[batch].graph()
    return steps


def launcher_of(
    device: Device, model: DeviceModel, cache: Cache, settings: Settings, decoding: DecodeSettings, step: DecodeStep
) -> Launcher:
    """Return what launches the steps of one sequence.

    Raises:
        EngineError: the persistent kernel is asked for, and model and device do not suit it.
    """
    if settings.decoder != "persistent":
        return Steps(device, step, graph=settings.decoder == "graph")
    from .persistent.run import PersistentDecoder

    return PersistentDecoder(device, model, decoding, cache, step.buffers, portion=settings.ahead)


def largest_step(max_sequences: int) -> int:
    """Return the batch size that steps for so many sequences need, as far as there is one."""
    return next((batch for batch in BATCHES if batch >= max_sequences), BATCHES[-1])
