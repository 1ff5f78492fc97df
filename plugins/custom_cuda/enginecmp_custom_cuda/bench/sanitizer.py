"""The part "sanitizer": after a wrong answer, what was wrong again under NVIDIA's compute-sanitizer.

It stands in for everything that would have been measured: the times of an engine that computes something else say
nothing. memcheck finds accesses beside what was allocated, racecheck those in shared memory that no barrier parts,
initcheck reads of memory that nobody wrote.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .context import Context
from .correctness import TESTS, command_of

TOOLS = ("memcheck", "racecheck", "initcheck")
PLACES = ("/usr/local/cuda/bin", "/opt/cuda/bin")
MOST_TESTS = 4
LEAST_SECONDS = 10.0
AGAIN = """import importlib, json, sys
from enginecmp_custom_cuda.bench.context import Context
with open(sys.argv[1]) as file:
    spec = {**json.load(file), "dry": True}
importlib.import_module(spec["module"]).run(Context(spec))
"""
"""A part once more in this process, at its smallest."""

SUMMARY = "ERROR SUMMARY"


def run(context: Context) -> None:
    """Run the tools in turn on the first tests that failed, else on the part whose answer was wrong."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(PLACES))
    if program is None:
        context.failed("expected compute-sanitizer (part of the CUDA toolkit), got none; put it on PATH")
        return
    command = suspects(context)
    for tool in TOOLS:
        if not context.enough(LEAST_SECONDS, tool):
            break
        summary = ended(context, [program, "--tool", tool, "--target-processes", "all", *command])
        context.fact(f"compute-sanitizer {tool}", summary)


def suspects(context: Context) -> list[str]:
    """Return the command that shows the wrong answer again."""
    failed = [one["setting"] for one in context.wrong if one["name"] == "test"][:MOST_TESTS]
    if failed:
        return command_of([f"{TESTS / 'test_custom_cuda_{}.py'.format(one['file'])}::{one['id']}" for one in failed])
    part = context.wrong[0]["part"]
    return [sys.executable, "-P", "-c", AGAIN, str(context.folder / "parts" / f"{part}.spec.json")]


def ended(context: Context, command: list[str]) -> str:
    """Return the last line that sums up, "no time" where it did not come."""
    print("$", *command, flush=True)
    environment = {**os.environ, "ENGINECMP_TEST_DEVICE": context.device_kind if context.device_kind == "cuda" else ""}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=context.left(),
            env=environment,
            cwd=Path(TESTS).parents[2],
        )
    except subprocess.TimeoutExpired:
        return "no time"
    printed = done.stdout + done.stderr
    print(printed, flush=True)
    lines = [line for line in printed.splitlines() if SUMMARY in line]
    return lines[-1].strip("= ") if lines else f"ended with {done.returncode}"
