"""`python -m bench [PART [ENGINE ...] ...]`: all of them without arguments.

Engines choose among the comparisons of `fidelity`, the one part that has several.

Each part prints its table and the line that the README quotes, and writes bench-results/PART.json. Run it on an
idle machine: the parts say how busy it was.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from bench.fidelity import ENGINES
from enginecmp.errors import CmpError
from enginecmp.telemetry.idle import measure_busyness, wait_until_idle

PARTS = (
    "latency",
    "silence",
    "fidelity",
    "killing",
    "stats_speed",
    "load",
    "scenarios",
    "custom_cpu",
    "flag_rates",
    "fleet",
)


def main(names: list[str]) -> int:
    """Run the named parts; return 1 when one misses its target."""
    chosen: dict[str, list[str]] = {name: [] for name in names or PARTS if name in PARTS}
    part = ""
    for name in names:
        if name in PARTS:
            part = name
        elif part == "fidelity" and name in ENGINES:
            chosen[part].append(name)
        else:
            known = (*PARTS, *ENGINES) if part == "fidelity" else PARTS
            print(f"bench: unknown part '{name}'; known: {', '.join(known)}", file=sys.stderr)
            return 2
    folder = Path("bench-results")
    folder.mkdir(exist_ok=True)
    missed = []
    for name, engines in chosen.items():
        if not wait_until_idle(300, print):
            print(f"{name}: warning: the machine is not idle: {measure_busyness().describe()}")
        try:
            result = importlib.import_module(f"bench.{name}").measure(*engines)
        except CmpError as error:
            print(f"{name}: {error}", file=sys.stderr)
            missed.append(name)
            continue
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: {'meets' if result['met'] else 'MISSES'} its target: {result['target']}\n", flush=True)
        if not result["met"]:
            missed.append(name)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
