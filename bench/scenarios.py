"""Every shipped scenario's quick profile with every engine that runs here, and what came of it.

The gate runs once, with the first scenario: what the engines compute does not depend on the scenario. About an hour and
a half on two cores; BENCH_BLOCKS=2 shows in a fifth of it that all of them work, without verdicts, and
BENCH_SCENARIOS=load,decode picks some.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from enginecmp.scenarios import available

RESULTS = Path("bench-results/scenarios")
CMP = str(Path(sys.executable).with_name("cmp"))


def measure() -> dict[str, Any]:
    """Return, for every scenario, how it ended and its primary comparisons."""
    names = [name for name in os.environ.get("BENCH_SCENARIOS", "").split(",") if name] or list(available())
    found = {name: _run(name, gate=number == 0) for number, name in enumerate(names)}
    return {
        "target": "every scenario ends complete, with no failed launch",
        "met": all(result["status"] == "complete" and not result["failed"] for result in found.values()),
        "scenarios": found,
    }


def _run(name: str, *, gate: bool) -> dict[str, Any]:
    """Run one scenario, print its table, and return what it says."""
    blocks = os.environ.get("BENCH_BLOCKS")
    command = [
        CMP,
        "run",
        "--engines",
        "all",
        "--scenario",
        name,
        "--profile",
        "quick",
        "--out",
        str(RESULTS),
        "--json",
    ]
    command += ["--blocks", blocks] if blocks else []
    command += [] if gate else ["--no-gate"]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode != 0:
        return {"status": f"exit code {done.returncode}", "failed": [], "seconds": seconds}
    outcome = json.loads(done.stdout)
    report = subprocess.run([CMP, "stats", outcome["folder"]], stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"{report}\n{name}: {seconds:.0f} s", flush=True)
    stats = json.loads(
        subprocess.run([CMP, "stats", "--json", outcome["folder"]], capture_output=True, check=True).stdout
    )
    return {
        "status": outcome["status"],
        "failed": [record["launch"] for record in outcome["failed"]],
        "seconds": seconds,
        "flagged": outcome["flagged"],
        "primary": [c for c in stats["comparisons"] if c["primary"]],
    }
