"""What host and sensors use of the machine while an engine is measured, with every sensor on.

The CPU time of the host and of the sensors' process is read around every request of a real run of llama.cpp; the
worker's two readings a request are added as if they fell into the window (they do not). Sensors that this machine
lacks (RAPL, NVML) are stood in for by scripted ones at the same pace.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from enginecmp.errors import SensorAbsent
from enginecmp.launch.launch import Launch
from enginecmp.models.store import resolve
from enginecmp.plugins.discovery import discover, find
from enginecmp.prompts import PromptSet
from enginecmp.telemetry.contention import ContentionSensor
from enginecmp.telemetry.sampler import own_sensors
from enginecmp.telemetry.watch import Telemetry
from enginecmp.types import LoadOptions, Sensor
from enginecmp.wire.deadlines import Deadlines

LIMIT_SHARE = 0.005
REQUESTS = 40
_STAND_IN = "enginecmp.testing.fake_sensors"


def measure() -> dict[str, Any]:
    """Return the host's and the sensors' share of one core during measured windows."""
    model = resolve("smollm2-135m-instruct:q8_0", fetch=True)
    prompts = PromptSet(model)
    plugin = find("llamacpp", discover())
    host = sampler = window = 0.0
    with TemporaryDirectory(prefix="cmp-bench-") as name:
        folder = Path(name)
        missing = _script_missing(folder / "sensors.json")
        options = LoadOptions(threads=1, context_tokens=128)
        with (
            Telemetry(folder, print, [_STAND_IN]) as telemetry,
            Launch("llamacpp", plugin, log=folder / "log", options=options) as launch,
        ):
            started = [sensor for sensor, said in telemetry.facts().items() if "facts" in said]
            telemetry.watch("b0-llamacpp", launch.pid)
            launch.load(model, 60)
            for index in range(REQUESTS + 1):
                token_ids = prompts.take(50, key=index, seed=0)
                before, sampler_before = time.process_time(), _cpu_seconds(telemetry.pid)
                answer = launch.request(token_ids, 16, Deadlines())
                telemetry.flags(answer["start_ns"], answer["end_ns"])
                after, sampler_after = time.process_time(), _cpu_seconds(telemetry.pid)
                if index:  # the first request warms up
                    host += after - before
                    sampler += sampler_after - sampler_before
                    window += (answer["end_ns"] - answer["start_ns"]) / 1e9
        size = (folder / "telemetry.jsonl").stat().st_size
    contention = ContentionSensor()
    worker = 2 * REQUESTS * _seconds_per_call(contention.read)
    share = (host + sampler + worker) / window
    print(f"measured windows: {window:.2f} s in {REQUESTS} requests of 16 tokens (llama.cpp, Q8_0, 1 thread)")
    print(
        f"sensors: {', '.join(started)} ({', '.join(missing) or 'none'} stood in for); telemetry {size / 1024:.0f} KiB"
    )
    print(f"host {host / window:.4%}, sensors' process {sampler / window:.4%}, worker's readings {worker / window:.4%}")
    costs = {sensor.name: cost for sensor in own_sensors() if (cost := _cost(sensor)) is not None}
    for sensor_name, seconds in costs.items():
        print(f"one reading of {sensor_name}: {1e6 * seconds:.0f} µs")
    return {
        "target": f"host and sensors together < {LIMIT_SHARE:.1%} of one core",
        "met": share < LIMIT_SHARE,
        "window_seconds": window,
        "host_cpu_seconds": host,
        "sampler_cpu_seconds": sampler,
        "worker_sensor_seconds": worker,
        "reading_seconds": costs,
        "stood_in_for": missing,
        "share": share,
    }


def _script_missing(path: Path) -> list[str]:
    """Script a sensor for each that this machine lacks; return their names."""
    missing = [sensor for sensor in own_sensors() if _cost(sensor) is None]
    values = {f"value_{number}": float(number) for number in range(8)}
    script = [
        {"name": f"{sensor.name}_stand_in", "period_seconds": sensor.period_seconds, "readings": [{"values": values}]}
        for sensor in missing
    ]
    path.write_text(json.dumps(script))
    os.environ["FAKE_SENSORS"] = str(path)
    return [sensor.name for sensor in missing]


def _cost(sensor: Sensor) -> float | None:
    """Return the CPU seconds of one reading of this process; None where the sensor is absent."""
    try:
        sensor.start()
    except SensorAbsent:
        return None
    try:
        return _seconds_per_call(lambda: sensor.read((os.getpid(),)))
    finally:
        sensor.close()


def _seconds_per_call(call: Any, times: int = 500) -> float:
    call()
    start = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - start) / times


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process, which the kernel counts in nanoseconds here."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended since it was listed
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9
