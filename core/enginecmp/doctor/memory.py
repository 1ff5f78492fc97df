"""Checks of memory: huge pages, swap, what is free, and what a container may use."""

from __future__ import annotations

from pathlib import Path

from enginecmp.cgroup import memory_limit_bytes
from enginecmp.doctor.finding import Finding, field, gibibytes, text

_SWAP_SHARE = 0.01
_FREE_SHARE = 0.2


def huge_pages(root: Path) -> Finding | None:
    """Whether the kernel makes huge pages of its own accord."""
    modes = text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    if not modes:
        return None
    mode = modes.partition("[")[2].partition("]")[0]
    if mode != "always":
        return Finding(check="huge pages", severity="ok", found=mode)
    return Finding(
        check="huge pages",
        severity="note",
        found=mode,
        why="which memory gets huge pages is luck: launches differ, and the kernel works beside them",
        mend="echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def swap(root: Path) -> Finding:
    """Whether memory is swapped out."""
    total, free = _kibibytes(root, "SwapTotal"), _kibibytes(root, "SwapFree")
    used = total - free
    if used <= _SWAP_SHARE * _kibibytes(root, "MemTotal"):
        return Finding(check="swap", severity="ok", found="none in use" if total else "there is none")
    return Finding(
        check="swap",
        severity="warning",
        found=f"{gibibytes(used * 1024)} of {gibibytes(total * 1024)} in use",
        why="reading a page back takes milliseconds, in the middle of a token",
        mend="sudo swapoff -a && sudo swapon -a, once there is memory for what is swapped",
    )


def free_memory(root: Path) -> Finding:
    """How much memory a model may still take."""
    total, available = _kibibytes(root, "MemTotal"), _kibibytes(root, "MemAvailable")
    found = f"{gibibytes(available * 1024)} of {gibibytes(total * 1024)}"
    if available >= _FREE_SHARE * total:
        return Finding(check="free memory", severity="ok", found=found)
    return Finding(
        check="free memory",
        severity="warning",
        found=found,
        why="the kernel drops weights from the page cache and reads them again, or kills a launch",
        mend="stop what uses most: ps -eo pid,rss,comm --sort=-rss | head",
    )


def memory_limit(root: Path) -> Finding | None:
    """Whether a container may use less memory than there is."""
    limit = memory_limit_bytes(root)
    total = _kibibytes(root, "MemTotal") * 1024
    if limit is None or limit >= total:
        return None
    return Finding(
        check="memory limit",
        severity="note",
        found=f"{gibibytes(limit)} of {gibibytes(total)} for this control group",
        why="the page cache counts too: a model near the limit is read from disk again and again",
        mend="start the container with a larger --memory",
    )


def _kibibytes(root: Path, name: str) -> int:
    return int((field(text(root / "proc/meminfo"), name) or "0").split()[0])
