"""The run: parts in order, the report after each, the table at the end."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ..compiling import cache
from . import wheels
from .competitors import MODEL_FILE
from .facts import nvidia_smi
from .parts import PARTS, SANITIZER, Outcome, Part, end_group, run_part, wrong_records
from .report import render
from .synthesized import SHAPES

SCHEMA = "enginecmp-custom-cuda-gpu/1"
DEFAULT_MODEL, DRY_MODEL = "llama-3.2-1b", "tiny-llama"
STAGE_MINUTES = {"A": 5.0, "B": 4.0}
DRY_MINUTES = 30.0
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
    parser.add_argument("--stage", choices=("A", "B", "AB"), default="AB", help="A: is it right, how fast; B: compared")
    parser.add_argument(
        "--minutes", type=float, help="for everything, of which A has five ninths (default: 9; with --dry 30)"
    )
    parser.add_argument(
        "--kernels",
        type=Path,
        metavar="FOLDER",
        help="where compiled kernels lie and go, carried from machine to machine",
    )
    parser.add_argument("--wheels", action="store_true", help="list what a machine without a network needs, and end")
    parser.add_argument("--only", default="", help="parts, separated by commas: " + ", ".join(names()))
    parser.add_argument("--model", default="", help=f"whose shape: a GGUF file's, or {', '.join(SHAPES)}")
    chosen = parser.parse_args(arguments)
    chosen.device = chosen.device or ("emulated" if chosen.dry else "cuda")
    # Nothing is timed there, and a large model would take hours.
    chosen.dry = chosen.dry or chosen.device == "emulated"
    minutes = sum(STAGE_MINUTES[stage] for stage in chosen.stage)
    chosen.minutes = chosen.minutes or (DRY_MINUTES if chosen.dry else minutes)
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
    if chosen.wheels:
        print("\n".join(wheels.lines()))
        return 0
    signal.signal(signal.SIGTERM, terminated)
    folder: Path = chosen.out.resolve()
    logs = folder / "parts"
    logs.mkdir(parents=True, exist_ok=True)
    report = new_report(chosen)
    spec = {"device": chosen.device, "dry": chosen.dry, "model": chosen.model, "folder": str(folder)}
    if chosen.model not in SHAPES:
        spec["model"] = str(Path(chosen.model).resolve())
    if chosen.kernels is not None:
        os.environ[cache.FOLDER_VARIABLE] = str(chosen.kernels.resolve())
    stages = {stage: parts_of(chosen, stage) for stage in chosen.stage}
    writer = None
    write(report, folder)
    try:
        if chosen.model in SHAPES and any(part.name == "competitors" for part in stages.get("B", ())):
            writer = start_writer(chosen.model, folder)
        begin = time.monotonic()
        for stage, end in deadlines(chosen, begin).items():
            parts = stages[stage]
            if stage == "B" and parts and report["verdict"] == "WRONG":
                print(
                    f"{time.monotonic() - begin:6.1f} s  a wrong answer: the sanitizer instead of stage B", flush=True
                )
                spec["wrong"], parts = wrong_of(report), (SANITIZER,)
            for part in parts:
                print(f"{time.monotonic() - begin:6.1f} s  {part.name} ...", flush=True)
                seconds = min(part.dry_seconds if chosen.dry else part.seconds, end - time.monotonic())
                outcome = run_part(part, spec, logs, seconds)
                add(report, outcome)
                write(report, folder)
                told = f": {outcome.error}" if outcome.error else ""
                print(f"{'':10}{outcome.state}, {outcome.seconds:.1f} s{told}", flush=True)
    except KeyboardInterrupt:
        report["interrupted"] = True
    finally:
        if writer is not None:
            end_group(writer)
    report["verdict"] = verdict(report)
    write(report, folder)
    print(render(report), flush=True)
    print(f"all of it: {archive(folder)}", flush=True)
    return {"right": 0, "WRONG": 1}.get(report["verdict"], 2)


def parts_of(chosen: argparse.Namespace, stage: str) -> tuple[Part, ...]:
    """Return the parts of a stage that were asked for."""
    return tuple(part for part in PARTS if part.stage == stage and (not chosen.only or part.name in chosen.only))


def deadlines(chosen: argparse.Namespace, begin: float) -> dict[str, float]:
    """Return when each stage must be over, on the monotonic clock; what one leaves is the next one's."""
    share = 60 * chosen.minutes / sum(STAGE_MINUTES[stage] for stage in chosen.stage)
    ends, end = {}, begin
    for stage in chosen.stage:
        end += share * STAGE_MINUTES[stage]
        ends[stage] = end
    ends[chosen.stage[-1]] -= CLOSING_SECONDS
    return ends


def start_writer(model: str, folder: Path) -> subprocess.Popen[bytes]:
    """Begin to write the file that other engines read, beside the parts that need it not."""
    (folder / MODEL_FILE).unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "enginecmp_custom_cuda.bench.model_file", model, str(folder / MODEL_FILE)]
    with (folder / "parts" / "model_file.log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )


def wrong_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of wrong answers, each with its part's name."""
    return [{**record, "part": part["name"]} for part in report["parts"] for record in wrong_records(part["records"])]


def archive(folder: Path) -> Path:
    """Return an archive of all that was found, beside FOLDER: one file to carry home; the model stays."""
    path = folder.with_name(folder.name + ".tar.gz")
    with tarfile.open(path, "w:gz") as packed:
        for each in sorted(folder.rglob("*")):
            if each.is_file() and each.suffix != ".gguf":
                packed.add(each, f"{folder.name}/{each.relative_to(folder)}", recursive=False)
    return path


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


def add(report: dict[str, Any], outcome: Outcome) -> None:
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
