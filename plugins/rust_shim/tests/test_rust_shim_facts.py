"""What a plugin on the shim says without its extension: processors, options, threads; and that it conforms."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import unchanged

from enginecmp import EngineError, LoadOptions, UnknownOption
from enginecmp.plugin_tools import rust_plugin
from enginecmp.plugin_tools.engine_options import check_thread_variables
from enginecmp.testing.sessions import require_engine

pytestmark = unchanged.left_out_with("plugins/rust_shim", "plugins/candle", "plugins/burn", "plugins/custom_cpu")

CPU = "processor\t: 0\nflags\t\t: fpu sse4_2 {flags}\nbugs\t\t: spectre_v1\n"
V3 = ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"]


@pytest.fixture
def name(engine: ModuleType) -> str:
    return str(engine.cmp_engine().name)


@pytest.fixture
def cpu(engine: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An x86-64 processor whose flags are in the returned file, and a built extension in `shim`."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(rust_plugin, "CPUINFO", path)
    monkeypatch.setattr(rust_plugin.platform, "machine", lambda: "x86_64")
    shim = tmp_path / "shim"
    shim.write_bytes(b"\0enginecmp-%s compiled for x86-64-v3\0" % name.encode())
    spec = importlib.machinery.ModuleSpec(f"enginecmp_{name}._shim", None, origin=str(shim))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return path


def test_the_installed_extension_tells_what_it_was_compiled_for(engine: ModuleType, name: str) -> None:
    require_engine(engine)
    shim = importlib.import_module(f"enginecmp_{name}._shim")
    said = shim.COMPILED_FOR.encode()
    assert said in Path(str(shim.__file__)).read_bytes()
    assert said in (
        rust_plugin.compiled_for_v3(engine.__name__),
        b"enginecmp-%s compiled for the baseline" % name.encode(),
    )


@pytest.mark.parametrize("missing", V3)
def test_a_processor_without_an_instruction_is_refused_before_the_import(
    engine: ModuleType, cpu: Path, missing: str
) -> None:
    cpu.write_text(CPU.format(flags=" ".join(flag for flag in V3 if flag != missing)))
    found = engine.cmp_probe(LoadOptions())
    assert not found.ok
    assert found.reason == f"the extension is compiled for x86-64-v3 and this CPU has no {missing}"
    assert "target-cpu=x86-64'" in found.fix


def test_a_processor_with_all_of_them_is_accepted(engine: ModuleType, cpu: Path) -> None:
    cpu.write_text(CPU.format(flags=" ".join(V3)))
    assert engine.cmp_probe(LoadOptions()).ok


def test_a_portable_build_runs_on_any_processor(engine: ModuleType, name: str, cpu: Path, tmp_path: Path) -> None:
    cpu.write_text(CPU.format(flags=""))
    (tmp_path / "shim").write_bytes(b"enginecmp-%s compiled for the baseline" % name.encode())
    assert engine.cmp_probe(LoadOptions()).ok


def test_without_the_extension_the_probe_gives_the_install_line(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = engine.cmp_probe(LoadOptions())
    assert not found.ok
    assert found.reason == "its Rust extension is not built"
    assert "cargo" in found.fix


def test_a_build_without_cuda_says_so(engine: ModuleType, name: str) -> None:
    require_engine(engine)
    if "cuda" in importlib.import_module(f"enginecmp_{name}._shim").features():
        pytest.skip("this build has CUDA")
    found = engine.cmp_probe(LoadOptions(device="cuda"))
    assert not found.ok
    assert found.reason == "the extension was built without CUDA"
    assert "--features python,cuda" in found.fix


@pytest.mark.parametrize("threads", ["2", None])
def test_an_environment_for_other_threads_is_refused_with_the_fix(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch, threads: str | None
) -> None:
    wanted = [variable for variable in engine.cmp_engine().environment if variable.endswith("_NUM_THREADS")]
    for variable in wanted:
        monkeypatch.setenv(variable, "1")
    monkeypatch.delenv("RAYON_NUM_THREADS")
    if threads:
        monkeypatch.setenv("RAYON_NUM_THREADS", threads)
    with pytest.raises(EngineError) as raised:
        check_thread_variables("some_engine", engine.options.THREAD_VARIABLES, 1)
    assert f"RAYON_NUM_THREADS={threads or '(unset)'}" in str(raised.value)
    assert str(raised.value).endswith("start Python with " + " ".join(f"{variable}=1" for variable in wanted))


def test_an_unknown_option_names_the_nearest(engine: ModuleType) -> None:
    with pytest.raises(UnknownOption, match=r": unknown option 'prompt_chunks'; did you mean 'prompt_chunk'\?"):
        engine.options.read_settings(LoadOptions(extra={"prompt_chunks": "4"}))


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_a_chunk_is_a_whole_number(engine: ModuleType, value: str) -> None:
    with pytest.raises(EngineError, match=re.escape(f"a whole number >= 1, got '{value}'")):
        engine.options.read_settings(LoadOptions(extra={"prompt_chunk": value}))
    assert engine.options.read_settings(LoadOptions(extra={"prompt_chunk": "64"})).prompt_chunk == 64


def test_it_conforms(engine: ModuleType, name: str, tmp_path: Path) -> None:
    require_engine(engine)
    suite = [sys.executable, "-m", "pytest", "--pyargs", "enginecmp.testing", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*suite, "--engine", name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 60, done.stdout
