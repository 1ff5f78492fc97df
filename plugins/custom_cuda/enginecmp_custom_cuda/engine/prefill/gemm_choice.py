"""What multiplies prompts where nobody says: cuBLASLt where it is faster, works and fits, own kernels elsewhere.

On Hopper and later the tensor cores' full rate needs instructions that gemm_mma.cu does not use. Before, there are no
others, and own kernels read weights of half the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from enginecmp import EngineError

from .gemm import FINISH_ROWS, TENSOR_CORES, round_up

if TYPE_CHECKING:
    from ...device import Device
    from ...options import Settings
    from ...weights.model import DeviceMatrix, DeviceModel
    from .cublaslt_library import Library

LIBRARY_CAPABILITY = (9, 0)
"""From here on mma.sync, which the own kernels use, does not reach the tensor cores' rate; wgmma does."""

TRIAL = (64, 64, 16)
"""Rows, columns and tokens of the product that a library is tried with."""

EMULATED = "the device is emulated"


class Choice(NamedTuple):
    """What multiplies prompts.

    Attributes:
        gemm: "own" or "cublaslt".
        reason: why, in a few words; empty where the user asked for it.
    """

    gemm: str
    reason: str = ""


def choose_gemm(device: Device, model: DeviceModel, settings: Settings, needed_bytes: int) -> Choice:
    """Return what multiplies prompts; with "auto" nothing about the library is an error.

    Args:
        device: where; it must be idle.
        model: its weights there.
        settings: of the session.
        needed_bytes: of the device's free memory, for everything but the library.

    Raises:
        EngineError: cuBLASLt is asked for, and the device is none for it.
    """
    unsuited = _unsuited(device)
    if settings.gemm == "cublaslt" and unsuited == EMULATED:
        msg = f"custom_cuda: expected -o custom_cuda.gemm=own on {device.kind}, got cublaslt; it needs --device cuda"
        raise EngineError(msg)
    if settings.gemm != "auto":
        return Choice(settings.gemm)
    if settings.precise or not library_matrices(model):
        unsuited = unsuited or "activations are float32"
    if unsuited:
        return Choice("own", unsuited)
    needed, free = needed_bytes + library_bytes(model, settings.prefill_chunk), device.free_bytes()
    if needed > free:
        return Choice("own", f"cuBLASLt's copy of the weights would need {needed >> 20} MiB, {free >> 20} are free")
    from .cublaslt_library import open_library

    try:
        library = open_library()
        try_library(device, library)
    except EngineError as error:
        return Choice("own", str(error).removeprefix("custom_cuda: "))
    return Choice("cublaslt", f"cuBLASLt {library.version} of {library.path}")


def library_matrices(model: DeviceModel) -> list[DeviceMatrix]:
    """Return the matrices that the library multiplies: the layers', as far as tensor cores multiply their kind."""
    inner = [each for layer in model.layers for each in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    return [each for each in inner if each.kind in TENSOR_CORES]


def copied_bytes(model: DeviceModel, settings: Settings) -> int:
    """Return the bytes of the library's copy of the weights; 0 where it multiplies nothing.

    Args:
        model: its weights on the device.
        settings: with `gemm` chosen.
    """
    if settings.gemm != "cublaslt" or settings.precise:
        return 0
    return sum(2 * each.rows * each.columns for each in library_matrices(model))


def library_bytes(model: DeviceModel, tokens: int) -> int:
    """Return what the library takes of the device's memory: copies of weights, unfinished products, its workspace.

    Args:
        model: its weights on the device.
        tokens: most of a chunk of a prompt.
    """
    from .cublaslt import WORKSPACE_BYTES

    matrices = library_matrices(model)
    widest = max((round_up(each.rows, FINISH_ROWS) for each in matrices), default=0)
    return sum(2 * each.rows * each.columns for each in matrices) + 4 * round_up(tokens, 64) * widest + WORKSPACE_BYTES


def try_library(device: Device, library: Library) -> None:
    """Multiply something small, and wait for it.

    Raises:
        EngineError: the library does not run on this device.
    """
    from .cublaslt import Backend, Product

    rows, columns, tokens = TRIAL
    backend = Backend(device, library)
    memory = device.allocate(2 * (rows + tokens) * columns + 4 * rows * tokens, "a trial of cuBLASLt")
    try:
        device.fill(memory.address, memory.nbytes)
        a = memory.address + 2 * rows * columns
        product = Product(backend, memory.address, a, a + 2 * tokens * columns, TRIAL, rows, "bf16")
        product.launch()
        device.synchronize()
    finally:
        memory.free()
        backend.close()


def _unsuited(device: Device) -> str:
    """Return why the library is not for a device, or nothing."""
    if device.kind == "emulated":
        return EMULATED
    if device.capability < LIBRARY_CAPABILITY:
        return f"the device has compute capability {device.capability[0]}.{device.capability[1]}"
    return ""
