"""Checks of what is around a run: quota, other work, power supply, what the kernel can tell, room for results."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from enginecmp.doctor.finding import Finding, gibibytes, text, unknown
from enginecmp.format.text import plain
from enginecmp.machine.cgroup import cpu_quota_cores
from enginecmp.telemetry.idle import Busyness

_ROOM_BYTES = 2**30


def cpu_quota(root: Path) -> Finding | None:
    """Whether a container may use the processor for a share of the time only."""
    cores = cpu_quota_cores(root)
    if cores is None:
        return None
    return Finding(
        check="cpu quota",
        severity="warning",
        found=f"{cores:g} cores' worth of time",
        why="when the quota of 100 ms is used up, every thread stops until the next: tokens come in bursts",
        fix="give the container whole cores: docker run --cpuset-cpus=0-3 without --cpus; of a service: no CPUQuota=",
    )


def background(now: Busyness) -> Finding:
    """What others do on the machine."""
    if now.foreign_cores is None and not now.busy:
        return unknown("other work", "/proc/stat cannot be read", "requests that others disturbed get no flag")
    if not now.busy:
        return Finding(check="other work", severity="ok", found=now.describe())
    return Finding(
        check="other work",
        severity="warning",
        found=now.describe(),
        why="engines that spin at barriers lose 10 to 50 times their speed when one thread is preempted",
        fix="stop what `top` shows, or let `cmp run --wait-idle` wait",
    )


def battery(root: Path) -> Finding | None:
    """Whether the machine runs on a battery."""
    supplies = root / "sys/class/power_supply"
    batteries = [path.parent for path in supplies.glob("*/type") if text(path) == "Battery"]
    # Mice and keyboards have batteries too; theirs have the scope of a device.
    own = [folder for folder in batteries if text(folder / "scope") != "Device"]
    if not own:
        return None
    states = [text(folder / "status") for folder in own]
    if "Discharging" not in states and not set(states) & {"Charging", "Full", "Not charging"}:
        return unknown("power supply", "the battery does not say whether it is used", "a battery holds the clocks down")
    if "Discharging" not in states:
        return Finding(check="power supply", severity="ok", found="plugged in")
    return Finding(
        check="power supply",
        severity="warning",
        found="on battery",
        why="firmware and system hold the clocks down to save the battery",
        fix="plug it in",
    )


def pressure(root: Path) -> Finding:
    """Whether the kernel tells how long tasks waited for a core."""
    if text(root / "proc/pressure/cpu"):
        return Finding(check="pressure (PSI)", severity="ok", found="can be read")
    return Finding(
        check="pressure (PSI)",
        severity="note",
        found="cannot be read",
        why="requests that waited for a core cannot be told from those that did not: no flag cpu_pressure",
        fix="boot with psi=1; a kernel built without PSI, or a sandbox's, has none",
    )


def room(results: Path) -> Finding:
    """Whether the results fit on their disk."""
    folder, why = results.absolute(), "a run that cannot write its samples ends"
    try:
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    except OSError as error:
        found = f"{plain(str(folder))}: {error.strerror or error}"
        return Finding(check="disk", severity="warning", found=found, why=why, fix="choose another folder with --out")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        found = f"{plain(str(folder))} {'cannot be written' if folder.is_dir() else 'is no folder'}"
        return Finding(check="disk", severity="warning", found=found, why=why, fix="choose another folder with --out")
    found = f"{gibibytes(free)} free for {plain(str(results))}"
    if free >= _ROOM_BYTES:
        return Finding(check="disk", severity="ok", found=found)
    fix = "free some, or choose another folder with --out"
    return Finding(check="disk", severity="warning", found=found, why=why, fix=fix)
