"""What the machine's memory copies at best: the yardstick for how near decoding comes to reading at full speed.

As STREAM's copy kernel (McCalpin 1995): two arrays far larger than the caches, bytes counted as read plus written,
the best of several repeats because everything that disturbs only slows. Run once, before the first block.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.types import LoadOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPEATS = 10
"""Timed copies of each size; one before them is not timed (it takes the page faults)."""

_CACHES = 4
"""An array must be this many times the last-level cache (STREAM's run rule)."""

_LEAST_BYTES = 1 << 27
_MEMORY_SHARE = 8
"""An array may take at most this part of the free memory."""


class CopyBandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one probe.

    Attributes:
        bytes_per_second: best copy of the largest size, bytes read plus bytes written over its time.
        threads: that copied, each its own part.
        cache_bytes: last-level cache that the sizes were held against.
        array_bytes: sizes of one array, rising.
        best: the best rate at each size; where they agree, no cache was in play.
        repeats: timed copies of each size.
        method: how, in words.
    """

    bytes_per_second: float
    threads: int
    cache_bytes: int
    array_bytes: tuple[int, ...]
    best: tuple[float, ...]
    repeats: int = REPEATS
    method: str = "numpy copy of float64, read + written bytes, best of the repeats at the largest size"


def probe(engines: Sequence[LoadOptions], say: Callable[[str], None]) -> dict[str, Any]:
    """Return what the manifest says of the machine's copy bandwidth, or why there is nothing to say.

    Args:
        engines: what they are loaded with; as many threads copy as any of them uses.
        say: told the result.
    """
    threads = max(options.threads for options in engines)
    if devices := sorted({options.device for options in engines} - {"cpu"}):
        return {"copy_bandwidth": {"absent": f"it is measured on the CPU, engines run on {', '.join(devices)}"}}
    found = measure_copy(threads)
    if isinstance(found, str):
        say(f"copy bandwidth: not measured: {found}")
        return {"copy_bandwidth": {"absent": found}}
    say(f"copy bandwidth: {found.bytes_per_second / 1e9:.1f} GB/s with {threads} thread{'s' if threads > 1 else ''}")
    return {
        "copy_bandwidth_bytes_per_second": found.bytes_per_second,
        "copy_bandwidth": msgspec.to_builtins(found),
    }


def measure_copy(threads: int, sizes: Sequence[int] | None = None) -> CopyBandwidth | str:
    """Measure, or say why not.

    Args:
        threads: that copy at once; what the engines compute with.
        sizes: bytes of one array, rising; by default 4 and 8 times the last-level cache.

    Returns:
        The result, or the reason why there is none.
    """
    cache = last_level_cache_bytes()
    if sizes is None:
        import psutil

        room = psutil.virtual_memory().available // _MEMORY_SHARE
        least = max(_CACHES * cache, _LEAST_BYTES)
        if least > room:
            return f"two arrays of {least / 1e6:.0f} MB, {_CACHES} times the cache, do not fit the free memory"
        sizes = [least] if 2 * least > room else [least, 2 * least]
    best = tuple(_best(size, threads) for size in sizes)
    return CopyBandwidth(
        bytes_per_second=best[-1], threads=threads, cache_bytes=cache, array_bytes=tuple(sizes), best=best
    )


def last_level_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the size of the largest cache of the first core; 0 where the kernel does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [0]
    for file in folder.glob("index*/size"):
        if found := re.fullmatch(r"(\d+)([KMG])", file.read_text(encoding="ascii").strip()):
            sizes.append(int(found[1]) * units[found[2]])
    return max(sizes)


def _best(size: int, threads: int) -> float:
    """Return the best of the repeats at one size, in bytes read plus written per second."""
    import numpy as np

    source, target = np.ones(size // 8), np.empty(size // 8)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    barrier = threading.Barrier(threads + 1)

    def copy(part: tuple[NDArray[Any], NDArray[Any]]) -> None:
        for _ in range(REPEATS + 1):
            barrier.wait()
            np.copyto(part[1], part[0])  # releases the interpreter lock
            barrier.wait()

    workers = [threading.Thread(target=copy, args=(part,), daemon=True) for part in parts]
    for worker in workers:
        worker.start()
    seconds = []
    for _ in range(REPEATS + 1):
        barrier.wait()
        start = time.perf_counter()
        barrier.wait()
        seconds.append(time.perf_counter() - start)
    for worker in workers:
        worker.join()
    return 2 * source.nbytes / min(seconds[1:])
