"""The persistent kernel: the oracle's numbers, the step's bits, and nothing left to chance."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import custom_cuda_controls as emulated
import numpy as np
import pytest
from custom_cuda_oracle import dp4a, reference
from custom_cuda_persistent import CASES, POSITIONS, PersistentModel, persistent_model

from enginecmp import EngineError
from enginecmp_custom_cuda.compiling import compile_now
from enginecmp_custom_cuda.compiling.sources import KERNELS
from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.engine.decode import geometry
from enginecmp_custom_cuda.engine.decode.step import DecodeStep, defines
from enginecmp_custom_cuda.engine.persistent import plan
from enginecmp_custom_cuda.engine.persistent.abort_diagnostics import STATUS_WORDS, abort_diagnostics
from enginecmp_custom_cuda.engine.persistent.params import STRUCTS

TESTS = Path(__file__).parent
ON_GPU = os.environ.get("ENGINECMP_TEST_DEVICE") == "cuda"


@pytest.fixture(scope="module")
def rigs(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PersistentModel]]:
    """The models, each on the device once it is asked for."""
    folder = tmp_path_factory.mktemp("persistent")
    open_rigs: dict[str, Any] = {}

    class Rigs(dict[str, PersistentModel]):
        def __missing__(self, name: str) -> PersistentModel:
            open_rigs[name] = persistent_model(device, folder, name)
            self[name] = open_rigs[name].__enter__()
            return self[name]

    yield Rigs()
    for each in open_rigs.values():
        each.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def orders() -> Iterator[None]:
    """Leave the emulator as it was."""
    yield
    if not ON_GPU:
        emulated.set_order("forward")


@pytest.mark.parametrize(
    ("name", "ring", "tolerance"),
    [
        ("Q8_0", "RING_BULK", 3e-2),
        ("F32", "RING_BULK", 2e-6),
        ("BF16", "RING_ASYNC", 2e-6),
        ("Q4_0 exact", "RING_BULK", 2e-6),
        ("Q4_0", "RING_BULK", 3e-2),
    ],
)
def test_logits_and_ids_are_the_oracles(
    rigs: dict[str, PersistentModel], name: str, ring: str, tolerance: float
) -> None:
    rig = rigs[name]
    decoder = rig.decoder(multiprocessors=3, ring=ring, splits=2)
    ids, logits = rig.run(decoder, 0, 5)
    linear = dp4a.linear if rig.settings.exact is False and rig.case.kind in {"Q8_0", "Q4_0"} else None
    stored = reference.as_float16 if rig.case.kv == "f16" else lambda x: x
    expected = reference.forward(rig.file, [5, *ids[:-1]], POSITIONS, linear, stored).logits  # (5, vocabulary)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.frombuffer(logits, np.float32), expected[-1], rtol=0, atol=tolerance * scale)
    # The chosen ones are the largest, or as good as.
    chosen = np.take_along_axis(expected, np.array(ids)[:, None], axis=1)[:, 0]
    assert np.all(chosen >= expected.max(axis=1) - 2 * tolerance * scale)
    decoder.close()


def test_more_blocks_than_run_at_once_are_refused_with_another_way(rigs: dict[str, PersistentModel]) -> None:
    rig = rigs["F32"]
    with pytest.raises(
        EngineError, match=r"expected at most \d+ blocks of decode_persistent at once .*, got \d+; .*decoder=graph"
    ):
        rig.decoder(multiprocessors=4 * rig.device.multiprocessors)


def test_seventy_tokens_in_three_launches_are_the_oracles_across_a_page(rigs: dict[str, PersistentModel]) -> None:
    rig = rigs["F32"]
    decoder = rig.decoder(multiprocessors=2, splits=2, slots=4)
    ids, _ = rig.run(decoder, 0, 32)
    ids += rig.ids(decoder, 32) + rig.ids(decoder, 6)
    expected = reference.logits(rig.file, [5, *ids[:-1]], POSITIONS)
    assert ids == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(rig.logits(decoder), expected[-1], rtol=0, atol=2e-6 * np.abs(expected).max())
    decoder.close()


@pytest.mark.parametrize(("name", "ring"), [("Q8_0", "RING_BULK"), ("Q4_0", "RING_ASYNC")])
def test_every_bit_is_that_of_steps_whose_warps_share_columns_alike(
    rigs: dict[str, PersistentModel], monkeypatch: pytest.MonkeyPatch, name: str, ring: str
) -> None:
    rig = rigs[name]
    # Two teams take a row's chunks in turn, as two warps of a step take its slabs.
    monkeypatch.setattr(geometry, "matrix_grid", functools.partial(geometry.matrix_grid, split_k=2))
    decoder = rig.decoder(multiprocessors=3, ring=ring, splits=1)
    assert decoder.step._grid.splits == 1
    ids, logits = rig.run(decoder, 62, 4)
    names = ("token", "position", "count")
    state = [rig.device.download(getattr(decoder.buffers, each), 1, np.int32) for each in names]
    x = rig.device.download(decoder.buffers.x, rig.model.config.width, np.float32)
    assert [int(each[0]) for each in state] == [ids[-1], 66, 5]

    rig.forget()
    step = DecodeStep(rig.device, rig.model, 1, rig.settings, rig.cache)
    step.bind(0, 62, 5)
    assert step.buffers.ring.wait(0) == 5
    for _ in range(4):
        step.enqueue()
    assert [step.buffers.ring.wait(0) for _ in range(4)] == ids
    rig.device.synchronize()
    assert rig.device.download(step.buffers.logits, rig.model.head.rows, np.float32).tobytes() == logits
    assert rig.device.download(step.buffers.x, rig.model.config.width, np.float32).tobytes() == x.tobytes()
    for each, before in zip(names, state, strict=True):
        assert rig.device.download(getattr(step.buffers, each), 1, np.int32) == before
    step.close()
    decoder.close()


@pytest.mark.usefixtures("emulated")
def test_bits_depend_on_neither_order_nor_multiprocessors_nor_ring(rigs: dict[str, PersistentModel]) -> None:
    rig = rigs["narrow"]
    results = []
    order: Any
    for multiprocessors, slots, tiles, ring, orders in (
        (2, None, 16, "RING_BULK", ("forward", "reverse", 1, 2)),
        (3, 2, 1, "RING_BULK", ("reverse", 3, 4)),
        (8, 4, 2, "RING_BULK", ("forward", 5)),
        (5, 2, 3, "RING_ASYNC", ("forward", "reverse", 6)),
        (2, 10, 16, "RING_ASYNC", (7, 8)),
    ):
        sizes = {"slots": slots, "result_tiles": tiles}
        decoder = rig.decoder(multiprocessors=multiprocessors, ring=ring, splits=2, **sizes)
        for order in orders:
            emulated.set_order(order)
            results.append(rig.run(decoder, 126, 3))
        decoder.close()
    assert len(results) == 14
    assert all(result == results[0] for result in results)
    assert np.isfinite(np.frombuffer(results[0][1], np.float32)).all()


def test_it_takes_turns_with_steps(rigs: dict[str, PersistentModel]) -> None:
    rig = rigs["F32"]
    decoder = rig.decoder(multiprocessors=2)
    expected, _ = rig.run(decoder, 20, 6)
    rig.forget()
    decoder.bind(20, 5)
    ring = decoder.buffers.ring
    assert ring.wait(0) == 5
    ids = rig.ids(decoder, 2)
    for _ in range(2):  # from where the kernel has left everything
        decoder.step.enqueue()
    ids += [ring.wait(0), ring.wait(0)]
    rig.device.synchronize()
    decoder.bind(24, ids[-1])
    assert ring.wait(0) == ids[-1]
    ids += rig.ids(decoder, 2)
    assert ids == expected
    decoder.close()


def test_tokens_without_a_place_are_refused(rigs: dict[str, PersistentModel]) -> None:
    rig = rigs["F32"]
    decoder = rig.decoder(multiprocessors=2)
    with pytest.raises(EngineError, match=r"got positions \(.+\): positions -1\.\.0"):
        decoder.enqueue(2)
    decoder.bind(POSITIONS - 3, 5)
    with pytest.raises(EngineError, match=r"positions 253\.\.256, the cache holds 256, .+; begin a sequence"):
        decoder.enqueue(4)
    with pytest.raises(EngineError, match="expected 1 to 64 tokens a launch, got 65; pass fewer"):
        decoder.enqueue(65)
    assert len(rig.ids(decoder, 3)) == 3
    decoder.close()


def test_what_does_not_fit_is_refused_with_the_reason(rigs: dict[str, PersistentModel]) -> None:
    rig = rigs["Q8_0"]
    assert plan.misfit(rig.device, rig.model, rig.settings) is None

    def on(**changes: Any) -> str | None:
        fields = {"architecture": "sm_90a", "capability": (9, 0), "multiprocessors": 132, "shared_bytes": 232448}
        device: Any = SimpleNamespace(**fields | changes)
        return plan.misfit(device, rig.model, rig.settings)

    assert on() is None
    assert on(capability=(8, 6), shared_bytes=101376) is None
    assert on(capability=(7, 5)) == "expected compute capability 8.0 or more, got 7.5"
    assert "the ring has too few slots" in str(on(shared_bytes=24000))
    capable: list[Any] = [
        SimpleNamespace(architecture="", capability=each) for each in ((7, 5), (8, 9), (9, 0), (12, 0))
    ]
    rings = [plan.ring_of(each) for each in capable]
    assert rings == [None, "RING_ASYNC", "RING_BULK", "RING_BULK"]

    model: Any = SimpleNamespace(
        config=rig.model.config,
        layers=[replace(each, down=replace(each.down, kind="F16")) for each in rig.model.layers],
        head=rig.model.head,
        embedding=rig.model.embedding,
    )
    reason = plan.misfit(rig.device, model, rig.settings)
    assert reason == "expected matrices of one kind, got F16, Q8_0"


def child(*arguments: str) -> list[str]:
    """Run what may lose the device in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "custom_cuda_persistent.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("ring", "least"), [("RING_BULK", 13), ("RING_ASYNC", 16)])
@pytest.mark.usefixtures("emulated")
def test_every_wait_is_needed(ring: str, least: int) -> None:
    places = [line.split("\t") for line in child("leave_out", ring)]
    assert len(places) >= least
    assert {"counter", "full slot", "empty slot", "named barrier", "syncwarp", "syncthreads"} <= {
        kind for _, kind, _, _ in places
    }
    # The emulator runs threads one at a time: it cannot tell memory that is not in order.
    missed = [place for place, _, noticed, line in places if noticed == "never" and "orders memory only" not in line]
    assert missed == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("counter", "OUTPUT of layer 0, token 0: it had waited for counter ATTENTION to reach 2, it was 1"),
        ("full", "QKV of layer 0, token 0: it had waited for slot 0 of the ring to be full in pass 0"),
    ],
    ids=["counter", "full"],
)
@pytest.mark.usefixtures("emulated")
def test_a_wait_without_end_ends_with_what_it_was_for(what: str, words: str) -> None:
    (line,) = child("give_up", what)
    assert line.startswith("LostDeviceError custom_cuda: expected kernels that run to their end, got ")
    assert re.search(f"; multiprocessor 0 gave up at {words}", line), line


def test_abort_diagnostics_name_the_first_three_of_those_that_gave_up(rigs: dict[str, PersistentModel]) -> None:
    schedule = rigs["F32"].decoder(multiprocessors=4).schedule
    status = np.zeros((4, STATUS_WORDS), np.int32)
    assert abort_diagnostics(status.view(np.uint8), schedule) == ""
    status[:, 0] = 3
    status[0, 1:5] = (4, 1, 5, 6)
    text = abort_diagnostics(status.view(np.uint8), schedule)
    first = (
        "multiprocessor 0 gave up at ATTENTION of layer 0, token 4: it had waited for slot 5 of the ring to be empty"
    )
    assert text.startswith(f"{first} in pass 6; multiprocessor 1 gave up at QKV")
    assert text.endswith(
        "; multiprocessor 2 gave up at QKV of layer 0, token 0: it had waited for slot 0 of the ring "
        "to be empty in pass 0, and 1 more"
    )


@pytest.mark.parametrize(
    ("ring", "architecture", "words"),
    [
        (None, "sm_90a", "define RING: RING_BULK from sm_90 on, or RING_ASYNC"),
        ("RING_BULC", "sm_90a", "define RING: RING_BULK from sm_90 on, or RING_ASYNC"),
        ("RING_BULK", "sm_89", "RING_BULK needs sm_90"),
        ("RING_ASYNC", "sm_75", "the ring needs copies to shared memory: sm_80"),
    ],
)
def test_a_ring_that_an_architecture_has_not_does_not_compile(ring: str | None, architecture: str, words: str) -> None:
    pytest.importorskip("cuda.bindings", reason="NVRTC comes with cuda-bindings and nvidia-cuda-nvrtc")
    names = defines("Q8_0", False, "f16", 64, 1) | ({"RING": ring} if ring else {})
    with pytest.raises(EngineError, match=f"persistent.cu to compile for {architecture}, got:(.|\n)+{words}"):
        compile_now(KERNELS / "persistent.cu", names, architecture)


def test_structs_have_the_headers_layout(tmp_path: Path) -> None:
    header = KERNELS / "persistent_params.h"
    lines = ["#include <cstdio>", "#include <cstddef>", f'#include "{header}"', "int main() {"]
    for name, struct in STRUCTS.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        fields = [each[0] for each in struct._fields_]
        lines += [f'printf("%zu %zu\\n", offsetof({name}, {each}), sizeof({name}::{each}));' for each in fields]
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["g++", "-std=c++17", "-o", tmp_path / "layout", source], check=True)
    printed = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.split("\n")
    expected = []
    for struct in STRUCTS.values():
        expected.append(str(ctypes.sizeof(struct)))
        members = [getattr(struct, each[0]) for each in struct._fields_]
        expected += [f"{each.offset} {each.size}" for each in members]
    assert printed == [*expected, ""]


def test_cases_cover_every_kind_of_weights_but_one_and_both_caches() -> None:
    assert {case.kind for case in CASES.values()} == {"F32", "BF16", "Q8_0", "Q4_0"}
    assert {case.kv for case in CASES.values()} == {"f16", "f32"}
    assert {case.architecture for case in CASES.values()} == {"llama", "qwen2", "phi3"}
