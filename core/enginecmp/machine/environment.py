"""What the run ran on: the facts that decide whether two runs may be compared."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from enginecmp.machine.cgroup import cpu_quota_cores

NODE, PRICE = "ENGINECMP_NODE", "ENGINECMP_PRICE_PER_HOUR"
"""Variables by which a placement tells a run which of its nodes it is on, and what an hour of that node costs."""

_LIBRARIES = ("enginecmp", "numpy", "gguf", "tokenizers", "torch", "llama-cpp-python", "mistralrs")


def describe_environment(distributions: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return CPU, cores, memory, GPU, driver, OS, governor and library versions.

    What cannot be read is null, never a guess.

    Args:
        distributions: further distributions whose versions matter, e.g. those of the engine plugins.
    """
    versions: dict[str, str] = {}
    for name in sorted({*_LIBRARIES, *filter(None, distributions)}):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "turbo_disabled": _first_line("/sys/devices/system/cpu/intel_pstate/no_turbo"),
        "hypervisor": "hypervisor" in (cpu_field("flags") or "").split(),
        "os": _os_name(),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "libraries": versions,
        **_commit(),
        **_gpu(),
        **_placed(),
    }


def _placed() -> dict[str, Any]:
    """Return the name and the price of the node, where a placement said them."""
    placed: dict[str, Any] = {"node": os.environ[NODE]} if os.environ.get(NODE) else {}
    try:
        price = float(os.environ.get(PRICE, "nan"))
    except ValueError:
        price = math.nan
    return {**placed, "node_price_per_hour": price} if placed and math.isfinite(price) else placed


def _commit() -> dict[str, str]:
    """Return the commit that this program runs from, where it runs from a checkout; "+" where files differ from it."""
    here = Path(__file__)
    said = []
    for words in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "--short=12", "HEAD"], ["diff", "--quiet"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return {}
        said.append(done)
    if said[0].returncode or said[1].returncode:
        return {}
    return {"commit": said[1].stdout.strip() + ("+" if said[2].returncode else "")}


def usable_cores() -> int:
    """Return how many cores this process may use: affinity, and the container's quota rounded up."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota_cores()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def _gpu() -> dict[str, Any]:
    """Return gpu names and driver version through NVML; nulls with the reason where there is none."""
    from enginecmp.errors import SensorAbsent
    from enginecmp.telemetry.nvml_asked import ask

    try:
        found: dict[str, Any] = ask(f"{__name__}:gpus_of_nvml")
    except SensorAbsent as absent:
        return {"gpu": None, "driver": None, "gpu_reason": str(absent)}
    return found


def gpus_of_nvml() -> dict[str, Any]:
    """Return what NVML says, called in a process of its own."""
    from enginecmp.errors import SensorAbsent
    from enginecmp.telemetry.nvml import open_nvml

    try:
        nvml = open_nvml()
    except SensorAbsent as absent:
        return {"gpu": None, "driver": None, "gpu_reason": str(absent)}
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return {
            "gpu": [str(nvml.nvmlDeviceGetName(handle)) for handle in handles],
            "driver": str(nvml.nvmlSystemGetDriverVersion()),
        }
    except nvml.NVMLError as error:
        return {"gpu": None, "driver": None, "gpu_reason": f"nvml: {error}"}
    finally:
        nvml.nvmlShutdown()


def _cpu_name() -> str:
    return cpu_field("model name") or platform.processor() or platform.machine()


def cpu_field(name: str) -> str | None:
    """Return a field of the first processor of /proc/cpuinfo; None where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").split("\n", 1)[0].strip()
    except OSError:
        return None
