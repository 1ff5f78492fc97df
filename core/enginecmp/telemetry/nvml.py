"""NVIDIA GPUs through NVML: use, memory, clocks, power, energy, temperature, throttling, foreign processes.

`pynvml` is the module of the distribution nvidia-ml-py; it loads libnvidia-ml.so.1, which comes with the driver. The
process of the sensors reads it here; everybody else asks through `enginecmp.telemetry.nvml_asked`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from enginecmp.errors import SensorAbsent

LIBRARY = "libnvidia-ml.so.1"


def load_library() -> None:
    """Load the library that comes with the driver: much quicker than the import of `pynvml`, where there is none.

    Raises:
        SensorAbsent: there is none, or it cannot be loaded; caused by an OSError.
    """
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        if "No such file" in str(error):
            msg = f"nvml: there is no {LIBRARY}, so no NVIDIA driver on this machine"
        else:
            msg = f"nvml: {LIBRARY} cannot be loaded: {error}"
        raise SensorAbsent(msg) from error


def open_nvml() -> Any:
    """Load and initialize NVML and return the `pynvml` module; the caller ends with `nvmlShutdown`.

    Raises:
        SensorAbsent: no driver, no nvidia-ml-py, no permission, or no device; the message says which.
    """
    load_library()
    try:
        import pynvml
    except ModuleNotFoundError as error:
        msg = "nvml: nvidia-ml-py is not installed; pip install 'enginecmp[gpu]'"
        raise SensorAbsent(msg) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        msg = f"nvml: the driver does not answer: {error}"
        raise SensorAbsent(msg) from error
    return pynvml


def bad_reasons(pynvml: Any) -> dict[int, str]:
    """Return the bits of the clock event reasons that slow a GPU against its load, and their names.

    Idle clocks, application clocks, a display's clocks, sync boost and the software power cap are how the GPU is
    meant to run; they are no reason to leave a request out.
    """
    return {
        pynvml.nvmlClocksEventReasonSwThermalSlowdown: "software thermal slowdown",
        pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hardware thermal slowdown",
        pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
        pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    }


class NvmlSensor:
    """Reads every GPU that NVML shows."""

    name = "nvml"
    period_seconds = 0.25

    def __init__(self) -> None:
        self._nvml: Any = None
        self._gpus: list[_Gpu] = []

    def start(self) -> Mapping[str, object]:
        """Open NVML and return what each GPU is and which values it does not tell.

        Raises:
            SensorAbsent: see `open_nvml`, or there is no GPU.
        """
        nvml = self._nvml = open_nvml()
        try:
            indices = range(nvml.nvmlDeviceGetCount())
            facts = [self._open_gpu(index) for index in indices]
            driver = str(nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError as error:
            self.close()
            msg = f"nvml: the driver does not tell its GPUs: {error}"
            raise SensorAbsent(msg) from error
        if not self._gpus:
            self.close()
            reasons = "; ".join(str(gpu["absent"]) for gpu in facts)
            msg = f"nvml: no GPU can be read{': ' if reasons else ''}{reasons}"
            raise SensorAbsent(msg)
        return {"driver": driver, "gpus": facts}

    def _open_gpu(self, index: int) -> dict[str, object]:
        try:
            gpu = _Gpu(self._nvml, index)
        except self._nvml.NVMLError as error:
            return {"index": index, "absent": str(error)}
        self._gpus.append(gpu)
        return gpu.facts()

    def read(self, pids: Sequence[int]) -> tuple[Mapping[str, float], Sequence[str]]:
        """Return values of every GPU, and the conditions of those that the launch uses.

        Raises:
            SensorAbsent: a GPU is lost.
        """
        values: dict[str, float] = {}
        conditions: set[str] = set()
        for gpu in self._gpus:
            try:
                values |= gpu.read()
                foreign, used = gpu.foreign(pids)
                throttled = gpu.throttled()
            except self._nvml.NVMLError_GpuIsLost as error:
                msg = f"nvml: GPU {gpu.index} is lost: {error}; it comes back with a reset or a restart"
                raise SensorAbsent(msg) from error
            if foreign is not None:
                values[f"gpu{gpu.index}_foreign_processes"] = float(foreign)
            if used and throttled:
                conditions.add("gpu_throttled")
            if used and foreign:
                conditions.add("gpu_foreign_process")
        return values, sorted(conditions)

    def close(self) -> None:
        """Let NVML go."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None
        self._gpus = []


class _Gpu:
    """One GPU: what it can be asked, found out by asking once."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self.index = index
        self._handle = handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self.absent: dict[str, str] = {}
        self._bad = sum(bad_reasons(nvml))
        self._others: frozenset[int] = frozenset()
        every: dict[str, Callable[[], float]] = {
            "busy_share": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,  # from milliwatts
            "energy_joules": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,  # from millijoules
            "celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        self._values = {name: ask for name, ask in every.items() if self._answers(name, ask)}
        self._throttled = self._reasons_call()
        self._processes = self._answers("foreign_processes", self._ask_processes)

    def facts(self) -> dict[str, object]:
        """Return what the GPU is, and the values that it does not tell with the reasons."""
        nvml, handle = self._nvml, self._handle
        found: dict[str, object] = {"index": self.index, "absent": self.absent}
        questions: dict[str, Callable[[], object]] = {
            "name": lambda: str(nvml.nvmlDeviceGetName(handle)),
            "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
            "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        }
        for name, ask in questions.items():
            with contextlib.suppress(nvml.NVMLError):
                found[name] = ask()
        return found

    def read(self) -> dict[str, float]:
        """Return the values; one that fails this once is absent this once."""
        values = {}
        for name, ask in self._values.items():
            try:
                values[f"gpu{self.index}_{name}"] = float(ask())
            except self._nvml.NVMLError_GpuIsLost:
                raise
            except self._nvml.NVMLError:
                continue
        return values

    def throttled(self) -> bool:
        """Say whether the clocks are held down for a reason that is not the load's own."""
        try:
            return self._throttled is not None and bool(self._throttled() & self._bad)
        except self._nvml.NVMLError_GpuIsLost:
            raise
        except self._nvml.NVMLError:
            return False

    def foreign(self, pids: Sequence[int]) -> tuple[int | None, bool]:
        """Return how many compute processes are not the launch's, and whether the launch uses this GPU.

        Where processes cannot be asked for, the number is None and the GPU counts as used. In a container the driver
        may show numbers of the machine outside: a number that no process here has and that came during the launch
        is then taken for the launch's own.
        """
        if not self._processes:
            return None, True
        try:
            running = self._ask_processes()
        except self._nvml.NVMLError_GpuIsLost:
            raise
        except self._nvml.NVMLError:
            return None, True
        unknown = running - set(pids)
        if not pids:
            self._others = unknown
            return len(unknown), False
        if unknown != running:
            return len(unknown), True
        ours = {pid for pid in unknown - self._others if not os.path.exists(f"/proc/{pid}")}
        return len(unknown - ours), bool(ours)

    def _ask_processes(self) -> frozenset[int]:
        return frozenset(process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle))

    def _reasons_call(self) -> Callable[[], int] | None:
        # Drivers before 535 know the older name only.
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            ask = partial(getattr(self._nvml, name), self._handle)
            if self._answers("throttled", ask):
                self.absent.pop("throttled", None)
                return ask
        return None

    def _answers(self, name: str, ask: Callable[[], object]) -> bool:
        try:
            ask()
        except self._nvml.NVMLError_GpuIsLost:
            raise
        except self._nvml.NVMLError as error:
            self.absent[name] = str(error)
            return False
        return True
