"""Every kernel for every architecture, judged by its machine code: no GPU needed, nothing is run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from importlib import metadata

import custom_cuda_gates as gates
import custom_cuda_sass as sass
import pytest
from custom_cuda_gates import ARCHITECTURES, GATES, Gate

from enginecmp import EngineError
from enginecmp_custom_cuda.compiling import compile_cubin, sources

pytest.importorskip("cuda.bindings", reason="NVRTC comes with cuda-bindings and nvidia-cuda-nvrtc")

JOBS = {
    f"{gate.file}-{'-'.join(gate.defines.values()) or 'plain'}-{architecture}": (gate, architecture)
    for gate in GATES
    for architecture in gate.architectures
}

SOURCE = """
extern "C" __global__ __launch_bounds__(128) void tidy(const int4 *a, int *out) {
    __shared__ int shared[128];
    int4 v = a[threadIdx.x];
    shared[threadIdx.x] = __dp4a(v.x, v.y, v.z) + v.w;
    __syncthreads();
    out[threadIdx.x] = shared[127 - threadIdx.x];
}
extern "C" __global__ __launch_bounds__(128) void stacked(const int *a, int *out, int i) {
    int kept[64];
    for (int j = 0; j < 64; j++) kept[(j * i) & 63] = a[j];
    out[threadIdx.x] = kept[i & 63];
}
"""


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[list[str]]]]:
    """Compile and read what the chosen tests ask for, in two processes, in the order of the tests."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    chosen = {item.callspec.params.get("name") for item in items}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield {name: pool.submit(gates.examine, *job) for name, job in JOBS.items() if name in chosen}
        pool.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The sample above for an old and a new architecture."""
    source = tmp_path_factory.mktemp("sass") / "sample.cu"
    source.write_text(SOURCE)
    return {architecture: compile_cubin(source, {}, architecture) for architecture in ("sm_75", "sm_120")}


@pytest.mark.parametrize("name", JOBS)
def test_kernels_compile_everywhere_within_their_gates(name: str, verdicts: dict[str, Future[list[str]]]) -> None:
    assert verdicts[name].result() == []


def test_every_kernel_file_has_a_gate_for_every_architecture() -> None:
    held = {(gate.file, architecture) for gate in GATES for architecture in gate.architectures}
    files = {path.stem for path in sources.KERNELS.glob("*.cu")}
    wanted = {(file, architecture) for file in files for architecture in ARCHITECTURES} - gates.NOT_OFFERED
    assert held == wanted


@pytest.mark.parametrize("architecture", ["sm_75", "sm_120"])
def test_registers_memory_and_instructions_are_read_from_a_cubin(architecture: str, cubins: dict[str, bytes]) -> None:
    usages = sass.read(cubins[architecture])
    assert set(usages) == {"tidy", "stacked"}
    tidy, stacked = usages["tidy"], usages["stacked"]
    assert 4 <= tidy.registers <= 64
    assert tidy.stack_bytes == tidy.local_bytes == 0
    assert 512 <= tidy.shared_bytes <= 512 + 1024
    assert tidy.has("LDG.128")
    assert tidy.has("IDP.4A")
    assert tidy.has("BAR.SYNC")
    assert not tidy.has("LDG.64")
    assert not tidy.has("HMMA")
    assert stacked.stack_bytes + stacked.local_bytes >= 256
    assert stacked.has("STL")


def test_a_gate_names_stack_registers_and_instructions_that_break_it(cubins: dict[str, bytes]) -> None:
    budgets = {
        "tidy": sass.Budget(registers=2, shared_bytes=100, needs=("LDG.E.128", "HMMA"), forbids=("IDP", "STL")),
        "absent": sass.Budget(),
    }
    problems = sass.check(cubins["sm_75"], budgets)
    usages = sass.read(cubins["sm_75"], opcodes=False)
    assert set(problems) == {
        "absent: expected a kernel of this name, got none",
        f"tidy: expected at most 2 registers, got {usages['tidy'].registers}",
        "tidy: expected at most 100 shared bytes, got 512",
        "tidy: expected HMMA, got none",
        "tidy: expected no IDP, got some",
        f"stacked: expected no memory behind the registers, got stack {usages['stacked'].stack_bytes} and local 0 "
        "bytes a thread",
    }


def test_an_instruction_is_asked_for_where_its_condition_says() -> None:
    instructions = ("LDG.128", "UBLKCP>=90", "IMMA==75")
    assert gates.on("sm_75", instructions) == ("LDG.128", "IMMA")
    assert gates.on("sm_89", instructions) == ("LDG.128",)
    assert gates.on("sm_90a", instructions) == ("LDG.128", "UBLKCP")
    assert gates.on("sm_120", instructions) == ("LDG.128", "UBLKCP")


def test_a_gate_disassembles_one_architecture_of_each_family() -> None:
    gate = Gate("decode", needs={"qkv": ("LDG.128",)}, registers={"qkv": 64})
    assert gate.budgets("sm_90a") == {"qkv": sass.Budget(registers=64, needs=("LDG.128",))}
    assert gate.budgets("sm_86") == {"qkv": sass.Budget(registers=64)}


def test_bytes_that_are_no_machine_code_raise() -> None:
    with pytest.raises(EngineError, match=r"expected machine code that cuobjdump reads, got: .*compile again"):
        sass.read(b"not a cubin")


def test_missing_disassemblers_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    sass._program.cache_clear()
    try:
        with pytest.raises(EngineError, match=r"pip install 'enginecmp-custom-cuda\[sass\]'"):
            sass.read(b"")
    finally:
        sass._program.cache_clear()
