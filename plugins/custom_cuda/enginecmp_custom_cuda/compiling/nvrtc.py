"""CUDA C++ to machine code of one architecture, with NVRTC: no toolchain, no driver, no GPU.

Always a cubin, never PTX: PTX of a newer compiler than the driver knows does not load.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from enginecmp import EngineError

from .sources import INCLUDE_FOLDERS, Defines, macros

FLAGS = ("std=c++17", "fmad")
"""What every file is compiled with, as part of the cache's key."""

INSTALL = "pip install -U nvidia-cuda-nvrtc"


def compile(source: Path, defines: Defines, architecture: str) -> bytes:
    """Return the cubin of a source file.

    Args:
        source: a .cu file; what it includes is found beside it and in the package.
        defines: macro names and values.
        architecture: such as "sm_80" or "sm_90a".

    Raises:
        EngineError: NVRTC is missing, does not know the architecture, or refuses the source (with its log).
    """
    core = _core()
    check_architecture(architecture)
    options = core.ProgramOptions(
        name=str(source),
        arch=architecture,
        std="c++17",
        fma=True,
        include_path=[str(folder) for folder in (source.parent, *INCLUDE_FOLDERS)],
        define_macro=macros(defines) or None,
    )
    program = core.Program(source.read_text(encoding="utf-8"), "c++", options)
    try:
        return bytes(program.compile("cubin").code)
    except Exception as error:
        # cuda.core's class for this is private; the log is how it differs from a mistake of ours.
        _, found, log = str(error).partition("compilation log:")
        if not found:
            raise
        expected = f"custom_cuda: expected {source.name} to compile for {architecture}"
        text = log.strip("\0\n ")
        msg = f"{expected}, got:\n{text}\ncorrect the source"
        raise EngineError(msg) from error
    finally:
        program.close()


def check_architecture(architecture: str) -> None:
    """Raise EngineError where NVRTC has no code for an architecture."""
    number = re.fullmatch(r"sm_(\d+)[af]?", architecture)
    if number is None:
        msg = f"custom_cuda: expected an architecture like sm_80, got '{architecture}'; correct it"
        raise EngineError(msg)
    if int(number[1]) not in architectures():
        known, release = architectures(), ".".join(map(str, version()))
        wanted = "an older NVRTC" if int(number[1]) < known[0] else "a newer NVRTC"
        msg = (
            f"custom_cuda: expected one of sm_{', sm_'.join(map(str, known))} (NVRTC {release}), got {architecture}; "
            f"it needs {wanted}: {INSTALL}"
        )
        raise EngineError(msg)


def architecture_for(major: int, minor: int) -> str:
    """Return what to compile for on a device of a compute capability.

    Machine code runs on its own architecture and on later ones of the same major number (CUDA C++ Programming
    Guide, "Binary compatibility"), so a device that NVRTC does not know yet gets its nearest relative. 9.0 gets
    sm_90a, for the instructions that exist nowhere else.
    """
    if (major, minor) == (9, 0):
        return "sm_90a"
    number = 10 * major + minor
    known = architectures()
    relatives = [other for other in known if other // 10 == major and other <= number]
    return f"sm_{relatives[-1] if relatives else number}"


@functools.cache
def architectures() -> tuple[int, ...]:
    """Return the architectures that the installed NVRTC compiles for, such as (75, 80, ...)."""
    nvrtc = _nvrtc()
    status, found = nvrtc.nvrtcGetSupportedArchs()
    return tuple(sorted(map(int, found))) if not int(status) else ()


@functools.cache
def version() -> tuple[int, int]:
    """Return NVRTC's version, such as (13, 2)."""
    status, major, minor = _nvrtc().nvrtcVersion()
    return (int(major), int(minor)) if not int(status) else (0, 0)


def fingerprint() -> str:
    """Return what besides source, defines and architecture the code depends on."""
    # The builtins' file is named after the full version; two releases of 13.2 may differ in code.
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        release = installed("nvidia-cuda-nvrtc")
    except PackageNotFoundError:
        release = "?"
    return f"nvrtc {version()} {release} {' '.join(FLAGS)}"


def _core() -> Any:
    """Return cuda.core; NVRTC itself is loaded by its first use, so it is tried here."""
    _nvrtc()
    from cuda import core

    return core


@functools.cache
def _nvrtc() -> Any:
    """Return `cuda.bindings.nvrtc`, its library loaded."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # cuda.pathfinder raises RuntimeErrors of its own
        msg = f"custom_cuda: expected the wheel nvidia-cuda-nvrtc, got: {str(error).splitlines()[0]}; {INSTALL}"
        raise EngineError(msg) from error
    return nvrtc
