"""Checks of NVIDIA GPUs: persistence, power limit, error correction, partitions, other processes, throttling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.doctor.finding import Finding, text, unknown
from enginecmp.errors import LaunchError, SensorAbsent
from enginecmp.telemetry.nvml import bad_reasons, open_nvml
from enginecmp.telemetry.nvml_asked import ask

_NVIDIA = "0x10de"
_NO_GPU = "whether the GPU, its clocks and other processes on it disturb cannot be told"
_LOOK = "nvidia-smi, and the kernel's log: sudo dmesg | grep -i -e nvrm -e xid"

_FIXES = {
    "NVML_ERROR_NO_PERMISSION": "let this user open the devices (ls -l /dev/nvidia*), or run as one who may",
    "NVML_ERROR_DRIVER_NOT_LOADED": "sudo modprobe nvidia; where that fails, install the driver for this kernel",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "restart the machine: the driver was updated while the old one is loaded",
    "NVML_ERROR_LIBRARY_NOT_FOUND": "install the driver with its libraries again",
    "NVML_ERROR_FUNCTION_NOT_FOUND": "update the driver: it is older than what is asked of it",
    "NVML_ERROR_INSUFFICIENT_POWER": "connect the GPU's power cables",
    "NVML_ERROR_GPU_IS_LOST": "restart the machine: the GPU fell off the bus; check that it is seated and powered",
    "NVML_ERROR_RESET_REQUIRED": "with nobody using it: sudo nvidia-smi --gpu-reset; else restart the machine",
    "NVML_ERROR_IRQ_ISSUE": "restart the machine: the driver gets no interrupts from the GPU",
    "NVML_ERROR_CORRUPTED_INFOROM": "ask the GPU's maker for a new InfoROM",
    "NVML_ERROR_NOT_SUPPORTED": "nothing: this GPU or driver does not report it",
}
"""What fixes each error that NVML may answer; of all others its own tools say more."""


def gpus(root: Path = Path("/")) -> list[Finding]:
    """Return what is to be said of every GPU; the reason where there is none to ask.

    Args:
        root: where /proc and /sys are.
    """
    try:
        return msgspec.convert(ask(f"{__name__}:findings_of_nvml", str(root)), list[Finding])
    except SensorAbsent as absent:
        return [_unasked(absent, root)]


def findings_of_nvml(root: str) -> Any:
    """Return the findings as msgpack types, called in a process of its own."""
    try:
        found = _all()
    except SensorAbsent as absent:
        found = [_unasked(absent, Path(root))]
    return msgspec.to_builtins(found)


def _all() -> list[Finding]:
    """Return what is to be said of every GPU.

    Raises:
        SensorAbsent: NVML cannot be opened.
    """
    nvml = open_nvml()
    try:
        count = nvml.nvmlDeviceGetCount()
        if not count:
            where = "the driver answers, and shows none"
            return [
                unknown("gpu", where, _NO_GPU, "in a container: docker run --gpus all; else look for it with lspci")
            ]
        return [finding for index in range(count) for finding in _gpu(nvml, index)]
    except nvml.NVMLError as error:
        return [_silent("gpu", error, f"does not answer: {error}")]
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _unasked(absent: SensorAbsent, root: Path) -> Finding:
    """Return why no GPU can be asked; that there is none is said only where none shows."""
    reason, cause = str(absent).removeprefix("nvml: "), absent.__cause__
    if isinstance(cause, ModuleNotFoundError):
        return unknown("gpu", reason, _NO_GPU, "pip install 'enginecmp[gpu]'")
    if isinstance(cause, TimeoutError | LaunchError):
        return _silent("gpu", cause, reason)
    if not isinstance(cause, OSError):
        return _silent("gpu", cause, f"does not answer: {cause}")
    seen = [file for file in (root / "sys/bus/pci/devices").glob("*/vendor") if text(file) == _NVIDIA]
    displays = [file for file in seen if text(file.with_name("class")).startswith("0x03")]
    if displays or (root / "proc/driver/nvidia/version").exists():
        fix = "install the driver; in a container: docker run --gpus all (capability utility)"
        return unknown("gpu", f"there is an NVIDIA GPU, and {reason}", _NO_GPU, fix)
    if "cannot be loaded" in reason:
        return unknown("gpu", reason, _NO_GPU, "install the driver with its libraries again")
    return Finding(check="gpu", severity="ok", found=f"none by NVIDIA: {reason}")


def _silent(check: str, error: BaseException | None, found: str) -> Finding:
    return Finding(
        check=check,
        severity="warning",
        found=found,
        why="an engine on it will fail or hang",
        fix=_fix(error),
    )


def _fix(error: BaseException | None) -> str:
    """Return what fixes the cause that an error of NVML names."""
    value = getattr(error, "value", None)
    if value is None:
        return f"look at {_LOOK}"
    import pynvml

    return next((fix for name, fix in _FIXES.items() if getattr(pynvml, name, None) == value), f"look at {_LOOK}")


def _gpu(nvml: Any, index: int) -> Iterator[Finding]:
    name = f"gpu{index}"
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        yield _silent(name, error, f"does not answer: {error}")
        return
    checks: list[Callable[[Any, Any, int], Finding | None]] = [
        _persistence,
        _power_limit,
        _error_correction,
        _partitions,
        _processes,
        _throttled,
    ]
    told = False
    for check in checks:
        try:
            finding = check(nvml, handle, index)
        except nvml.NVMLError as error:
            if error.value not in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                told = True
                what = check.__name__.strip("_").replace("_", " ")
                yield unknown(f"{name} {what}", str(error), f"whether its {what} disturbs cannot be told", _fix(error))
            continue
        told = True
        if finding is not None:
            yield finding
    if not told:
        yield unknown(name, "this GPU or driver does not report it", _NO_GPU)


def _persistence(nvml: Any, handle: Any, index: int) -> Finding:
    check = f"gpu{index} persistence"
    if nvml.nvmlDeviceGetPersistenceMode(handle):
        return Finding(check=check, severity="ok", found="on")
    return Finding(
        check=check,
        severity="warning",
        found="off",
        why="the driver lets the GPU go between launches: each loads seconds longer and starts with cold clocks",
        fix=f"sudo nvidia-smi -i {index} -pm 1",
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
        found=f"{limit:g} W, the GPU's default is {usual:g} W",
        why="the clocks are held down under load: numbers of this GPU are not those of others of its model",
        fix=f"sudo nvidia-smi -i {index} -pl {usual:g}",
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
        fix=f"restart, or take it back: sudo nvidia-smi -i {index} -e {current}",
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
        fix=f"where the parts are not meant: sudo nvidia-smi -i {index} -mig 0",
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
        fix=f"end them, or choose another GPU: CUDA_VISIBLE_DEVICES=N; nvidia-smi -i {index} names them",
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
        fix="let it cool down, look at fans and power cables; nvidia-smi -q -d PERFORMANCE tells more",
    )
