"""Loading: every byte of every matrix arrives, in its place, through little memory, or not at all with a reason."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_cuda_oracle import reference
from numpy.typing import DTypeLike, NDArray

from enginecmp import EngineError, GGUFFile, read_gguf
from enginecmp.testing.tiny_models import changed_model, tiny_model
from enginecmp_custom_cuda.config import ARCHITECTURES
from enginecmp_custom_cuda.device import Device, OutOfMemoryError
from enginecmp_custom_cuda.weights import order, packing
from enginecmp_custom_cuda.weights.kinds import KINDS
from enginecmp_custom_cuda.weights.model import DeviceMatrix, DeviceModel, load_model
from enginecmp_custom_cuda.weights.packing import unpack


class HostDevice:
    """Stands in for a device: one allocation, whose every byte is written at most once, and what was asked of it."""

    name = "a device of the tests"
    BASE = 0x7000_0000_0000

    def __init__(self, free: int = 1 << 30, broken_after: int = -1) -> None:
        self.free_now, self.broken_after = free, broken_after
        self.asked: list[int] = []
        self.freed = 0
        self.largest_upload = 0

    def free_bytes(self) -> int:
        return self.free_now

    def allocate(self, nbytes: int, what: str) -> Any:
        assert what == "weights"
        self.asked.append(nbytes)
        self.address = self.BASE
        self.memory = np.full(nbytes, 0xFF, np.uint8)
        self.written = np.zeros(nbytes, np.bool_)
        return self

    def free(self) -> None:
        self.freed += 1

    def upload(self, address: int, array: NDArray[Any]) -> None:
        if self.broken_after == 0:
            msg = "the cable is out"
            raise EngineError(msg)
        self.broken_after -= 1
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        place = slice(address - self.BASE, address - self.BASE + len(content))
        assert 0 <= place.start <= place.stop <= len(self.memory)
        assert not self.written[place].any()
        self.memory[place], self.written[place] = content, True
        self.largest_upload = max(self.largest_upload, len(content))

    def synchronize(self) -> None:
        pass

    def download(self, address: int, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        count = int(np.prod(shape))
        start = address - self.BASE
        nbytes = count * np.dtype(dtype).itemsize
        assert self.written[start : start + nbytes].all()
        return self.memory[start : start + nbytes].view(dtype).reshape(shape)


def as_device(host: HostDevice) -> Device:
    found: Any = host
    return found  # type: ignore[no-any-return]


def rows_of(device: Device, matrix: DeviceMatrix) -> NDArray[np.uint8]:
    """Return the bytes of a matrix's rows, as a file would have them."""
    packed = device.download(matrix.address, matrix.nbytes, np.uint8)
    return unpack(packed, matrix.kind, matrix.rows, matrix.columns)


def below(file: GGUFFile, *names: str) -> NDArray[np.uint8]:
    """Return the bytes of tensors, one below the other."""
    return np.concatenate([file.raw(name) for name in names])


def check_read_back(device: Device, file: GGUFFile, model: DeviceModel) -> int:
    """Hold everything on the device to the file's own bytes; return how many bytes of matrices there were."""
    config, seen = model.config, 0

    def held(matrix: DeviceMatrix, rows: NDArray[np.uint8], kind: str) -> None:
        nonlocal seen
        found = rows_of(device, matrix)
        assert matrix.kind == kind
        assert matrix.address % 256 == 0
        assert found.shape == rows.shape
        assert (found == rows).all()
        seen += rows.size

    def vector(address: int, expected: NDArray[np.float32]) -> None:
        assert address % 256 == 0
        assert (device.download(address, expected.shape, np.float32) == expected).all()

    kind = file.tensors["token_embd.weight"].type
    held(model.embedding, file.raw("token_embd.weight"), kind)
    rope = config.rope
    qkv_order = order.qkv(config.heads, config.kv_heads, config.head_dim, rope.dimensions, rope.interleaved)
    for index, layer in enumerate(model.layers):
        block = f"blk.{index}"
        fused = config.architecture == "phi3"
        qkv = [f"{block}.attn_qkv"] if fused else [f"{block}.attn_{each}" for each in "qkv"]
        gate_up = [f"{block}.ffn_up"] if fused else [f"{block}.ffn_gate", f"{block}.ffn_up"]
        held(layer.qkv, below(file, *(f"{name}.weight" for name in qkv))[qkv_order], kind)
        halves = below(file, *(f"{name}.weight" for name in gate_up)).reshape(2, config.feed_forward, -1)
        held(layer.gate_up, halves.transpose(1, 0, 2).reshape(2 * config.feed_forward, -1), kind)
        held(layer.output, file.raw(f"{block}.attn_output.weight"), kind)
        held(layer.down, file.raw(f"{block}.ffn_down.weight"), kind)
        vector(layer.attention_norm, file.float32(f"{block}.attn_norm.weight"))
        vector(layer.ffn_norm, file.float32(f"{block}.ffn_norm.weight"))
        if config.architecture == "qwen2":
            vector(layer.qkv_bias, np.concatenate([file.float32(f"{name}.bias") for name in qkv])[qkv_order])
        else:
            assert layer.qkv_bias == 0
    vector(model.output_norm, file.float32("output_norm.weight"))
    if "output.weight" in file.tensors:
        assert model.head.address != model.embedding.address
        held(model.head, file.raw("output.weight"), kind)
    else:
        assert model.head == model.embedding
    table = device.download(model.rope, (model.positions, rope.dimensions // 2, 2), np.float32)
    assert np.abs(table - reference.rope_table(rope, None, model.positions)).max() < 2**-24 + 1e-12
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_byte_of_the_file_is_on_the_device(architecture: str, kind: str, tmp_path: Path) -> None:
    file = read_gguf(tiny_model(tmp_path, architecture, kind).path)
    host = HostDevice()
    model = load_model(as_device(host), file, context_tokens=100)
    seen = check_read_back(as_device(host), file, model)
    matrices = [each for each in file.tensors.values() if len(each.shape) == 2]
    assert seen == sum(each.nbytes for each in matrices)
    # 16 divides every matrix's rows but the vocabulary's 314: 6 rows of padding.
    padding = 6 * sum(each.nbytes // each.shape[0] for each in matrices if each.shape[0] == 314)
    vectors = sum(4 * each.shape[0] for each in file.tensors.values() if len(each.shape) == 1)
    assert model.weights_bytes == seen + padding + vectors
    assert host.asked == [model.allocated_bytes]
    assert host.written.sum() == model.weights_bytes + 100 * 16 * 4


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "Q8_0"), ("qwen2", "Q4_0"), ("phi3", "F16"), ("qwen2", "F32")]
)
def test_it_can_be_read_back_from_a_device(device: Device, architecture: str, kind: str, tmp_path: Path) -> None:
    file = read_gguf(tiny_model(tmp_path, architecture, kind).path)
    before = device.free_bytes()
    model = load_model(device, file, context_tokens=100)
    assert check_read_back(device, file, model) > 0
    model.close()
    model.close()
    if not device.timed:  # on a GPU others allocate too
        assert device.free_bytes() == before


def test_nothing_lies_within_256_bytes_behind_another(tmp_path: Path) -> None:
    host = HostDevice()
    load_model(as_device(host), read_gguf(tiny_model(tmp_path, "qwen2", "Q8_0").path), context_tokens=64)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], host.written, [0])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    # Embedding, 2 layers of 7 (a bias among them), the last norm, the table.
    assert len(starts) == 1 + 2 * 7 + 1 + 1
    assert (starts[1:] - ends[:-1] >= 256).all()
    assert (starts % 256 == 0).all()


def test_a_large_model_goes_through_little_memory(tmp_path: Path) -> None:
    """40 MB in pieces of 4 MiB: neither the file nor a matrix of it is ever whole in the process's own memory."""
    model = tiny_model(tmp_path, "llama", "F32", hidden=512, feed_forward=4096, head_dim=128, layers=1)
    file = read_gguf(model.path)
    host = HostDevice()
    host_allocate = host.allocate

    def allocate(nbytes: int, what: str) -> Any:
        tracemalloc.stop()  # this memory is the device's
        host_allocate(nbytes, what)
        tracemalloc.start()
        return host

    host.allocate = allocate  # type: ignore[method-assign]
    tracemalloc.start()
    try:
        loaded = load_model(as_device(host), file, context_tokens=20_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert loaded.weights_bytes > 25 << 20
    assert host.largest_upload <= packing.PIECE_BYTES
    # The piece, rows gathered for it, and for the table float64 on the way.
    assert peak < 3 * packing.PIECE_BYTES


def test_half_precision_norms_and_a_lone_bias_become_float32(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "llama", "Q8_0")
    norm = np.linspace(0.5, 1.5, 64, dtype=np.float16)
    bias = np.arange(32, dtype=np.float32)
    tensors: Any = {"blk.0.attn_norm.weight": ("F16", (64,), norm.tobytes()), "blk.1.attn_k.bias": bias}
    host = HostDevice()
    loaded = load_model(as_device(host), read_gguf(changed_model(model, tensors=tensors).path), context_tokens=64)
    assert (host.download(loaded.layers[0].attention_norm, 64, np.float32) == norm).all()
    assert loaded.layers[0].qkv_bias == 0
    found = host.download(loaded.layers[1].qkv_bias, 128, np.float32)
    assert (found == np.concatenate((np.zeros(64), bias, np.zeros(32)))).all()


@pytest.mark.parametrize(
    ("free", "fix"),
    [
        (60_000, "use a smaller model or a larger device"),
        (130_000, r"quantize the model to Q4_0, which needs \d+\.\d+ KiB"),
        (200_000, r"quantize the model to Q8_0, which needs \d+\.\d+ KiB"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_allocated(free: int, fix: str, tmp_path: Path) -> None:
    file = read_gguf(tiny_model(tmp_path, "llama", "F32").path)
    host = HostDevice(free)
    line = rf"custom_cuda: expected \d+\.\d+ KiB free on a device of the tests for the weights, got .* KiB; {fix}$"
    with pytest.raises(OutOfMemoryError, match=line):
        load_model(as_device(host), file, context_tokens=64)
    assert host.asked == []


def test_a_context_whose_table_does_not_fit_names_one_that_does(tmp_path: Path) -> None:
    file = read_gguf(tiny_model(tmp_path, "llama", "F32").path)
    with pytest.raises(OutOfMemoryError, match="choose a scenario") as caught:
        load_model(as_device(HostDevice(1 << 20)), file, context_tokens=100_000)
    fits = int(str(caught.value).split("at most ")[1].split()[0])
    load_model(as_device(HostDevice(1 << 20)), file, context_tokens=fits)
    with pytest.raises(OutOfMemoryError):
        load_model(as_device(HostDevice(1 << 20)), file, context_tokens=fits + 4)


def test_memory_is_given_back_when_loading_fails(tmp_path: Path) -> None:
    host = HostDevice(broken_after=3)
    with pytest.raises(EngineError, match="cable"):
        load_model(as_device(host), read_gguf(tiny_model(tmp_path).path), context_tokens=64)
    assert host.freed == 1


def test_closing_frees_once(tmp_path: Path) -> None:
    host = HostDevice()
    model = load_model(as_device(host), read_gguf(tiny_model(tmp_path).path), context_tokens=64)
    assert host.freed == 0
    model.close()
    model.close()
    assert host.freed == 1
