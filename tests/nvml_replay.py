"""Builds the replayed NVML library and says how a process loads it instead of the driver's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_replay.c")

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

# A board of one GPU at rest: 80 GB, idle clocks (bit 0 of the event reasons), no process.
HEALTHY = {
    "nvmlInitWithFlags": "1 0",
    "nvmlSystemGetDriverVersion": "1 0 580.95.05",
    "nvmlDeviceGetCount_v2": "1 0 1",
    "nvmlDeviceGetHandleByIndex_v2": "1 0",
    "nvmlDeviceGetName": "1 0 Replayed GPU 80GB",
    "nvmlDeviceGetUtilizationRates": "1 0 37 12",
    "nvmlDeviceGetMemoryInfo": "1 0 85899345920 84825604096 1073741824",
    "nvmlDeviceGetClockInfo": "1 0 1980 1980 2619",
    "nvmlDeviceGetPowerUsage": "1 0 123456",
    "nvmlDeviceGetTotalEnergyConsumption": "1 0 5000000\nnvmlDeviceGetTotalEnergyConsumption 4 0 5250000",
    "nvmlDeviceGetTemperature": "1 0 41",
    "nvmlDeviceGetCurrentClocksEventReasons": "1 0 1",
    "nvmlDeviceGetComputeRunningProcesses_v3": "1 0",
    "nvmlDeviceGetEnforcedPowerLimit": "1 0 700000",
    "nvmlDeviceGetPowerManagementDefaultLimit": "1 0 700000",
    "nvmlDeviceGetPersistenceMode": "1 0 1",
    "nvmlDeviceGetEccMode": "1 0 1 1",
    "nvmlDeviceGetMigMode": "1 0 0 0",
}


def build(folder: Path) -> Path:
    """Compile the library into a folder and return the folder."""
    assert COMPILER is not None
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", str(SOURCE)]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1")], check=True)
    return folder


def environment(library: Path, script: Path, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Write a script, the healthy board with changes, and return the variables that make a process load it.

    Args:
        library: folder from `build`.
        script: file to write.
        changes: function → "FROM ERROR VALUES", further lines included; None takes the function out.
    """
    answers = {**HEALTHY, **(changes or {})}
    script.write_text("".join(f"{name} {lines}\n" for name, lines in answers.items() if lines is not None))
    return {**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_REPLAY": str(script)}
