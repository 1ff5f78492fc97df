"""The run: parts in order, the report after each, the table at the end."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .facts import nvidia_smi
from .parts import PARTS, Outcome, Part, run_part, wrong_records
from .report import render
from .synthesized import SHAPES

SCHEMA = "enginecmp-custom-cuda-gpu/1"
DEFAULT_MODEL, DRY_MODEL = "llama-3.2-1b", "tiny-llama"
DEFAULT_MINUTES, DRY_MINUTES = 9.0, 30.0
CLOSING_SECONDS = 3.0
"""For the last report."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line, checked; ends the process where it is wrong."""
    parser = argparse.ArgumentParser(prog="bench_gpu.py", description="Measure a GPU's limits and every kernel alone.")
    parser.add_argument("--device", choices=("cuda", "emulated"), help="cuda; with --dry emulated")
    parser.add_argument("--dry", action="store_true", help="a rehearsal: tiny models, the least of everything")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-gpu"), help="folder for report.json, table.txt and parts/, the logs"
    )
    parser.add_argument("--minutes", type=float, help="for everything (default: 9; with --dry 30)")
    parser.add_argument("--only", default="", help="parts, separated by commas: " + ", ".join(names()))
    parser.add_argument("--model", default="", help=f"whose shape: a GGUF file's, or {', '.join(SHAPES)}")
    chosen = parser.parse_args(arguments)
    chosen.device = chosen.device or ("emulated" if chosen.dry else "cuda")
    # Nothing is timed there, and a large model would take hours.
    chosen.dry = chosen.dry or chosen.device == "emulated"
    chosen.minutes = chosen.minutes or (DRY_MINUTES if chosen.dry else DEFAULT_MINUTES)
    chosen.model = chosen.model or (DRY_MODEL if chosen.dry else DEFAULT_MODEL)
    chosen.only = tuple(filter(None, chosen.only.split(",")))
    if unknown := [name for name in chosen.only if name not in names()]:
        parser.error(f"expected parts among {', '.join(names())}, got {', '.join(unknown)}")
    if chosen.model not in SHAPES and not Path(chosen.model).is_file():
        parser.error(f"expected a file or a shape among {', '.join(SHAPES)}, got '{chosen.model}'")
    return chosen


def names() -> list[str]:
    """Return what --only takes."""
    return [part.name for part in PARTS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 where all is right, 1 where an answer is wrong, 2 where a part did not end."""
    chosen = parse(sys.argv[1:] if arguments is None else arguments)
    deadline = time.monotonic() + 60 * chosen.minutes - CLOSING_SECONDS
    signal.signal(signal.SIGTERM, terminated)
    folder: Path = chosen.out.resolve()
    logs = folder / "parts"
    logs.mkdir(parents=True, exist_ok=True)
    report = new_report(chosen)
    spec = {"device": chosen.device, "dry": chosen.dry, "model": chosen.model}
    if chosen.model not in SHAPES:
        spec["model"] = str(Path(chosen.model).resolve())
    parts = [part for part in PARTS if not chosen.only or part.name in chosen.only]
    write(report, folder)
    try:
        for part in parts:
            print(f"{time.monotonic() - report_began(report):6.1f} s  {part.name} ...", flush=True)
            seconds = min(part.dry_seconds if chosen.dry else part.seconds, deadline - time.monotonic())
            outcome = run_part(part, spec, logs, seconds)
            add(report, part, outcome)
            write(report, folder)
            told = f": {outcome.error}" if outcome.error else ""
            print(f"{'':10}{outcome.state}, {outcome.seconds:.1f} s{told}", flush=True)
    except KeyboardInterrupt:
        report["interrupted"] = True
    report["verdict"] = verdict(report)
    write(report, folder)
    print(render(report), flush=True)
    return {"right": 0, "WRONG": 1}.get(report["verdict"], 2)


def new_report(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return a report without parts; its form is told in bench_gpu.py."""
    return {
        "schema": SCHEMA,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "began_monotonic": time.monotonic(),
        "arguments": [f"--{key}={value}" for key, value in vars(chosen).items() if value not in (None, "", ())],
        "device": chosen.device,
        "timed": chosen.device == "cuda",
        "dry": chosen.dry,
        "model": chosen.model,
        "verdict": "incomplete",
        "parts": [],
    }


def report_began(report: dict[str, Any]) -> float:
    """Return when the run began, on the monotonic clock."""
    return float(report["began_monotonic"])


def add(report: dict[str, Any], part: Part, outcome: Outcome) -> None:
    """Take a part's outcome into the report, with the GPU's clocks after it."""
    entry = asdict(outcome)
    if report["timed"] and outcome.seconds:
        clocks = nvidia_smi()
        kept = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
        entry["clocks"] = {name: clocks[name] for name in kept if name in clocks}
    report["parts"].append(entry)
    report["seconds"] = round(time.monotonic() - report_began(report), 1)
    report["verdict"] = verdict(report)


def verdict(report: dict[str, Any]) -> str:
    """Return "WRONG" where any answer was, "right" where every part ended well, else "incomplete"."""
    if wrong_records([record for part in report["parts"] for record in part["records"]]):
        return "WRONG"
    states = {part["state"] for part in report["parts"]}
    return "right" if states == {"right"} and not report.get("interrupted") else "incomplete"


def write(report: dict[str, Any], folder: Path) -> None:
    """Write report.json and table.txt, each whole or as it was."""
    for name, text in (("report.json", json.dumps(report, indent=1)), ("table.txt", render(report))):
        temporary = folder / f".{name}"
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / name)


def terminated(number: int, frame: FrameType | None) -> NoReturn:
    """End as after an interrupt: the part that runs is killed and the report written."""
    raise KeyboardInterrupt
