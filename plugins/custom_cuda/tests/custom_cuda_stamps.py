"""What a test file depends on: this plugin, the modules of enginecmp that the plugin and its tests import, and the
versions of what compiles and computes.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import enginecmp

PLUGIN = Path(__file__).resolve().parent.parent
CORE = PLUGIN.parent.parent / "core" / "enginecmp"
CODE = {".py", ".cu", ".cuh", ".h", ".cpp", ".toml"}
WHOLE_CORE = {"test_custom_cuda_conformance.py"}
"""Files whose tests go through the host and its workers, too."""

DISTRIBUTIONS = (
    *("numpy", "hypothesis", "gguf", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cublas"),
    *("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"),
)


@functools.cache
def inputs_of(file: Path) -> str:
    """Return a hash of what a test file depends on."""
    whole = file.name in WHOLE_CORE
    sources = sorted(CORE.rglob("*.py")) if whole else core_modules()
    digest = hashlib.sha256(_own().encode())
    for path in sources:
        digest.update(f"{path.relative_to(CORE)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


@functools.cache
def _own() -> str:
    """Return a hash of this plugin and of what it runs on."""
    digest = hashlib.sha256(f"{sys.version} {os.uname().machine} {_compiler()}\n".encode())
    for name in DISTRIBUTIONS:
        digest.update(f"{name} {_version(name)}\n".encode())
    for path in sorted(path for path in PLUGIN.rglob("*") if path.suffix in CODE):
        digest.update(f"{path.relative_to(PLUGIN)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _compiler() -> str:
    found = shutil.which("g++")
    return subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout if found else "none"


@functools.cache
def core_modules() -> list[Path]:
    """Return the files of enginecmp that this plugin and its tests import, and those that these import."""
    found: set[Path] = set()
    waiting = [name for file in PLUGIN.rglob("*.py") for name in _imported(file)]
    while waiting:
        for path in _files_of(waiting.pop()):
            if path not in found:
                found.add(path)
                waiting += _imported(path, ".".join(path.relative_to(CORE.parent).parts[:-1]))
    return sorted(found)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what may run in a module; what is there for types alone is left out."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _run(node)


def _imported(file: Path, package: str = "") -> Iterator[str]:
    """Yield names of modules of enginecmp, and of what is taken from them, which may be modules too."""
    for node in _run(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "enginecmp")
        elif isinstance(node, ast.ImportFrom):
            levels = package.split(".")
            base = ".".join(levels[: len(levels) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module.split(".")[0] == "enginecmp":
                yield from (f"{module}.{alias.name}" for alias in node.names)


def _files_of(name: str) -> Iterator[Path]:
    """Yield the files that importing a dotted name runs: packages on the way, and the module."""
    top, _, last = name.rpartition(".")
    if top == "enginecmp" and last in enginecmp._HOME_OF:  # a public name, loaded when it is asked for
        name = enginecmp._HOME_OF[last]
    place = CORE.parent
    for part in name.split("."):
        place = place / part
        if place.with_suffix(".py").is_file():
            yield place.with_suffix(".py")
        elif (place / "__init__.py").is_file():
            yield place / "__init__.py"
