"""Kernels to shared objects for this machine's CPU, with g++, and the stand-in driver that loads them.

The driver's library is called libcuda.so.1 and so is found by whatever looks for CUDA's; see emulator/.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from enginecmp import EngineError

from . import cache
from .sources import EMULATOR, Defines, macros

LIBRARY = "libcuda.so.1"

COMMON = ("-O2", "-std=c++17", "-march=native", "-fPIC", "-pthread")
# Contraction is left to the sources' own fmaf: one source gives one result, however it is inlined.
# Unique symbols would let two modules with the same names share variables.
KERNEL = (*COMMON, "-shared", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off", "-fno-math-errno", "-w")
DRIVER = (*COMMON, "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")

TIMEOUT_SECONDS = 600

STALE_SECONDS = 30 * 24 * 3600
"""Drivers that were built before are dropped when another one is built."""


def compile(source: Path, defines: Defines, include_folders: Iterable[Path]) -> bytes:
    """Return the shared object of a kernel file, for the stand-in driver to load.

    Args:
        source: a .cu file.
        defines: macro names and values.
        include_folders: where its headers lie, beside its own folder.

    Raises:
        EngineError: there is no g++, or it refuses the source (with its messages).
    """
    options = [f"-D{name}={value}" for name, value in macros(defines)]
    folders = [source.parent, *include_folders]
    options += [f"-I{folder}" for folder in folders[1:]]
    # The code names its own files (__FILE__): by their place below these folders, not by where this copy of them lies.
    options += [f"-fmacro-prefix-map={folder}/=" for folder in folders]
    with tempfile.TemporaryDirectory(prefix="enginecmp-") as folder:
        out = Path(folder) / "kernels.so"
        run([*KERNEL, "-fmax-errors=20", *options, "-x", "c++", str(source), "-o", str(out)], source.name)
        return out.read_bytes()


def driver_library() -> Path:
    """Return the path of the stand-in driver, built where it is not there yet.

    Raises:
        EngineError: there is no g++, or no folder to write to.
    """
    sources = sorted(EMULATOR.glob("*.cpp"))
    texts = [path.read_bytes() for path in (*sources, *sorted(EMULATOR.glob("*.h")))]
    folder = cache.folder() / f"emulator-{cache.key([fingerprint(), *DRIVER, *texts])[:24]}"
    library = folder / LIBRARY
    if not library.is_file():
        build_driver(sources, folder)
    return library


def build_driver(sources: list[Path], folder: Path) -> None:
    """Build the driver under another name and rename it: two processes that build at once both end well."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=folder.parent, prefix="emulator-", suffix=".tmp")
    except OSError as error:
        msg = f"custom_cuda: expected a writable folder for compiled kernels, got: {error}; set ENGINECMP_CACHE"
        raise EngineError(msg) from error
    try:
        # One file that takes in all: most of the time goes into the standard library's headers.
        whole = Path(temporary) / "driver.cpp"
        whole.write_text("".join(f'#include "{source}"\n' for source in sources), encoding="utf-8")
        run([*DRIVER, f"-Wl,-soname,{LIBRARY}", str(whole), "-o", f"{temporary}/{LIBRARY}", "-ldl"], LIBRARY)
        whole.unlink()
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in folder.parent.glob("emulator-*"):
        with contextlib.suppress(OSError):  # of an older release, or left by a process that died
            if other.stat().st_mtime < time.time() - STALE_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


def run(arguments: list[str], what: str) -> str:
    """Run g++; return what it printed."""
    command = compiler()
    try:
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        msg = f"custom_cuda: expected g++ to compile {what} within {TIMEOUT_SECONDS} s, got nothing; try again"
        raise EngineError(msg) from error
    if done.returncode:
        log = done.stderr.strip()
        msg = f"custom_cuda: expected {what} to compile for the CPU, got:\n{log[:20000]}\ncorrect the source"
        raise EngineError(msg)
    return done.stdout + done.stderr


def compiler() -> str:
    """Return the path of g++."""
    found = shutil.which("g++")
    if found is None:
        msg = "custom_cuda: expected g++ for the emulated device, got none; install it (Debian: apt install g++)"
        raise EngineError(msg)
    return found


@functools.cache
def fingerprint() -> str:
    """Return what besides source and defines the code depends on: compiler, flags, this machine's CPU, the shim."""
    version = run(["-dumpfullversion"], "its version").strip()
    # What "native" stands for here: a cache may be shared by different machines.
    native = run(["-march=native", "-Q", "--help=target"], "its target")
    digest = hashlib.sha256(native.encode()).hexdigest()[:16]
    return f"g++ {version} {digest} {' '.join(KERNEL)} -fmacro-prefix-map"
