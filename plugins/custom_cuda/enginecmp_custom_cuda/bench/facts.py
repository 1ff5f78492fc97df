"""The part "facts": what is measured here, and with what."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from .context import Context

DISTRIBUTIONS = ("cuda-bindings", "cuda-core", "cuda-pathfinder", "nvidia-cuda-nvrtc", "nvidia-cublas", "numpy", "gguf")

NVIDIA_SMI = (
    *("name", "driver_version", "vbios_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm"),
    *("clocks.max.mem", "power.draw", "power.limit", "temperature.gpu", "memory.total", "memory.used"),
    *("clocks_throttle_reasons.active", "clocks_event_reasons.active", "ecc.mode.current"),
)
"""What nvidia-smi is asked for; what it does not know is left out."""

ATTRIBUTES = ("L2_CACHE_SIZE", "CLOCK_RATE", "MEMORY_CLOCK_RATE", "GLOBAL_MEMORY_BUS_WIDTH")


def run(context: Context) -> None:
    """Write down machine, device, driver, clocks, libraries and the source's commit."""
    context.fact("python", platform.python_version())
    context.fact("host", f"{platform.system()} {platform.release()}, {os.cpu_count()} processors")
    context.fact("versions", versions())
    context.fact("commit", commit(Path(__file__).parent))
    context.fact("nvidia-smi", nvidia_smi())
    from ..compiling import nvrtc

    with context.guarded("NVRTC"):
        context.fact("nvrtc", ".".join(map(str, nvrtc.version())))
    with context.device() as device:
        context.fact("device", device.name)
        context.fact("architecture", device.architecture)
        context.fact("multiprocessors", device.multiprocessors)
        context.fact("memory_bytes", device.total_bytes)
        context.fact("shared_bytes", device.shared_bytes)
        context.fact("driver_cuda", ".".join(map(str, device.driver_version)))
        context.fact("timed", device.timed)
        for name in ATTRIBUTES if device.timed else ():
            with context.guarded(f"attribute {name}"):
                context.fact(name, device.attribute(name))


def versions(names: Iterable[str] = DISTRIBUTIONS) -> dict[str, str]:
    """Return the versions of the distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> str:
    """Return the source's commit, with "+" where files differ from it; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    if shutil.which("git") is None or not (found := git("rev-parse", "--short=12", "HEAD")):
        return "unknown"
    return found + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")


def nvidia_smi() -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU now, by the names of its query; empty where it is not there."""
    if shutil.which("nvidia-smi") is None:
        return {}
    names = queried()
    answer = ask(f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0")
    values = [value.strip() for value in answer.split(",")]
    if len(values) != len(names):
        return {}
    return {name: value for name, value in zip(names, values, strict=True) if "N/A" not in value}


@functools.cache
def queried() -> tuple[str, ...]:
    """Return those of the names that this release of nvidia-smi knows: one that it does not spoils the whole query."""
    known = ask("--help-query-gpu")
    return tuple(name for name in NVIDIA_SMI if f'"{name}"' in known) or NVIDIA_SMI


def ask(*arguments: str) -> str:
    """Return what nvidia-smi prints, "" where it fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return ""
    return "" if done.returncode else done.stdout
