"""CUDA C++ to machine code of one architecture, with NVRTC: no toolchain, no driver, no GPU.

Always a cubin, never PTX: PTX of a newer compiler than the driver knows does not load.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginecmp import EngineError

from .sources import INCLUDE_FOLDERS, Defines, macros

FLAGS = ("--std=c++17", "--fmad=true")
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
    nvrtc = _nvrtc()
    check_architecture(architecture)
    options = [f"--gpu-architecture={architecture}", *FLAGS]
    options += [f"--include-path={folder}" for folder in (source.parent, *INCLUDE_FOLDERS)]
    options += [f"--define-macro={name}={value}" for name, value in macros(defines)]
    text = source.read_text(encoding="utf-8").encode()
    program = _checked(nvrtc.nvrtcCreateProgram(text, str(source).encode(), 0, [], []), "a program")
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [each.encode() for each in options])
        if int(status):
            log = _buffer(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            words = log.decode(errors="replace").strip("\0\n ") or _name(status)
            expected = f"custom_cuda: expected {source.name} to compile for {architecture}"
            msg = f"{expected}, got:\n{words}\ncorrect the source"
            raise EngineError(msg)
        return _buffer(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


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
    """Return what besides source, defines and architecture the code depends on.

    The compiler's own version, not that of the package it came in: a cache that is carried to a machine where NVRTC is
    part of a toolkit, or of another wheel, is a hit there.
    """
    return f"nvrtc {'.'.join(map(str, version()))} {' '.join(FLAGS)}"


def _buffer(size: Callable[..., Any], read: Callable[..., Any], program: Any) -> bytes:
    """Return what NVRTC made, by its function that tells how long it is and the one that copies it."""
    content = b" " * int(_checked(size(program), "the size of what was compiled"))
    _checked(read(program, content), "what was compiled")
    return content


def _checked(answer: tuple[Any, ...], expected: str) -> Any:
    """Return what a call of NVRTC returns beside its status.

    Raises:
        EngineError: the status is not success.
    """
    status, *values = answer
    if int(status):
        msg = f"custom_cuda: expected {expected} from NVRTC, got {_name(status)}; {INSTALL}"
        raise EngineError(msg)
    return values[0] if values else None


def _name(status: Any) -> str:
    """Return NVRTC's name of a status."""
    failed, text = _nvrtc().nvrtcGetErrorString(status)
    return f"NVRTC error {int(status)}" if int(failed) else bytes(text).decode()


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
