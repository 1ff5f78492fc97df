"""Kernels from their sources: compiled where they run, kept in a cache.

No device is needed; `device.build` compiles for one and loads.
"""

from __future__ import annotations

from pathlib import Path

from . import cache, sources
from .sources import Defines

EMULATED = "emulated"
"""The architecture that means "g++, for this machine's CPU"."""


def compile_cubin(file: str | Path, defines: Defines, architecture: str) -> bytes:
    """Return the machine code of a kernel file, from the cache where it is there.

    Args:
        file: a name in kernels/ without ".cu", or a path.
        defines: macro names and values, such as {"WEIGHT": "WEIGHT_Q8_0", "HEAD_DIM": "64"}.
        architecture: "sm_80", "sm_90a", ... or "emulated".

    Raises:
        EngineError: no such file, no compiler for this architecture, or the compiler's log.
    """
    source = sources.find(file)
    return cache.fetch(entry(source, defines, architecture), lambda: compile_now(source, defines, architecture))


def compile_now(source: Path, defines: Defines, architecture: str) -> bytes:
    """Return the machine code of a source file, compiled now."""
    if architecture == EMULATED:
        from . import gxx

        return gxx.compile(source, defines, sources.INCLUDE_FOLDERS)
    from . import nvrtc

    return nvrtc.compile(source, defines, architecture)


def entry(source: Path, defines: Defines, architecture: str) -> str:
    """Return the name of a compiled file in the cache: a hash of all that it depends on."""
    if architecture == EMULATED:
        from . import gxx

        compiler = gxx.fingerprint()
    else:
        from . import nvrtc

        compiler = nvrtc.fingerprint()
    texts = sorted((path.name, text) for path, text in sources.closure(source).items())
    parts = [architecture, compiler, source.name]
    parts += [f"{name}={value}" for name, value in sources.macros(defines)]
    return cache.key(parts + [part for pair in texts for part in pair])


__all__ = ["EMULATED", "compile_cubin"]
