"""Whether the engine can run here: every answer of the probe, against drivers written for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from enginecmp import LoadOptions
from enginecmp_custom_cuda import cmp_probe, facts

DRIVER = """
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    if (device != 7) return 101;
    *value = which == 75 ? CAPABILITY / 10 : which == 76 ? CAPABILITY % 10 : -1;
    return 0;
}
int cuGetErrorName(int status, const char **name) {
    if (status != 803) return 1;
    *name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH";
    return 0;
}
"""


def driver(folder: Path, version: int = 13000, init: int = 0, count: int = 1, capability: int = 90) -> str:
    """Return the path of a library that answers like a driver."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text(DRIVER)
    values = {"VERSION": version, "INIT": init, "COUNT": count, "CAPABILITY": capability}
    defines = [f"-D{name}={value}" for name, value in values.items()]
    subprocess.run(["gcc", "-shared", "-fPIC", *defines, str(source), "-o", str(library)], check=True)
    return str(library)


def test_a_gpu_that_the_compiler_has_code_for_is_enough(tmp_path: Path) -> None:
    found = facts.probe_driver(driver(tmp_path, capability=75))
    assert (found.ok, found.reason, found.fix) == (True, "", "")


@pytest.mark.parametrize(
    ("answers", "reason", "fix"),
    [
        (
            {"version": 12090},
            "the NVIDIA driver knows CUDA 12.9, the kernels need 13.0",
            "update the NVIDIA driver to release 580 or newer, or pip install 'enginecmp-custom-cuda[cu12]'",
        ),
        ({"init": 100}, "the NVIDIA driver sees no GPU", "CUDA_VISIBLE_DEVICES"),
        ({"count": 0}, "the NVIDIA driver sees no GPU", "CUDA_VISIBLE_DEVICES"),
        (
            {"init": 803},
            "the NVIDIA driver does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "nvidia-smi",
        ),
        ({"init": 999}, "the NVIDIA driver does not start: CUDA error 999", "nvidia-smi"),
        ({"capability": 70}, "the GPU has compute capability 7.0, the kernels need 7.5", "Turing"),
    ],
)
def test_what_is_missing_is_named_with_what_mends_it(
    tmp_path: Path, answers: dict[str, int], reason: str, fix: str
) -> None:
    found = facts.probe_driver(driver(tmp_path, **answers))
    assert not found.ok
    assert found.reason == reason
    assert fix in found.fix


@pytest.mark.parametrize(("version", "ok"), [(12000, True), (13000, True), (11080, False)])
def test_the_compiler_of_cuda_12_takes_drivers_that_know_cuda_12(tmp_path: Path, version: int, ok: bool) -> None:
    found = facts.probe_driver(driver(tmp_path, version=version), major=12)
    assert found.ok == ok
    if not ok:
        assert found.reason == "the NVIDIA driver knows CUDA 11.8, the kernels need 12.0"
        assert found.fix == "update the NVIDIA driver to release 525 or newer"


def test_no_driver_is_a_reason(tmp_path: Path) -> None:
    found = facts.probe_driver(str(tmp_path / "libcuda.so.1"))
    assert not found.ok
    assert found.reason == "there is no NVIDIA driver (libcuda.so.1)"
    assert "--device emulated" in found.fix


def test_the_emulated_device_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cmp_probe(LoadOptions(device="emulated")).ok == (shutil.which("g++") is not None)
    monkeypatch.setenv("PATH", "")
    found = cmp_probe(LoadOptions(device="emulated"))
    assert not found.ok
    assert "there is no g++" in found.reason
    assert found.fix == "apt-get install g++"


@pytest.mark.parametrize(
    ("device", "bindings", "missing"),
    [
        ("cuda", "13.5.0", "nvidia-cuda-nvrtc"),
        ("cuda", "12.9.10", "nvidia-cuda-nvrtc-cu12"),
        ("cuda", "13.5.0", "cuda-bindings"),
        ("emulated", "13.5.0", "cuda-bindings"),
    ],
)
def test_a_missing_package_is_named(device: str, bindings: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == missing:
            raise metadata.PackageNotFoundError(name)
        return bindings

    monkeypatch.setattr(metadata, "version", version)
    found = cmp_probe(LoadOptions(device=device))
    assert (found.ok, found.reason) == (False, f"the Python package {missing} is not installed")
    assert found.fix == "pip install enginecmp-custom-cuda"


def test_the_emulated_device_needs_no_gpu_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts.missing_package("emulated") is None
    monkeypatch.setattr(sys, "platform", "darwin")
    found = cmp_probe(LoadOptions(device="emulated"))
    assert (found.ok, found.reason) == (False, "runs on Linux, this is darwin")


def test_another_device_is_refused() -> None:
    found = cmp_probe(LoadOptions(device="cpu"))
    assert (found.ok, found.reason) == (False, "runs on cuda and emulated, not on cpu")


def test_probing_imports_nothing_native() -> None:
    script = (
        "import sys\n"
        "from enginecmp import LoadOptions\n"
        "from enginecmp_custom_cuda import cmp_engine, cmp_probe\n"
        "cmp_engine(), cmp_probe(LoadOptions(device='cuda')), cmp_probe(LoadOptions(device='emulated'))\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'cuda', 'numpy', 'torch'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
