"""Compiling for the CPU: what g++ gives, its errors, and the stand-in driver in the cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from enginecmp import EngineError
from enginecmp_custom_cuda.compiling import gxx
from enginecmp_custom_cuda.compiling.sources import INCLUDE_FOLDERS

SOURCE = '#include "kernel.h"\nstruct P { int *out; };\nKERNEL(32, 1, one, P) { p.out[0] = VALUE; }\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "one.cu"
    path.write_text(SOURCE)
    return path


def test_a_kernel_becomes_a_shared_object_that_exports_its_record(source: Path) -> None:
    image = gxx.compile(source, {"VALUE": "7"}, INCLUDE_FOLDERS)
    assert image[:4] == b"\x7fELF"
    assert b"simt_kernel_one\0" in image
    assert b"simt_module\0" in image
    assert gxx.compile(source, {"VALUE": "7"}, INCLUDE_FOLDERS) == image
    assert gxx.compile(source, {"VALUE": "8"}, INCLUDE_FOLDERS) != image


def test_the_code_is_the_same_wherever_its_source_lies(tmp_path: Path) -> None:
    """The cache is shared by all checkouts of a machine, those that are gone too."""
    images = []
    for folder in (tmp_path / "one", tmp_path / "another"):
        folder.mkdir()
        source = folder / "waits.cu"
        source.write_text('#include "kernel.h"\nstruct P { int *out; };\nKERNEL(32, 1, one, P) { __syncthreads(); }\n')
        images.append(gxx.compile(source, {}, INCLUDE_FOLDERS))
    assert images[0] == images[1]
    assert b"\0waits.cu\0" in images[0]
    assert str(tmp_path).encode() not in images[0]


def test_a_mistake_in_the_source_is_shown(source: Path) -> None:
    with pytest.raises(EngineError, match=r"custom_cuda: expected one\.cu to compile for the CPU, got:") as caught:
        gxx.compile(source, {}, INCLUDE_FOLDERS)
    assert "VALUE" in str(caught.value)
    assert str(caught.value).endswith("correct the source")


def test_without_a_compiler_the_error_says_what_to_install(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EngineError, match=r"expected g\+\+ for the emulated device, got none; install it"):
        gxx.compile(source, {"VALUE": "7"}, INCLUDE_FOLDERS)


def fake_run(arguments: list[str], what: str) -> str:
    """Write the file that g++ would."""
    Path(arguments[arguments.index("-o") + 1]).write_text(what)
    return ""


def test_the_driver_is_built_once_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path))
    gxx.fingerprint()  # asks the compiler, once
    monkeypatch.setattr(gxx, "run", fake_run)
    old, recent = tmp_path / "kernels" / "emulator-old", tmp_path / "kernels" / "emulator-recent"
    for folder in (old, recent):
        folder.mkdir(parents=True)
    os.utime(old, (0, time.time() - 2 * gxx.STALE_SECONDS))
    library = gxx.driver_library()
    assert library.name == "libcuda.so.1"
    assert library.read_text() == "libcuda.so.1"
    assert sorted(folder.name for folder in library.parent.parent.iterdir()) == sorted(
        [library.parent.name, recent.name]
    )
    assert [file.name for file in library.parent.iterdir()] == ["libcuda.so.1"]
    library.write_text("built before")
    assert gxx.driver_library().read_text() == "built before"


def test_a_process_that_was_faster_leaves_a_driver_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path))
    gxx.fingerprint()

    def slower(arguments: list[str], what: str) -> str:
        fake_run(arguments, what)
        target = wanted[0]
        target.mkdir()
        (target / gxx.LIBRARY).write_text("theirs")
        return ""

    wanted: list[Path] = []
    build = gxx.build_driver

    def remember(sources: list[Path], folder: Path) -> None:
        wanted.append(folder)
        build(sources, folder)

    monkeypatch.setattr(gxx, "run", slower)
    monkeypatch.setattr(gxx, "build_driver", remember)
    assert gxx.driver_library().read_text() == "theirs"
    assert names(tmp_path / "kernels") == [wanted[0].name]


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    found: Iterable[Path] = folder.iterdir()
    return sorted(path.name for path in found)


def test_a_folder_that_takes_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels").write_text("a file where the folder should be")
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match=r"expected a writable folder for compiled kernels, got: .*; set ENGINECMP"):
        gxx.driver_library()
