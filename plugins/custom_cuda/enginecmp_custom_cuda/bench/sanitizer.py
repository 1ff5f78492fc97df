"""The part "sanitizer": compute-sanitizer over a tiny model's correctness, for wild accesses and for races."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .context import Context, Skip

TOOLS = ("memcheck", "racecheck")
ERROR_CODE = 86
PLACES = ("/usr/local", "/opt")


def run(context: Context) -> None:
    """Run each tool in half of the time that is left."""
    program = find()
    if program is None:
        msg = "compute-sanitizer is neither on PATH nor below /usr/local/cuda*"
        raise Skip(msg)
    if not context.device_timed:
        msg = "compute-sanitizer watches a GPU, and there is none"
        raise Skip(msg)
    context.fact("compute-sanitizer", str(program))
    for place, tool in enumerate(TOOLS):
        if context.enough(5, tool):
            watch(context, program, tool, context.left() / (len(TOOLS) - place))


def find() -> Path | None:
    """Return where compute-sanitizer is, None where it is not."""
    if found := shutil.which("compute-sanitizer"):
        return Path(found)
    for place in PLACES:
        for found_path in sorted(Path(place).glob("cuda*/bin/compute-sanitizer"), reverse=True):
            return found_path
    return None


def watch(context: Context, program: Path, tool: str, seconds: float) -> None:
    """Run the checks of a tiny model under a tool, and write down how many errors it saw."""
    records = context.folder / f"sanitizer-{tool}.jsonl"
    records.write_text("", encoding="utf-8")
    spec = context.folder / f"sanitizer-{tool}.spec.json"
    inner = {"part": "correctness", "module": "correctness", "small": True, "records": str(records), "seconds": seconds}
    spec.write_text(json.dumps({**context.spec, **inner}), encoding="utf-8")
    log = context.folder / f"sanitizer-{tool}.log"
    command = [str(program), "--tool", tool, "--error-exitcode", str(ERROR_CODE), "--print-limit", "20"]
    command += [sys.executable, "-m", "enginecmp_custom_cuda.bench.child", str(spec)]
    with log.open("wb") as output:
        try:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            context.note(f"{tool}: not over after {seconds:.0f} s")
            return
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = count(text)
    if errors is None:
        last = [line for line in text.splitlines() if line.strip()][-1:]
        context.note(f"{tool}: no summary, code {done.returncode}: {' '.join(last)[:200]}")
        return
    context.check(tool, {}, errors == 0, f"{errors} errors" + (f"; see {log.name}" if errors else ""))


def count(text: str) -> int | None:
    """Return how many errors a tool's output ends with; None where it has no summary.

    "ERROR SUMMARY: 3 errors" of memcheck, "RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)" of racecheck.
    """
    if found := re.findall(r"RACECHECK SUMMARY: (\d+) hazards?", text):
        return int(found[-1])
    found = re.findall(r"ERROR SUMMARY: (\d+) errors?", text)
    return int(found[-1]) if found else None
