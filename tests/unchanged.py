"""Which test files passed as they are: a file whose inputs are the same as then need not run again.

Costly files alone are left out: by `pytestmark = unchanged.left_out_with("plugins/NAME", ...)`, or by a `STAMP` that a
plugin's conftest.py puts on its tests.
A stamp is written where every test of the file ran and none failed. `ENGINECMP_TEST_ALL=1` runs all, and CI does.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import platformdirs
import pytest

REASON = "unchanged since they last passed; ENGINECMP_TEST_ALL=1 runs them"
STAMP = pytest.StashKey[Path]()
"""Of a test: where its file is stamped, the inputs in the name."""

ROOT = Path(__file__).resolve().parent.parent
STAMPS = Path(os.environ.get("ENGINECMP_CACHE") or platformdirs.user_cache_dir("enginecmp")) / "stamps"
"""Found before any test changes where caches are."""

HOST = ("core", "analysis", "tests")
"""Folders on which every test of whole commands depends."""

CODE = {".py", ".rs", ".toml", ".lock", ".json", ".jsonl", ".txt", ".js", ".css", ".html"}


def left_out_with(*folders: str) -> pytest.MarkDecorator:
    """Return the mark of a file that is left out while it, the host and these folders are as when it last passed.

    Args:
        folders: relative to the repository, such as "plugins/candle".
    """
    return pytest.mark.unchanged(*folders)


class Passes:
    """Which files passed as a whole: a test that was left out by a choice of names is never seen to end."""

    def __init__(self) -> None:
        self._left: dict[Path, set[str]] = {}
        self._failed: set[str] = set()

    def expect(self, file: Path, test: str) -> None:
        """Take a test of a file in, by its node id."""
        self._left.setdefault(file, set()).add(test)

    def saw(self, report: pytest.TestReport) -> None:
        """Strike a test that ended without a failure off the list; one that was skipped has said why."""
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in self._failed:
            for left in self._left.values():
                left.discard(report.nodeid)

    def whole(self) -> list[Path]:
        """Return the files of which nothing is left."""
        return [file for file, left in self._left.items() if not left]


def everything() -> bool:
    """Return whether nothing is to be left out."""
    return bool(os.environ.get("ENGINECMP_TEST_ALL") or os.environ.get("CI"))


def named(config: pytest.Config, item: pytest.Item) -> bool:
    """Return whether somebody asks for a test's file, or for one of its tests, and not for a folder or for all."""
    return any(Path(argument.partition("::")[0]).name == item.path.name for argument in config.args)


def stamp_of(file: Path, *folders: str) -> Path:
    """Return the path of the stamp of a file that depends on the host and on these folders."""
    digest = hashlib.sha256(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n{_present()}\n".encode())
    for each in dict.fromkeys((*HOST, *folders)):
        digest.update(_hash_of(ROOT / each).encode())
    return stamp_path(file, digest.hexdigest())


def stamp_path(file: Path, inputs: str) -> Path:
    """Return the path of a file's stamp: its name and a hash of its inputs."""
    return STAMPS / f"{file.stem}-{inputs[:32]}"


@functools.cache
def _present() -> str:
    """Return what decides beside the code which tests run and what they see: a test that lacks something is skipped."""
    packages = sorted(f"{found.name} {found.version}" for found in metadata.distributions())
    built = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "plugins").rglob("*.so"))
    programs = [name for name in ("cargo", "g++", "llama-server", "sshd", "chromium") if shutil.which(name)]
    return f"{sys.version} {os.uname().machine} {os.environ.get('LLAMA_SERVER')} {packages} {built} {programs}"


@functools.cache
def _hash_of(folder: Path) -> str:
    """Return a hash of a folder's code."""
    digest = hashlib.sha256()
    for path in sorted(_code(folder)):
        digest.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _code(folder: Path) -> Iterator[Path]:
    """Yield the code under a folder; of tests, only the helpers, as a file's own text is hashed with it."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        build = {"__pycache__", "target", "build"} & {*parts}
        if path.suffix in CODE and not build and not path.name.startswith("test_") and path.is_file():
            yield path
