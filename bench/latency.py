"""How long the commands take that people type all day, as whole processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CMP = os.path.join(os.path.dirname(sys.executable), "cmp")
LIMITS_SECONDS = {"cmp --help": 0.12, "cmp engines": 1.5, "cmp stats results/": 1.0}
RUNS = 15
QUICK = ("--scenario", "single", "--profile", "quick", "--no-gate")


def measure() -> dict[str, Any]:
    """Return the median seconds of each command; `cmp stats` reads a quick run of the fake engine."""
    with TemporaryDirectory(prefix="cmp-bench-") as folder:
        quick_run(Path(folder))
        seconds = {name: [_time(name.split(), folder) for _ in range(RUNS)] for name in LIMITS_SECONDS}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:<20} median {medians[name]:.3f} s ({spread}, n={RUNS}), limit {LIMITS_SECONDS[name]} s")
    return {
        "target": ", ".join(f"{name} ≤ {limit} s" for name, limit in LIMITS_SECONDS.items()),
        "met": all(medians[name] <= limit for name, limit in LIMITS_SECONDS.items()),
        "seconds": seconds,
    }


def quick_run(folder: Path) -> None:
    """Write a run of the quick profile with three engines, all fake."""
    subprocess.run(
        [CMP, "run", "--engines", "a=fake,b=fake,c=fake", *QUICK, "-o", "b.decode_us=900"],
        cwd=folder,
        env={**os.environ, "CMP_PLUGINS": "enginecmp.testing.fake_engine"},
        check=True,
        capture_output=True,
    )


def _time(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run([CMP, *command[1:]], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start
