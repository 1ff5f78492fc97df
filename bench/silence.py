"""What the host uses of the machine while an engine is measured.

The host's own CPU time is read around every request of a real run of llama.cpp, and the time of the worker's
two sensor readings is added as if it fell into the window (it does not).
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from enginecmp.launch import Deadlines, Launch
from enginecmp.models.store import resolve
from enginecmp.plugins import discover, find
from enginecmp.prompts import PromptSet
from enginecmp.telemetry.contention import ContentionSensor
from enginecmp.types import LoadOptions

LIMIT_SHARE = 0.005
REQUESTS = 40


def measure() -> dict[str, Any]:
    """Return the host's and the sensors' share of one core during measured windows."""
    model = resolve("smollm2-135m-instruct:q8_0", fetch=True)
    prompts = PromptSet(model)
    plugin = find("llamacpp", discover())
    host = window = 0.0
    with TemporaryDirectory(prefix="cmp-bench-") as folder:
        options = LoadOptions(threads=1, context_tokens=128)
        with Launch("llamacpp", plugin, log=Path(folder) / "log", options=options) as launch:
            launch.load(model, 60)
            for index in range(REQUESTS + 1):
                token_ids = prompts.take(50, key=index, seed=0)
                before = time.process_time()
                answer = launch.request(token_ids, 16, Deadlines())
                after = time.process_time()
                if index:  # the first request warms up
                    host += after - before
                    window += (answer["end_ns"] - answer["start_ns"]) / 1e9
    sensor = ContentionSensor()
    sensor.read()
    start = time.perf_counter()
    for _ in range(1000):
        sensor.read()
    sensors = 2 * REQUESTS * (time.perf_counter() - start) / 1000
    share = (host + sensors) / window
    print(f"measured windows: {window:.2f} s in {REQUESTS} requests of 16 tokens (llama.cpp, Q8_0, 1 thread)")
    print(f"host CPU: {1e3 * host:.2f} ms = {host / window:.4%} of a core; sensors: {sensors / window:.4%}")
    return {
        "target": f"host and sensors together < {LIMIT_SHARE:.1%} of one core",
        "met": share < LIMIT_SHARE,
        "window_seconds": window,
        "host_cpu_seconds": host,
        "sensor_seconds": sensors,
        "share": share,
    }
