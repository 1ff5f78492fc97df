"""A model's weights on the device: one allocation, filled in bounded pieces straight from the mapped file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginecmp import GGUFFile

from ..config import ModelConfig, read_config
from ..device import OutOfMemoryError
from ..device.memory import size_text
from .packing import packed_bytes
from .plan import MatrixPlan, ModelPlan, plan_model

if TYPE_CHECKING:
    from ..device import Device, Memory
    from .plan import Item

ALIGNMENT = 256
"""Of everything on the device, in bytes; at least as much is left free behind it, so that a kernel that reads past an
end reads what nobody wrote."""


@dataclass(frozen=True)
class DeviceMatrix:
    """One packed matrix on the device; its layout is in `packing`.

    Attributes:
        address: of the first byte, a multiple of 256.
        rows: true rows.
        columns: a multiple of 32.
        kind: a name from `kinds.KINDS`.
        nbytes: size, the last tile's padding included.
    """

    address: int
    rows: int
    columns: int
    kind: str
    nbytes: int


@dataclass(frozen=True)
class DeviceLayer:
    """One layer; norms and biases are addresses of float32 vectors.

    Attributes:
        attention_norm: (hidden,).
        qkv: query heads, key heads, value heads below one another; rotated pairs are neighbours.
        qkv_bias: (rows of qkv,), in the same order; 0 where there is none.
        output: of attention.
        ffn_norm: (hidden,).
        gate_up: row 2i is gate's row i, row 2i + 1 is up's.
        down: of the feed-forward network.
    """

    attention_norm: int
    qkv: DeviceMatrix
    qkv_bias: int
    output: DeviceMatrix
    ffn_norm: int
    gate_up: DeviceMatrix
    down: DeviceMatrix


class DeviceModel:
    """A model whose weights are on the device.

    Attributes:
        config: its shape and constants.
        layers: in order.
        output_norm: address of the last norm's weight, float32 (hidden,).
        embedding: (vocabulary, hidden).
        head: (vocabulary, hidden); the embedding itself where the file has no other.
        rope: address of the table, float32 [positions][rope dimensions / 2][cosine, sine].
        positions: rows of the table.
        weights_bytes: of matrices, norms and biases.
        allocated_bytes: of everything, alignment included.
    """

    def __init__(
        self, config: ModelConfig, plan: ModelPlan, addresses: dict[Item, int], memory: Memory, allocated_bytes: int
    ) -> None:
        def matrix(each: MatrixPlan) -> DeviceMatrix:
            return DeviceMatrix(addresses[each], each.rows, each.columns, each.kind, each.nbytes)

        self.config = config
        self.layers = tuple(
            DeviceLayer(
                attention_norm=addresses[each.attention_norm],
                qkv=matrix(each.qkv),
                qkv_bias=addresses[each.qkv_bias] if each.qkv_bias is not None else 0,
                output=matrix(each.output),
                ffn_norm=addresses[each.ffn_norm],
                gate_up=matrix(each.gate_up),
                down=matrix(each.down),
            )
            for each in plan.layers
        )
        self.output_norm = addresses[plan.output_norm]
        self.embedding = matrix(plan.embedding)
        self.head = matrix(plan.head)
        self.rope = addresses[plan.rope]
        self.positions = plan.rope.positions
        self.weights_bytes = sum(each.nbytes for each in plan.weights())
        self.allocated_bytes = allocated_bytes
        self._memory: Memory | None = memory

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None


def load_model(device: Device, file: GGUFFile, context_tokens: int) -> DeviceModel:
    """Put a model on a device.

    Args:
        device: where to.
        file: the checked GGUF file.
        context_tokens: most tokens of a sequence: rows of the rotary table, and the choice of LongRoPE's factors.

    Raises:
        UnsupportedModel: the kernels do not compute this model.
        OutOfMemoryError: the device has not enough; nothing was allocated.
    """
    config = read_config(file, context_tokens)
    plan = plan_model(file, config, context_tokens)
    offsets, need = _arrange(plan)
    free = device.free_bytes()
    if need > free:
        raise _too_large(device, plan, need, free)
    memory = device.allocate(need, what="weights")
    try:
        addresses = {item: memory.address + offset for item, offset in offsets.items()}
        for item, address in addresses.items():
            for offset, piece in item.pieces(file):
                device.upload(address + offset, piece)
        device.synchronize()
    except BaseException:
        memory.free()
        raise
    return DeviceModel(config, plan, addresses, memory, need)


def _arrange(plan: ModelPlan) -> tuple[dict[Item, int], int]:
    """Return every item's offset in the allocation, and its size."""
    offsets, end = {}, 0
    for item in plan.items():
        offsets[item] = end
        end += _padded(item.nbytes) + ALIGNMENT
    return offsets, end


def _too_large(device: Device, plan: ModelPlan, need: int, free: int) -> OutOfMemoryError:
    """Return what is missing, and what would fit."""
    matrices = [each for each in plan.weights() if isinstance(each, MatrixPlan)]
    fix = "use a smaller model or a larger device"
    table = _padded(plan.rope.nbytes)
    room = (free - (need - table)) // ALIGNMENT * ALIGNMENT
    tokens = room // (plan.rope.nbytes // plan.rope.positions)
    if tokens > 0:
        fix = f"choose a scenario whose cells have at most {tokens} tokens, prompt and output together"
    else:
        for kind in ("Q8_0", "Q4_0"):
            saved = sum(
                _padded(each.nbytes) - _padded(packed_bytes(each.rows, each.columns, kind)) for each in matrices
            )
            if saved > 0 and need - saved <= free:
                fix = f"quantize the model to {kind}, which needs {size_text(need - saved)}"
                break
    msg = f"custom_cuda: expected {size_text(need)} free on {device.name} for the weights, got {size_text(free)}; {fix}"
    return OutOfMemoryError(msg, "CUDA_ERROR_OUT_OF_MEMORY")


def _padded(nbytes: int) -> int:
    """Return the smallest multiple of the alignment that holds `nbytes`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
