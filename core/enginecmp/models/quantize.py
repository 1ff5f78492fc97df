"""Derive another quantization of a weights file: metadata copied byte for byte, tensors converted one by one.

Every matrix gets the asked type ("pure"): no per-tensor mix is made up, so two engines reading the file are
compared on one kernel. Dequantization to F32 is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enginecmp.errors import ModelError, UsageError, did_you_mean
from enginecmp.models.ggml_types import GGML_TYPE_NUMBERS, GGML_TYPES
from enginecmp.models.gguf_file import GGUFFile, TensorInfo, read_gguf
from enginecmp.models.gguf_split import SPLIT_KEYS
from enginecmp.models.gguf_write import TensorPlan, encode_weights, field, write_gguf
from enginecmp.models.info import describe
from enginecmp.models.paths import named_in_utf8
from enginecmp.types import ModelInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""The types that can be derived, with their number in `general.file_type` (llama.cpp's llama_ftype)."""

QUANTIZATION_VERSION = 2
"""Value of `general.quantization_version`: the block layouts of gguf-py (GGML_QNT_VERSION)."""

CHUNK_WEIGHTS = 2**22
"""Weights converted at once: bounds the memory, whatever the tensor."""

# llama.cpp looks these up by row and adds them to float32; it never quantizes them itself.
_ALWAYS_F32 = ("position_embd.weight", "token_types.weight", "rope_freqs.weight")


def planned_type(name: str, shape: Sequence[int], quantization: str) -> str:
    """Return the type that a tensor gets in a file of the given quantization.

    Norms and biases (one dimension) stay F32, and so do position embeddings; a matrix whose rows are not whole
    blocks falls back to F16.
    """
    if len(shape) == 1 or name in _ALWAYS_F32:
        return "F32"
    block = GGML_TYPES[GGML_TYPE_NUMBERS[quantization]].block
    return quantization if shape[-1] % block == 0 else "F16"


def quantize(
    source: Path | str, target: Path | str, quantization: str, *, name: str | None = None
) -> tuple[ModelInfo, list[str]]:
    """Write `source` again with its matrices in another type.

    The same source gives the same bytes.

    Args:
        source: any GGUF file that gguf-py can dequantize.
        target: the file to write; it appears when it is whole.
        quantization: one of `FILE_TYPES`, in any case.
        name: how people call the result.

    Returns:
        What the result is, and one note a kind of tensor that did not get the asked type.

    Raises:
        UsageError: a type that cannot be derived.
        ModelError: the source is not well-formed or cannot be dequantized, or the target cannot be written.
    """
    quantization = quantization.upper()
    if quantization not in FILE_TYPES:
        msg = f"quantize: expected a type that can be derived, got '{quantization}'"
        raise UsageError(msg + did_you_mean(quantization, FILE_TYPES))
    file, target = read_gguf(source), Path(target)
    refuse_undequantizable(file)
    if target.exists() and any(target.samefile(part) for part in file.parts or (file.path,)):
        msg = f"quantize: expected another file as the result, got the source {target} itself"
        raise UsageError(msg)
    named_in_utf8(target)
    plans = [
        TensorPlan(name=t.name, shape=t.shape, type=planned_type(t.name, t.shape, quantization))
        for t in file.tensors.values()
    ]
    sha256 = write_gguf(
        target,
        _fields(file, _file_type(quantization)),
        plans,
        lambda plan: _convert(file, file.tensors[plan.name], plan.type),
        file.alignment,
    )
    fallen = [plan.name for plan in plans if len(plan.shape) > 1 and plan.type != quantization]
    notes = [f"{len(fallen)} tensors did not become {quantization}: {', '.join(fallen[:3])}"] if fallen else []
    return describe(target, name=name, sha256=sha256), notes


def refuse_undequantizable(file: GGUFFile) -> None:
    """Refuse a file with a tensor type that gguf-py cannot turn into float32.

    Raises:
        ModelError: naming the tensor and its type.
    """
    import gguf
    import numpy as np

    for kind in {tensor.type for tensor in file.tensors.values()}:
        block_bytes = GGML_TYPES[GGML_TYPE_NUMBERS[kind]].block_bytes
        try:
            gguf.dequantize(np.zeros((1, block_bytes), np.uint8), gguf.GGMLQuantizationType[kind])
        except NotImplementedError as error:
            name = next(tensor.name for tensor in file.tensors.values() if tensor.type == kind)
            msg = f"{file.path}: expected tensor '{name}' in a type that can be dequantized, got {kind}"
            raise ModelError(msg) from error


def merge(model: ModelInfo, target: Path) -> ModelInfo:
    """Write a split model as one file: its metadata and tensors byte for byte.

    Raises:
        ModelError: the parts are not well-formed, or the target cannot be written.
    """
    file = read_gguf(model.path)
    plans = [TensorPlan(name=t.name, shape=t.shape, type=t.type) for t in file.tensors.values()]
    sha256 = write_gguf(
        target,
        _fields(file, {}),
        plans,
        lambda plan: _convert(file, file.tensors[plan.name], plan.type),
        file.alignment,
    )
    return describe(target, name=model.name, sha256=sha256)


def _fields(file: GGUFFile, renewed: dict[str, bytes]) -> list[bytes]:
    """Return the source's metadata as bytes, some fields renewed, without those of a split model."""
    with file.path.open("rb") as content:
        copied = {}
        for key, (start, end) in file.spans.items():
            content.seek(start)
            copied[key] = content.read(end - start)
    return [encoded for key, encoded in (copied | renewed).items() if key not in SPLIT_KEYS]


def _file_type(quantization: str) -> dict[str, bytes]:
    """Return the two fields that name a quantization."""
    return {
        "general.file_type": field("general.file_type", "UINT32", FILE_TYPES[quantization]),
        "general.quantization_version": field("general.quantization_version", "UINT32", QUANTIZATION_VERSION),
    }


def _convert(file: GGUFFile, tensor: TensorInfo, kind: str) -> Iterator[bytes]:
    """Yield a tensor's bytes in another type, a few rows at a time."""
    import gguf

    raw = file.raw(tensor.name)
    rows: NDArray[np.uint8] = raw.reshape(-1, raw.shape[-1])
    step = max(1, CHUNK_WEIGHTS // tensor.shape[-1])
    for first in range(0, len(rows), step):
        piece = rows[first : first + step]
        if tensor.type == kind:
            yield piece.tobytes()
        else:
            yield encode_weights(gguf.dequantize(piece, gguf.GGMLQuantizationType[tensor.type]), kind)
