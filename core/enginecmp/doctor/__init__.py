"""What on this machine will spoil a measurement, why, and the command that fixes it. Reads, never changes.

One function a check; those of /proc and /sys take the root they are under.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from enginecmp.doctor import gpu, memory, processor, surroundings
from enginecmp.doctor.finding import Finding, unknown
from enginecmp.telemetry.idle import Busyness

__all__ = ["Finding", "examine", "short"]

_CHECKS = (
    processor.governor,
    processor.turbo,
    processor.smt,
    processor.affinity,
    processor.numa,
    processor.hypervisor,
    processor.time_source,
    memory.huge_pages,
    memory.swap,
    memory.free_memory,
    memory.memory_limit,
    surroundings.cpu_quota,
    surroundings.battery,
    surroundings.pressure,
)


def examine(results: Path, busyness: Busyness | None = None, root: Path = Path("/")) -> list[Finding]:
    """Return a finding for everything that applies to this machine.

    Args:
        results: folder that runs are written into.
        busyness: what others do; None leaves that check out.
        root: where /proc and /sys are.
    """
    found = [finding for check in _CHECKS if (finding := _asked(check, root)) is not None]
    if busyness is not None:
        found.append(surroundings.background(busyness))
    found += [surroundings.room(results), *gpu.gpus(root)]
    return [_from_inside(finding) for finding in found] if _contained(root) else found


def _asked(check: Callable[[Path], Finding | None], root: Path) -> Finding | None:
    """Return what a check finds; files of /proc and /sys that hold something else are not what this is about."""
    try:
        return check(root)
    except (OSError, ValueError, IndexError) as error:
        name = check.__name__.replace("_", " ")
        return unknown(name, f"{type(error).__name__}: {error}", f"whether {name} disturbs cannot be told")


def short(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Return what a manifest keeps of the findings: check, severity and how it is, without the advice."""
    return [{"check": f.check, "severity": f.severity, "found": f.found} for f in findings]


def _contained(root: Path) -> bool:
    return any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))


def _from_inside(finding: Finding) -> Finding:
    """Say where a command must be given: a container cannot change the machine."""
    if "sudo" not in finding.fix:
        return finding
    return msgspec.structs.replace(finding, fix=f"outside the container: {finding.fix}")
