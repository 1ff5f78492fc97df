"""Checks of memory: huge pages, swap, what is free, and what a container may use."""

from __future__ import annotations

from pathlib import Path

from enginecmp.doctor.finding import Finding, field, gibibytes, text, unknown
from enginecmp.machine.cgroup import memory_limit_bytes

_SWAP_SHARE = 0.01
_FREE_SHARE = 0.2
_UNREADABLE = "/proc/meminfo does not tell"


def huge_pages(root: Path) -> Finding | None:
    """Whether the kernel makes huge pages of its own accord."""
    modes = text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    if not modes:
        return None
    mode = modes.partition("[")[2].partition("]")[0]
    if not mode:
        return unknown("huge pages", f"the kernel says '{modes}'", "which memory gets huge pages cannot be told")
    if mode != "always":
        return Finding(check="huge pages", severity="ok", found=mode)
    return Finding(
        check="huge pages",
        severity="note",
        found=mode,
        why="which memory gets huge pages is luck: launches differ, and the kernel works beside them",
        fix="echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def swap(root: Path) -> Finding:
    """Whether memory is swapped out."""
    total, free, memory = (_kibibytes(root, name) for name in ("SwapTotal", "SwapFree", "MemTotal"))
    if total is None or free is None or memory is None:
        return unknown("swap", _UNREADABLE, "whether memory is swapped out cannot be told")
    used = total - free
    if used <= _SWAP_SHARE * memory:
        return Finding(check="swap", severity="ok", found="none in use" if total else "there is none")
    return Finding(
        check="swap",
        severity="warning",
        found=f"{gibibytes(used * 1024)} of {gibibytes(total * 1024)} in use",
        why="reading a page back takes milliseconds, in the middle of a token",
        fix="sudo swapoff -a && sudo swapon -a, once there is memory for what is swapped",
    )


def free_memory(root: Path) -> Finding:
    """How much memory a model may still take."""
    total, available = _kibibytes(root, "MemTotal"), _kibibytes(root, "MemAvailable")
    if total is None or available is None:
        return unknown("free memory", _UNREADABLE, "whether a model fits into memory cannot be told")
    found = f"{gibibytes(available * 1024)} of {gibibytes(total * 1024)}"
    if available >= _FREE_SHARE * total:
        return Finding(check="free memory", severity="ok", found=found)
    return Finding(
        check="free memory",
        severity="warning",
        found=found,
        why="the kernel drops weights from the page cache and reads them again, or kills a launch",
        fix="stop what uses most: ps -eo pid,rss,comm --sort=-rss | head",
    )


def memory_limit(root: Path) -> Finding | None:
    """Whether a container may use less memory than there is."""
    limit = memory_limit_bytes(root)
    total = (_kibibytes(root, "MemTotal") or 0) * 1024
    if limit is None or (total and limit >= total):
        return None
    return Finding(
        check="memory limit",
        severity="note",
        found=f"{gibibytes(limit)} of {gibibytes(total) if total else 'unknown memory'} for this control group",
        why="the page cache counts too: a model near the limit is read from disk again and again",
        fix="start the container with a larger --memory, or raise MemoryMax= of the service",
    )


def _kibibytes(root: Path, name: str) -> int | None:
    """Return a value of /proc/meminfo; None where it is not told."""
    number = field(text(root / "proc/meminfo"), name).partition(" ")[0]
    return int(number) if number.isascii() and number.isdigit() else None
