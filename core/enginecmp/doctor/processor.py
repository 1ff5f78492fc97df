"""Checks of the processor: clocks, threads that share a core, time taken by a hypervisor, the clock itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from enginecmp.doctor.finding import NOTHING, Finding, field, text, unknown, virtual
from enginecmp.telemetry.contention import busy_and_steal_seconds

_CPUS = "sys/devices/system/cpu"
_STEAL_SHARE = 0.01
_QUICK_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen", "timebase")


def governor(root: Path) -> Finding:
    """Who chooses the clock of the cores."""
    found = Counter(text(path) for path in (root / _CPUS).glob("cpu[0-9]*/cpufreq/scaling_governor"))
    found.pop("", None)  # cannot be read
    if not found:
        whose = NOTHING if virtual(root) else "set it in the firmware"
        return Finding(
            check="governor",
            severity="note",
            found="cannot be seen: no cpufreq",
            why="the machine outside chooses the clock, and may change it during a run",
            fix=whose,
        )
    if set(found) == {"performance"}:
        return Finding(check="governor", severity="ok", found="performance")
    return Finding(
        check="governor",
        severity="warning",
        found=", ".join(f"{name} on {cores} cores" for name, cores in found.most_common()),
        why="the clock follows the load: short requests run on cores that are still slow",
        fix=f"echo performance | sudo tee /{_CPUS}/cpu*/cpufreq/scaling_governor",
    )


def turbo(root: Path) -> Finding | None:
    """Whether the clock may rise above its base."""
    intel, other = text(root / _CPUS / "intel_pstate/no_turbo"), text(root / _CPUS / "cpufreq/boost")
    if not intel and not other:
        return None
    if intel == "1" or (not intel and other == "0"):
        return Finding(check="turbo", severity="ok", found="off")
    switch = (
        f"echo 1 | sudo tee /{_CPUS}/intel_pstate/no_turbo" if intel else f"echo 0 | sudo tee /{_CPUS}/cpufreq/boost"
    )
    return Finding(
        check="turbo",
        severity="note",
        found="on",
        why="the clock depends on temperature and on how many cores work, so it drifts during a run",
        fix=switch,
    )


def smt(root: Path) -> Finding | None:
    """Whether two threads share a core."""
    active = text(root / _CPUS / "smt/active")
    if not active:
        return None
    if active == "0":
        return Finding(check="smt", severity="ok", found="off")
    return Finding(
        check="smt",
        severity="note",
        found="on",
        why="two compute threads on one core are little faster than one, and which threads share is luck",
        fix=f"echo off | sudo tee /{_CPUS}/smt/control",
    )


def affinity(root: Path) -> Finding:
    """Which cores this process may use."""
    allowed = _listed(field(text(root / "proc/self/status"), "Cpus_allowed_list"))
    every = text(root / _CPUS / "online")
    online = _listed(every)
    if not allowed or not online:
        where = "/proc/self/status" if not allowed else f"/{_CPUS}/online"
        return unknown("affinity", f"{where} does not tell", "whether cores are kept from the engines cannot be told")
    if len(allowed) >= len(online):
        return Finding(check="affinity", severity="ok", found=f"all {len(online)} cores")
    groups = (root / "sys/fs/cgroup/cpuset.cpus.effective", root / "sys/fs/cgroup/cpuset/cpuset.cpus")
    held = any(_listed(text(file)) == allowed for file in groups)
    wider = "give the container more cores: docker run --cpuset-cpus" if held else f"taskset -c {every} cmp run"
    return Finding(
        check="affinity",
        severity="note",
        found=f"{len(allowed)} of {len(online)} cores",
        why="the other cores still share caches, memory bandwidth and power with the measured ones",
        fix=f"where the choice is not meant: {wider}",
    )


def numa(root: Path) -> Finding | None:
    """Whether memory is nearer to some cores than to others."""
    nodes = sorted((root / "sys/devices/system/node").glob("node[0-9]*"))
    if len(nodes) < 2:
        return None
    return Finding(
        check="numa",
        severity="note",
        found=f"{len(nodes)} nodes",
        why="weights that lie on the other node are read at half the speed, and where they lie is luck",
        fix="numactl --cpunodebind=0 --membind=0 cmp run",
    )


def hypervisor(root: Path) -> Finding | None:
    """Whether this is a virtual machine, and how much time it was denied."""
    if not virtual(root):
        return None
    line = text(root / "proc/stat").partition("\n")[0].encode()
    if len(line.split()) <= 8:
        return unknown(
            "hypervisor",
            "a virtual machine, and /proc/stat does not tell how much of its time was given to others",
            "neighbours take time, caches and memory bandwidth, and here not even stolen time shows",
            f"{NOTHING}; a dedicated host, or more launches",
        )
    busy, steal = busy_and_steal_seconds(line)
    share = steal / (busy + steal) if busy + steal else 0.0
    return Finding(
        check="hypervisor",
        severity="warning" if share > _STEAL_SHARE else "note",
        found=f"a virtual machine; {share:.1%} of its working time since boot was given to others",
        why="neighbours take time, caches and memory bandwidth; only stolen time shows",
        fix=f"{NOTHING}; a dedicated host, or more launches",
    )


def time_source(root: Path) -> Finding | None:
    """How the clock is read."""
    source = text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if not source:
        return None
    if source in _QUICK_CLOCKS:
        return Finding(check="time source", severity="ok", found=source)
    others = text(root / "sys/devices/system/clocksource/clocksource0/available_clocksource").split()
    better = next((name for name in _QUICK_CLOCKS if name in others), None)
    fix = "boot with tsc=reliable, if the kernel log does not call the TSC unstable"
    if better:
        fix = f"echo {better} | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource"
    return Finding(
        check="time source",
        severity="warning",
        found=source,
        why="each stamp is a system call of a microsecond or more, in every token gap",
        fix=fix,
    )


def _listed(ranges: str) -> set[int]:
    """Return the numbers of a list like "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
