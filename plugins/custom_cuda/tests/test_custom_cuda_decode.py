"""Whole decode steps of tiny models against float64; steps in graphs, in any order of threads, and with neighbours."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import custom_cuda_gates as gates
import custom_cuda_sass as sass
import numpy as np
import pytest
from custom_cuda_decode import Array, Choice
from custom_cuda_oracle import dp4a, reference

from enginecmp import EngineError, GGUFFile, read_gguf
from enginecmp.testing.tiny_models import tiny_model
from enginecmp_custom_cuda.compiling import compile_cubin
from enginecmp_custom_cuda.compiling.sources import KERNELS
from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.engine.decode import geometry
from enginecmp_custom_cuda.engine.decode import step as decode
from enginecmp_custom_cuda.engine.decode.step import DecodeSettings, DecodeStep
from enginecmp_custom_cuda.engine.memory import params
from enginecmp_custom_cuda.engine.memory.pages import Cache
from enginecmp_custom_cuda.weights.kinds import KINDS
from enginecmp_custom_cuda.weights.model import DeviceModel, load_model

CONTEXT = 96
PROMPT_TOKEN = 5


class Running:
    """A tiny model on a device, with steps of one batch size."""

    def __init__(self, device: Device, file: GGUFFile, batch: int = 1, *, overlap: bool = True) -> None:
        self.device, self.file = device, file
        self.model: DeviceModel = load_model(device, file, CONTEXT)
        self.cache = Cache(device, self.model.config, "f32", CONTEXT, batch)
        self.settings = DecodeSettings(CONTEXT, kv="f32", overlap=overlap, logits=True, ring_slots=8)
        self.step = DecodeStep(device, self.model, batch, self.settings, self.cache)
        for slot in range(batch):
            assert self.cache.pages.promise(slot, CONTEXT)
            self.cache.grow(slot, CONTEXT)

    def logits(self) -> Array:
        """Return the last step's logits, (batch, vocabulary)."""
        shape = (self.step.batch, self.model.config.vocabulary)
        return self.device.download(self.step.buffers.logits, shape, np.float32)

    def generate(self, steps: int, token: int = PROMPT_TOKEN) -> tuple[list[int], Array]:
        """Return the ids that follow a token at position 0, the token first, and each step's logits."""
        self.step.bind(0, 0, token)
        ids, logits = [self.step.buffers.ring.wait(0)], []
        for _ in range(steps):
            self.step.enqueue()
            logits.append(self.logits()[0])
            ids.append(self.step.buffers.ring.wait(0))
        return ids, np.array(logits)

    def close(self) -> None:
        self.step.close()
        self.cache.close()
        self.model.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def llama(device: Device, folder: Path) -> Iterator[Running]:
    running = Running(device, read_gguf(tiny_model(folder, "llama", "Q8_0").path))
    yield running
    running.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_float32_steps_equal_the_reference(device: Device, folder: Path, architecture: str) -> None:
    file = read_gguf(tiny_model(folder, architecture, "F32").path)
    running = Running(device, file)
    try:
        ids, logits = running.generate(70)  # into the second page
        expected = reference.logits(file, ids[:-1], CONTEXT)
        assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
        assert ids[1:] == expected.argmax(axis=-1).tolist()
    finally:
        running.close()


def test_int8_steps_equal_the_reference(llama: Running) -> None:
    # Later, a value beside a middle rounds to another whole number than in float64, and no bound is tight any more.
    ids, logits = llama.generate(24)
    expected = reference.forward(llama.file, ids[:-1], CONTEXT, dp4a.linear).logits
    assert np.abs(logits - expected).max() < 1e-6 * np.abs(expected).max()
    assert ids[1:] == expected.argmax(axis=-1).tolist()


def test_runs_repeat_to_the_bit(llama: Running) -> None:
    ids, logits = llama.generate(10)
    again, the_same = llama.generate(10)
    assert ids == again
    assert logits.tobytes() == the_same.tobytes()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_graph_equals_its_steps(llama: Running, steps: int) -> None:
    ids, logits = llama.generate(8)
    llama.step.bind(0, 0, PROMPT_TOKEN)
    taken = [llama.step.buffers.ring.wait(0)]
    for _ in range(8 // steps):
        llama.step.graph(steps).launch()
        taken += [llama.step.buffers.ring.wait(0) for _ in range(steps)]
    assert taken == ids
    assert llama.logits()[0].tobytes() == logits[-1].tobytes()


def test_a_step_launched_early_equals_one_that_waits(llama: Running, folder: Path) -> None:
    ids, logits = llama.generate(10)
    patient = Running(llama.device, llama.file, overlap=False)
    try:
        alone, the_same = patient.generate(10)
        assert alone == ids
        assert logits.tobytes() == the_same.tobytes()
    finally:
        patient.close()


def test_threads_in_any_order_compute_the_same_bits(llama: Running, emulated: Device) -> None:
    import custom_cuda_controls as control

    found = []
    try:
        for order in ("forward", "reverse", 1, 2):
            control.set_order(order)
            found.append(llama.generate(3)[1].tobytes())
    finally:
        control.reset()
    assert len(set(found)) == 1


@pytest.fixture(scope="module")
def pair(device: Device, folder: Path) -> Iterator[Running]:
    running = Running(device, read_gguf(tiny_model(folder, "llama", "F32").path), batch=4)
    yield running
    running.close()


def test_sequences_enter_and_leave_without_disturbing_others(pair: Running) -> None:
    step, ring = pair.step, pair.step.buffers.ring
    texts: dict[int, list[int]] = {}
    written: dict[int, list[Array]] = {}

    def enter(slot: int, token: int) -> None:
        step.bind(slot, 0, token)
        texts[slot], written[slot] = [ring.wait(slot)], []
        assert texts[slot] == [token]

    def advance(times: int) -> None:
        for _ in range(times):
            step.enqueue()
            logits = pair.logits()
            for slot in texts:
                texts[slot].append(ring.wait(slot))
                written[slot].append(logits[slot])

    def check(slot: int) -> None:
        expected = reference.logits(pair.file, texts[slot][:-1], CONTEXT)
        assert np.abs(np.array(written[slot]) - expected).max() < 1e-5 * np.abs(expected).max()
        del texts[slot], written[slot]

    enter(2, 7)
    advance(3)
    enter(0, 9)
    advance(2)
    step.end(2)
    check(2)
    advance(2)
    assert ring.take(2) is None
    enter(2, 11)
    enter(3, 7)
    advance(3)
    for slot in (0, 2, 3):
        check(slot)
    assert ring.take(1) is None
    position = pair.device.download(step.buffers.position, 4, np.int32)
    assert position.tolist() == [7, -1, 3, 3]
    for slot in (0, 2, 3):
        step.end(slot)


def test_a_sequence_begins_from_a_hidden_state_anywhere(pair: Running) -> None:
    """What prefill leaves: the head of one row, for one slot, while another is in the middle of its text."""
    step, ring, hidden = pair.step, pair.step.buffers.ring, pair.model.config.width
    step.bind(1, 0, 7)
    step.enqueue()
    before = [ring.wait(1) for _ in range(2)]
    state = np.random.default_rng(0).normal(size=hidden).astype(np.float32)
    memory = pair.device.allocate(state.nbytes, "a hidden state")
    try:
        pair.device.upload(memory.address, state)
        step.begin(3, 40, memory.address)
        norm = pair.file.float32("output_norm.weight")
        last = reference.rms_norm(state.astype(np.float64), norm, pair.model.config.epsilon)
        name = "output.weight" if "output.weight" in pair.file.tensors else "token_embd.weight"
        first = ring.wait(3)
        assert first == int(np.argmax(reference.linear(last, pair.file.float32(name).reshape(-1, hidden))))
    finally:
        memory.free()
    assert pair.device.download(step.buffers.position, 4, np.int32).tolist() == [-1, 1, -1, 41]
    x = pair.device.download(step.buffers.x, (4, hidden), np.float32)
    np.testing.assert_array_equal(x[3], pair.file.float32("token_embd.weight").reshape(-1, hidden)[first])
    step.end(3)
    step.enqueue()
    text = [*before, ring.wait(1)]
    assert text[1:] == reference.logits(pair.file, text[:-1], CONTEXT).argmax(-1).tolist()
    assert ring.take(3) is None
    step.end(1)


def test_phases_follow_the_step_and_count_all_weights(llama: Running) -> None:
    layers = llama.model.config.layers
    expected = ["qkv", "attention", "output", "ffn"] * layers + ["lm_head", "next"]
    heard: list[str] = []
    llama.step.bind(0, 0, PROMPT_TOKEN)
    llama.step.enqueue(heard.append)
    llama.device.synchronize()
    assert heard == expected == [phase.name for phase in llama.step.phases]
    matrices = [getattr(each, name) for each in llama.model.layers for name in ("qkv", "output", "gate_up", "down")]
    assert llama.step.nbytes == sum(each.nbytes for each in (*matrices, llama.model.head))


# ---- the ring


def test_an_id_that_no_step_makes_is_an_error(llama: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginecmp_custom_cuda.engine.memory.ring.PATIENCE_SECONDS", 0.01)
    llama.step.bind(0, 0, PROMPT_TOKEN)
    assert llama.step.buffers.ring.wait(0) == PROMPT_TOKEN
    with pytest.raises(EngineError, match=r"expected an id of sequence 0, got none .*; enqueue a step first"):
        llama.step.buffers.ring.wait(0)


def test_ids_wait_in_the_ring_for_a_late_host(llama: Running) -> None:
    ids, _ = llama.generate(7)
    llama.step.bind(0, 0, PROMPT_TOKEN)
    for _ in range(7):
        llama.step.enqueue()
    assert [llama.step.buffers.ring.wait(0) for _ in range(8)] == ids


# ---- refusals


def test_other_batches_and_small_buffers_are_refused(llama: Running) -> None:
    with pytest.raises(EngineError, match="expected a batch of 1, 2, 4, 8, got 3"):
        DecodeStep(llama.device, llama.model, 3, llama.settings, llama.cache)
    with pytest.raises(EngineError, match="expected buffers for 2 sequences, got 1"):
        DecodeStep(llama.device, llama.model, 2, llama.settings, llama.cache, llama.step.buffers)


def test_activations_beyond_shared_memory_are_refused(llama: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.device, "shared_bytes", 1200)
    with pytest.raises(EngineError, match=r"expected at most 1200 bytes of shared memory .* pass fewer sequences"):
        DecodeStep(llama.device, llama.model, 1, llama.settings, llama.cache)


# ---- machine code


@pytest.mark.parametrize(
    "choice",
    [Choice("Q8_0", False, "f16", 64, 1), Choice("Q4_0", False, "f16", 128, 8), Choice("F32", False, "f32", 64, 2)],
    ids=lambda choice: "-".join(map(str, choice)),
)
def test_weights_are_asked_for_before_the_launch_in_front_is_waited_for_and_nothing_of_the_step(choice: Choice) -> None:
    pytest.importorskip("cuda.bindings", reason="NVRTC comes with cuda-bindings and nvidia-cuda-nvrtc")
    usages = sass.read(compile_cubin("decode", decode.defines(*choice), "sm_90a"))
    for name in (*gates.MATVECS, "attention", "next"):
        first = list(usages[name].opcodes)  # in the order of their first occurrence
        wait = first.index("ACQBULK")
        assert first.index("PREEXIT") < wait, f"{name}: the next launch is let in first"
        before = [opcode for opcode in first[:wait] if opcode.startswith("LDG")]
        scales = ["LDG.E.U16"] if KINDS[choice.kind].scaled else []
        assert sorted(before) == (["LDG.E.NA.128.CONSTANT", *scales] if name in gates.MATVECS else []), name


# ---- geometry and params


@pytest.mark.parametrize(
    ("name", "rows", "columns", "split_k", "blocks"),
    [
        ("qkv", 3072, 2048, 4, 384),
        ("output", 2048, 2048, 2, 128),
        ("gate_up", 16384, 2048, 1, 264),
        ("down", 2048, 8192, 4, 256),
        ("head", 128256, 2048, 1, 264),
        ("down of Mistral 7B", 4096, 14336, 2, 256),
    ],
)
def test_llama_1b_keeps_132_multiprocessors_busy(name: str, rows: int, columns: int, split_k: int, blocks: int) -> None:
    grid = geometry.matrix_grid(rows, columns, "Q8_0", True, 1, 132)
    assert (grid.split_k, grid.blocks, grid.shared_bytes) == (split_k, blocks, columns * 9 // 8)
    rounds = -(-rows * split_k // (geometry.WARPS * geometry.WARP_ROWS * blocks))
    most = -(-blocks // 132) * rounds * geometry.WARPS * geometry.WARP_ROWS // split_k  # rows of one multiprocessor
    assert rows / 132 / most > 0.93, f"{name}: the busiest multiprocessor has much more than its share"
    row = columns * 34 // 32
    pieces = min(2, rounds * -(-columns // 512) // split_k)  # of 4 rows and 512 columns, that a warp asks for at once
    asked = -(-blocks // 132) * geometry.WARPS * pieces * 4 * 512 * 34 // 32
    assert asked >= min(geometry.WAITING_BYTES, most * row), f"{name}: too little is on its way to hide the latency"


def test_attention_splits_what_is_long_and_not_what_fills_the_device() -> None:
    def splits(batch: int, positions: int) -> int:
        grid = geometry.attention_grid(32, 8, 64, 2, batch, positions, 132)
        assert grid.grid == (grid.splits, 8, 2 * batch // 2)
        return grid.splits

    assert [splits(1, positions) for positions in (64, 255, 512, 2048, 131072)] == [1, 1, 2, 8, 16]
    assert splits(8, 131072) == 4  # 64 pairs of sequence and head: 5 blocks each are more than can be resident


CONSTANTS = """
#include "attention.cuh"
#include "matvec.cuh"
static_assert(dot::SLAB == {slab} && dot::ROWS == {rows} && matvec::WARPS == {warps});
static_assert(dot::STAGES == {stages} && matvec::BLOCKS == {blocks});
static_assert(attend::HEADS == {tile} && attend::THREADS == {threads});
static_assert(BATCH * ({columns} / dot::SLAB * dot::Activations::SLAB_VECTORS * 16 + (dot::Q8 ? {columns} / 8 : 0))
              == {shared});
"""


@pytest.mark.parametrize(
    "choice",
    [
        Choice("Q8_0", False, "f16", 64, 1),
        Choice("Q4_0", False, "f32", 96, 2),
        Choice("F16", False, "f32", 128, 8),
        Choice("F32", False, "f16", 16, 4),
    ],
)
def test_kernels_and_geometry_agree(choice: Choice, tmp_path: Path) -> None:
    quantized, columns = choice.quantized, 1024
    attention = geometry.attention_grid(8, 1, choice.head_dim, decode.ELEMENT_BYTES[choice.kv], 1, 64, 4)
    values = {
        "slab": geometry.slab_columns(choice.kind),
        "rows": geometry.WARP_ROWS,
        "warps": geometry.WARPS,
        "stages": geometry.stages(choice.kind, choice.batch),
        "threads": geometry.THREADS,
        "blocks": geometry.resident_blocks(choice.batch, quantized),
        "tile": 8 // attention.grid[2],
        "columns": columns,
        "shared": geometry.activation_bytes(columns, choice.kind, quantized, choice.batch),
    }
    source = tmp_path / "constants.cpp"
    source.write_text(CONSTANTS.format(**values))
    options = [f"-D{name}={value}" for name, value in decode.defines(*choice).items()]
    subprocess.run(["g++", "-std=c++17", "-w", "-fsyntax-only", f"-I{KERNELS}", *options, source], check=True)


def test_the_structs_are_the_header_s(tmp_path: Path) -> None:
    lines = []
    for name, struct in params.STRUCTS.items():
        lines.append(f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "{name}");')
        for field in (each[0] for each in struct._fields_):
            offset = getattr(struct, field).offset
            lines.append(f'static_assert(offsetof({name}, {field}) == {offset}, "{name}.{field}");')
    source = tmp_path / "structs.cpp"
    source.write_text('#include <cstddef>\n#include "params.h"\n' + "\n".join(lines))
    subprocess.run(["g++", "-std=c++17", "-fsyntax-only", f"-I{KERNELS}", source], check=True)
    header = (KERNELS / "params.h").read_text()
    assert header.count("\nstruct ") == len(params.STRUCTS)
    # Every field of the header is in the mirror.
    assert header.count(";") - header.count("};") - _comments(header) == sum(
        len(struct._fields_) for struct in params.STRUCTS.values()
    )


def _comments(header: str) -> int:
    return sum(line.partition("//")[2].count(";") for line in header.splitlines())
