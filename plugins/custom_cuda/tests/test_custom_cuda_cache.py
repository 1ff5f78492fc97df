"""The cache of compiled kernels: what it depends on, what it survives."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from enginecmp_custom_cuda import compiling
from enginecmp_custom_cuda.compiling import cache, nvrtc, sources

CONTENT = bytes(range(256)) * 64


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


class Builder:
    """Return the content and count how often."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.content


def test_an_entry_is_built_once_and_read_after_that(folder: Path) -> None:
    build = Builder()
    assert [cache.fetch("a", build) for _ in range(3)] == [CONTENT] * 3
    assert build.calls == 1
    assert [path.name for path in folder.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("position", [0, len(cache.MAGIC) + 3, len(cache.MAGIC) + 32, -1])
def test_an_entry_with_one_wrong_bit_is_built_again(folder: Path, position: int) -> None:
    cache.fetch("a", Builder())
    damaged = bytearray((folder / "a.bin").read_bytes())
    damaged[position] ^= 1
    (folder / "a.bin").write_bytes(damaged)
    build = Builder()
    assert cache.fetch("a", build) == CONTENT
    assert build.calls == 1
    assert cache.read("a") == CONTENT


@pytest.mark.parametrize("kept", [0, 5, len(cache.MAGIC), len(cache.MAGIC) + 32, 1000])
def test_a_truncated_entry_is_built_again(folder: Path, kept: int) -> None:
    cache.fetch("a", Builder())
    os.truncate(folder / "a.bin", kept)
    build = Builder()
    assert cache.fetch("a", build) == CONTENT
    assert build.calls == 1
    assert cache.read("a") == CONTENT


def test_a_failed_build_leaves_nothing_behind(folder: Path) -> None:
    def fail() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.fetch("a", fail)
    assert not folder.exists()


TOGETHER = """
import hashlib, sys, time
from pathlib import Path
from enginecmp_custom_cuda.compiling import cache
def build():
    Path(sys.argv[1], "building-" + sys.argv[2]).touch()
    while len(list(Path(sys.argv[1]).glob("building-*"))) < 2:  # both are in here before either writes
        time.sleep(0.01)
    return bytes(range(256)) * 40000
print(hashlib.sha256(cache.fetch("same", build)).hexdigest())
"""


def test_two_processes_that_build_the_same_at_once_both_get_it_and_leave_one_good_entry(
    folder: Path, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", TOGETHER, str(tmp_path)]
    processes = [subprocess.Popen([*arguments, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected = bytes(range(256)) * 40000
    assert outputs == [hashlib.sha256(expected).hexdigest()] * 2
    assert cache.read("same") == expected
    assert [path.name for path in folder.iterdir()] == ["same.bin"]


def test_a_folder_that_cannot_be_made_costs_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "file"))
    build = Builder()
    assert [cache.fetch("a", build) for _ in range(2)] == [CONTENT] * 2
    assert build.calls == 2


def test_a_read_only_folder_costs_only_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:  # root may write anywhere, so the mode of the folder would prove nothing
        raise PermissionError(13, "Permission denied")

    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    build = Builder()
    assert [cache.fetch("a", build) for _ in range(2)] == [CONTENT] * 2
    assert build.calls == 2


def test_a_full_disk_costs_only_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fdopen = os.fdopen

    class Full:
        def __init__(self, descriptor: int, mode: str) -> None:
            self.file = fdopen(descriptor, mode)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> int:
            self.file.write(content[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", Full)
    assert cache.fetch("a", Builder()) == CONTENT
    assert list(folder.iterdir()) == []


def test_the_least_recently_used_entries_go_first(folder: Path) -> None:
    for age, name in enumerate("dcba"):
        cache.write(name, CONTENT)
        os.utime(folder / f"{name}.bin", (1e9 - age, 1e9 - age))
    assert cache.read("a") == CONTENT  # used just now, though the oldest
    size = (folder / "a.bin").stat().st_size
    cache.prune(limit_bytes=2 * size)
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "d.bin"]


def test_what_a_dead_process_left_is_swept_and_a_living_ones_is_not(folder: Path) -> None:
    cache.write("a", CONTENT)
    (folder / "old.tmp").touch()
    os.utime(folder / "old.tmp", (1e9, 1e9))
    (folder / "new.tmp").touch()
    cache.prune()
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "new.tmp"]


def test_the_key_tells_parts_from_their_concatenation() -> None:
    assert cache.key(["ab", "c"]) != cache.key(["a", "bc"])
    assert cache.key(["ab", b"c"]) == cache.key([b"ab", "c"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A kernel file that includes a header that includes another, and itself again."""
    (tmp_path / "outer.h").write_text('#pragma once\n  # include "deep/inner.h"\n#include "outer.h"\n')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "inner.h").write_text("#define ANSWER 42\n")
    path = tmp_path / "file.cu"
    path.write_text('#include "outer.h"\n#include "params.h"\n#include <nowhere.h>\n#include "nowhere.h"\n')
    return path


def test_the_closure_is_every_file_a_source_takes_in(source: Path) -> None:
    folder = source.parent
    included = {source, folder / "outer.h", folder / "deep/inner.h", sources.KERNELS / "params.h"}
    assert included <= set(sources.closure(source))
    assert all(path in included or path.parent == sources.KERNELS for path in sources.closure(source))


def test_everything_that_code_depends_on_changes_the_key(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(defines: dict[str, str] | None = None, architecture: str = "sm_80") -> str:
        return compiling.entry(source, {"A": "1", "B": "2"} if defines is None else defines, architecture)

    keys = [entry()]
    assert entry({"B": "2", "A": "1"}) == keys[0]
    keys += [entry({"A": "1"}), entry({"A": "1", "B": "3"}), entry(architecture="sm_86")]
    (source.parent / "deep" / "inner.h").write_text("#define ANSWER 43\n")
    keys.append(entry())
    source.write_text(source.read_text() + "\n")
    keys.append(entry())
    monkeypatch.setattr(nvrtc, "fingerprint", lambda: "another NVRTC")
    keys.append(entry())
    assert len(set(keys)) == len(keys)
