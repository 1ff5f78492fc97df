"""What the control group of this process allows: version 1 and 2, in a container or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT_BYTES = 1 << 60
"""Version 1 writes "no limit" as a number close to 2**63."""


def cpu_quota_cores(root: Path = Path("/")) -> float | None:
    """Return how many cores' worth of time the quota allows; None without a quota.

    Args:
        root: where /proc and /sys are.
    """
    found = []
    for folder in _folders(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    for folder in _folders(root, "cpu"):
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # -1 is no quota
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the most memory that this process and its group may use; None without a limit.

    Args:
        root: where /proc and /sys are.
    """
    texts = [_text(folder / "memory.max") for folder in _folders(root, "")]
    texts += [_text(folder / "memory.limit_in_bytes") for folder in _folders(root, "memory")]
    limits = [int(text) for text in texts if text.isdigit() and int(text) < _NO_LIMIT_BYTES]
    return min(limits, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of this process's group and those of its parents; version 2 has no controller's name.

    In a container the path may be that of the machine outside: then the mounted root is the group's own folder.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if controller not in names.split(",") or (not controller and names):
            continue
        mounts = [names, controller, *names.split(",")] if controller else [".", "unified"]
        base = next(
            (root / "sys/fs/cgroup" / mount for mount in mounts if (root / "sys/fs/cgroup" / mount).is_dir()), None
        )
        if base is None:
            continue
        folder = base / path.lstrip("/")
        while folder != base:
            yield folder
            folder = folder.parent
        yield base


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
