"""What the plugin says without its extension: facts, processors, options."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from enginecmp import EngineError, LoadOptions, UnknownOption
from enginecmp_burn import cmp_engine, cmp_probe, facts
from enginecmp_burn.options import check_threads, read_settings

ROOT = Path(__file__).parents[1]

CPU = "processor\t: 0\nflags\t\t: fpu sse4_2 {flags}\nbugs\t\t: spectre_v1\n"
V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe"


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An x86-64 processor whose flags are in the returned file, and a built extension in `shim`."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(facts, "CPUINFO", path)
    monkeypatch.setattr(facts.platform, "machine", lambda: "x86_64")
    shim = tmp_path / "shim"
    shim.write_bytes(b"\0enginecmp-burn compiled for x86-64-v3\0")
    spec = importlib.machinery.ModuleSpec("enginecmp_burn._shim", None, origin=str(shim))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return path


def test_the_version_is_the_one_that_is_compiled_in() -> None:
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    versions = {package["name"]: package["version"] for package in lock["package"]}
    assert cmp_engine().version == versions["burn"] == versions["burn-flex"]


def test_the_installed_extension_tells_what_it_was_compiled_for(extension: None) -> None:
    from enginecmp_burn import _shim

    assert _shim.COMPILED_FOR.encode() in Path(_shim.__file__).read_bytes()
    assert _shim.COMPILED_FOR.encode() in (facts.COMPILED_FOR_V3, b"enginecmp-burn compiled for the baseline")


@pytest.mark.parametrize("missing", V3.split())
def test_a_processor_without_an_instruction_is_refused_before_the_import(cpu: Path, missing: str) -> None:
    cpu.write_text(CPU.format(flags=V3.replace(f"{missing} ", "").removesuffix(" movbe" if missing == "movbe" else "")))
    found = cmp_probe(LoadOptions())
    assert not found.ok
    assert found.reason == f"the extension is compiled for x86-64-v3 and this CPU has no {missing}"
    assert "target-cpu=x86-64'" in found.mend


def test_a_processor_with_all_of_them_is_accepted(cpu: Path) -> None:
    cpu.write_text(CPU.format(flags=V3))
    assert cmp_probe(LoadOptions()).ok


def test_a_portable_build_runs_on_any_processor(cpu: Path, tmp_path: Path) -> None:
    cpu.write_text(CPU.format(flags=""))
    (tmp_path / "shim").write_bytes(b"enginecmp-burn compiled for the baseline")
    assert cmp_probe(LoadOptions()).ok


def test_without_the_extension_the_probe_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = cmp_probe(LoadOptions())
    assert not found.ok
    assert found.reason == "its Rust extension is not built"
    assert "cargo" in found.mend


def test_a_build_without_cuda_says_so(extension: None) -> None:
    from enginecmp_burn import _shim

    if "cuda" in _shim.features():
        pytest.skip("this build has CUDA")
    found = cmp_probe(LoadOptions(device="cuda"))
    assert not found.ok
    assert found.reason == "the extension was built without CUDA"
    assert "--features python,cuda" in found.mend


@pytest.mark.parametrize("threads", ["2", None])
def test_an_environment_for_other_threads_is_refused_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, threads: str | None
) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("RAYON_NUM_THREADS", threads)
    with pytest.raises(EngineError) as raised:
        check_threads(1)
    assert f"RAYON_NUM_THREADS={threads or '(unset)'}" in str(raised.value)
    assert str(raised.value).endswith("start Python with RAYON_NUM_THREADS=1")


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownOption, match=r"burn: unknown option 'prompt_chunks'; did you mean 'prompt_chunk'\?"):
        read_settings(LoadOptions(extra={"prompt_chunks": "4"}))


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_a_chunk_is_a_whole_number(value: str) -> None:
    with pytest.raises(EngineError, match=re.escape(f"a whole number >= 1, got '{value}'")):
        read_settings(LoadOptions(extra={"prompt_chunk": value}))
    assert read_settings(LoadOptions(extra={"prompt_chunk": "64"})).prompt_chunk == 64


def test_attention_is_fused_where_that_was_tried() -> None:
    assert read_settings(LoadOptions()).attention == "fused"
    assert read_settings(LoadOptions(device="cuda")).attention == "plain"
    assert read_settings(LoadOptions(device="cuda", extra={"attention": "fused"})).attention == "fused"
    with pytest.raises(EngineError, match=r"attention expects fused or plain, got 'fussed'; did you mean 'fused'\?"):
        read_settings(LoadOptions(extra={"attention": "fussed"}))


def test_it_conforms(extension: None, tmp_path: Path) -> None:
    suite = [sys.executable, "-m", "pytest", "--pyargs", "enginecmp.testing", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*suite, "--engine", "burn"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 16, done.stdout
