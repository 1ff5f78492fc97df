"""Checks of NVIDIA GPUs: persistence, power limit, error correction, partitions, other processes, throttling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from enginecmp.doctor.finding import Finding
from enginecmp.telemetry.nvml import bad_reasons, open_nvml
from enginecmp.telemetry.sensor import SensorAbsent


def gpus() -> list[Finding]:
    """Return what is to be said of every GPU; the reason where there is none to ask."""
    try:
        nvml = open_nvml()
    except SensorAbsent as absent:
        return [Finding(check="gpu", severity="ok", found=str(absent).removeprefix("nvml: "))]
    try:
        return [finding for index in range(nvml.nvmlDeviceGetCount()) for finding in _gpu(nvml, index)]
    except nvml.NVMLError as error:
        return [_silent("gpu", str(error))]
    finally:
        nvml.nvmlShutdown()


def _silent(check: str, reason: str) -> Finding:
    return Finding(
        check=check,
        severity="warning",
        found=f"does not answer: {reason}",
        why="an engine on it will fail or hang",
        mend="sudo nvidia-smi --gpu-reset, or restart the machine",
    )


def _gpu(nvml: Any, index: int) -> Iterator[Finding]:
    name = f"gpu{index}"
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        yield _silent(name, str(error))
        return
    checks: list[Callable[[Any, Any, int], Finding | None]] = [
        _persistence,
        _power_limit,
        _error_correction,
        _partitions,
        _processes,
        _throttled,
    ]
    for check in checks:
        try:
            finding = check(nvml, handle, index)
        except nvml.NVMLError:
            continue  # this board does not tell
        if finding is not None:
            yield finding


def _persistence(nvml: Any, handle: Any, index: int) -> Finding:
    check = f"gpu{index} persistence"
    if nvml.nvmlDeviceGetPersistenceMode(handle):
        return Finding(check=check, severity="ok", found="on")
    return Finding(
        check=check,
        severity="warning",
        found="off",
        why="the driver lets the GPU go between launches: each loads seconds longer and starts with cold clocks",
        mend=f"sudo nvidia-smi -i {index} -pm 1",
    )


def _power_limit(nvml: Any, handle: Any, index: int) -> Finding:
    limit = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3  # from milliwatts
    usual = nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3
    check = f"gpu{index} power limit"
    if limit >= usual:
        return Finding(check=check, severity="ok", found=f"{limit:g} W")
    return Finding(
        check=check,
        severity="warning",
        found=f"{limit:g} W, the board's own is {usual:g} W",
        why="the clocks are held down under load: numbers of this board are not those of others of its kind",
        mend=f"sudo nvidia-smi -i {index} -pl {usual:g}",
    )


def _error_correction(nvml: Any, handle: Any, index: int) -> Finding:
    current, pending = nvml.nvmlDeviceGetEccMode(handle)
    check, state = f"gpu{index} ecc", "on" if current else "off"
    if current == pending:
        return Finding(check=check, severity="ok", found=state)
    return Finding(
        check=check,
        severity="warning",
        found=f"{state}, but {'on' if pending else 'off'} after the next restart",
        why="it costs memory and bandwidth on some boards: runs before and after the restart differ",
        mend=f"restart, or take it back: sudo nvidia-smi -i {index} -e {current}",
    )


def _partitions(nvml: Any, handle: Any, index: int) -> Finding | None:
    current, _ = nvml.nvmlDeviceGetMigMode(handle)
    if not current:
        return None
    return Finding(
        check=f"gpu{index} partitions (MIG)",
        severity="note",
        found="on",
        why="an engine gets a part of the GPU, and neighbours in other parts share power and clocks",
        mend=f"sudo nvidia-smi -i {index} -mig 0, where the parts are not meant",
    )


def _processes(nvml: Any, handle: Any, index: int) -> Finding:
    pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    check = f"gpu{index} processes"
    if not pids:
        return Finding(check=check, severity="ok", found="none")
    return Finding(
        check=check,
        severity="warning",
        found=f"{len(pids)} compute process{'es' if len(pids) > 1 else ''}: {', '.join(map(str, pids[:5]))}",
        why="they take memory, bandwidth and time slices from the engine",
        mend=f"end them, or choose another GPU: CUDA_VISIBLE_DEVICES=N; nvidia-smi -i {index} names them",
    )


def _throttled(nvml: Any, handle: Any, index: int) -> Finding | None:
    now = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    reasons = [name for bit, name in bad_reasons(nvml).items() if now & bit]
    if not reasons:
        return None
    return Finding(
        check=f"gpu{index} throttling",
        severity="warning",
        found=", ".join(reasons),
        why="the GPU runs slower than its load asks for, already before the run",
        mend="let it cool down, look at fans and power cables; nvidia-smi -q -d PERFORMANCE tells more",
    )
