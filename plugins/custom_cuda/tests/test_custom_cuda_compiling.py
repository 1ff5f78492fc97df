"""Sources to machine code: NVRTC's answers, its errors, and which architecture a device gets."""

from __future__ import annotations

from pathlib import Path

import custom_cuda_sass as sass
import pytest

from enginecmp import EngineError
from enginecmp_custom_cuda.compiling import compile_cubin, nvrtc, sources

pytest.importorskip("cuda.bindings", reason="NVRTC comes with cuda-bindings and nvidia-cuda-nvrtc")

KERNEL = """#include "step.h"
extern "C" __global__ void add(int *out) {
    out[threadIdx.x] += STEP;
}
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A kernel whose header lies beside it."""
    (tmp_path / "step.h").write_text("#ifndef STEP\n#define STEP 1\n#endif\n")
    path = tmp_path / "add.cu"
    path.write_text(KERNEL)
    return path


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a", "sm_120"])
def test_a_cubin_is_machine_code_for_its_architecture(source: Path, architecture: str) -> None:
    image = compile_cubin(source, {}, architecture)
    assert image.startswith(b"\x7fELF")
    assert set(sass.read(image, opcodes=False)) == {"add"}
    assert b".target sm" not in image  # PTX is text


def test_defines_reach_the_source(source: Path) -> None:
    assert compile_cubin(source, {"STEP": "7"}, "sm_80") != compile_cubin(source, {}, "sm_80")


def test_a_mistake_in_a_source_shows_the_compilers_log_with_file_and_line(source: Path) -> None:
    source.write_text(KERNEL.replace("STEP", "STRIDE"))
    with pytest.raises(EngineError) as caught:
        compile_cubin(source, {}, "sm_80")
    first, *log, last = str(caught.value).splitlines()
    assert first == "custom_cuda: expected add.cu to compile for sm_80, got:"
    assert f'{source}(3): error: identifier "STRIDE" is undefined' in log
    assert last == "correct the source"


def test_a_missing_header_is_named(source: Path) -> None:
    (source.parent / "step.h").unlink()
    with pytest.raises(EngineError, match=r'add\.cu\(1\).*cannot open source file "step\.h"'):
        compile_cubin(source, {}, "sm_80")


def test_an_architecture_newer_than_nvrtc_says_what_is_needed(source: Path) -> None:
    with pytest.raises(EngineError, match=r"got sm_199; it needs a newer NVRTC: pip install -U nvidia-cuda-nvrtc"):
        compile_cubin(source, {}, "sm_199")


def test_an_architecture_older_than_nvrtc_says_so(source: Path) -> None:
    with pytest.raises(EngineError, match="got sm_50; it needs an older NVRTC"):
        compile_cubin(source, {}, "sm_50")


def test_a_name_that_is_no_architecture_is_refused(source: Path) -> None:
    with pytest.raises(EngineError, match="expected an architecture like sm_80, got 'hopper'"):
        compile_cubin(source, {}, "hopper")


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((7, 5), "sm_75"),
        ((8, 6), "sm_86"),
        ((9, 0), "sm_90a"),
        ((10, 0), "sm_100"),
        ((12, 0), "sm_120"),
        ((12, 9), "sm_121"),  # not known yet: its nearest relative's code runs on it
        ((8, 1), "sm_80"),
        ((19, 0), "sm_190"),  # a whole generation unknown: the compiler says that it needs a newer NVRTC
    ],
)
def test_a_device_gets_the_code_that_runs_on_it(
    capability: tuple[int, int], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121))
    assert nvrtc.architecture_for(*capability) == architecture


def test_every_architecture_under_test_is_one_that_nvrtc_knows() -> None:
    assert {75, 80, 86, 89, 90, 100, 120} <= set(nvrtc.architectures())
    assert nvrtc.version() >= (13, 0)


def test_a_misspelt_kernel_file_gets_a_suggestion() -> None:
    name = next(iter(sorted(sources.KERNELS.glob("*.cu")))).stem
    with pytest.raises(EngineError, match=f"got '{name}x'; did you mean '{name}'"):
        compile_cubin(f"{name}x", {}, "sm_80")


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="got no file"):
        compile_cubin(tmp_path / "absent.cu", {}, "sm_80")


@pytest.mark.parametrize("define", [{"A B": "1"}, {"A": "1 -DB=2"}, {"A": "$(x)"}])
def test_a_define_that_is_none_is_refused(source: Path, define: dict[str, str]) -> None:
    with pytest.raises(EngineError, match="expected a define like WEIGHT=WEIGHT_Q8_0"):
        compile_cubin(source, define, "sm_80")


def test_a_missing_nvrtc_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    from cuda.bindings import nvrtc as bindings

    def absent() -> None:
        msg = "libnvrtc.so.13 not found"
        raise RuntimeError(msg)

    monkeypatch.setattr(bindings, "nvrtcVersion", absent)
    nvrtc._nvrtc.cache_clear()
    with pytest.raises(EngineError, match=r"nvidia-cuda-nvrtc, got: libnvrtc.so.13 not found; pip install"):
        compile_cubin(source, {}, "sm_80")
