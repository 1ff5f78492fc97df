"""The parts of a run on a GPU: each a process of its own, in its own time, and what became of it.

A part that hangs is killed, one that loses the device takes only its own context with it, and what it had written until
then counts. Parts talk to this process through lines of JSON in a file, one record a line:

    {"record": "fact", "name": ..., "value": ...}
    {"record": "measurement", "name": ..., "setting": {...}, "seconds": [...], "verified": true, "nbytes": ...,
     "median": ..., "bytes_per_second": ..., "flop": ...}
    {"record": "note", "text": ...}          something left out, and why
    {"record": "error", "text": ...}         what ended the part, or one thing in it

Each process is `python -m enginecmp_custom_cuda.bench.parts SPEC.json`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .context import Context, one_line

State = Literal["right", "WRONG", "failed", "out of time", "skipped"]

GRACE_SECONDS = 5.0
"""Between the time that a part is told and the time at which it is killed; a tenth of a short box."""

LEAST_SECONDS = 3.0
"""With less left, a part is not begun."""

PARENT_DEATH = 1
"""PR_SET_PDEATHSIG, from linux/prctl.h."""

LOG_LINES = 30
"""Of a part that is not right, kept in the report."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One part of a run.

    Attributes:
        module: has a function `run(context)`.
        seconds: its time box on a GPU.
        dry_seconds: its time box in a rehearsal, where compilers may be slow.
        stage: "A", what the engine is and does, or "B", what it is compared with.
    """

    module: str
    seconds: float
    dry_seconds: float
    stage: str = "A"

    @property
    def name(self) -> str:
        """As `--only` takes it."""
        return self.module.rpartition(".")[2]


BENCH = "enginecmp_custom_cuda.bench"
PARTS = (
    Part(f"{BENCH}.facts", 15, 60),
    Part(f"{BENCH}.micro", 30, 60),
    Part(f"{BENCH}.correctness", 95, 240),
    Part(f"{BENCH}.engine", 100, 240),
    Part(f"{BENCH}.persistent", 60, 240),
    Part(f"{BENCH}.competitors", 150, 240, "B"),
    Part(f"{BENCH}.kernels", 90, 240, "B"),
)
"""In the order in which they run: what time is short for is at the end of its stage, and of its part."""

SANITIZER = Part(f"{BENCH}.sanitizer", 240, 240, "B")
"""Instead of stage B after a wrong answer in stage A."""


@dataclass
class Outcome:
    """What became of a part.

    Attributes:
        name: of the part.
        state: see `State`.
        seconds: that it took.
        box_seconds: that it was given.
        error: one line, where it failed or was skipped.
        records: what it wrote.
        log: the end of its log, where it is not right.
    """

    name: str
    state: State
    seconds: float = 0.0
    box_seconds: float = 0.0
    error: str = ""
    records: list[Record] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def run_part(part: Part, spec: dict[str, Any], folder: Path, seconds: float) -> Outcome:
    """Run a part and return what became of it; never raises for what the part does.

    Args:
        part: which.
        spec: what it is told beside its name: device, dry, model, bandwidth, ...
        folder: gets its log, its records and its spec.
        seconds: its time box.
    """
    if seconds < LEAST_SECONDS:
        return Outcome(part.name, "skipped", error="no time was left")
    records, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    records.write_text("", encoding="utf-8")
    told = seconds - min(GRACE_SECONDS, seconds / 10)
    content = {**spec, "module": part.module, "records": str(records), "seconds": told, "parent": os.getpid()}
    path = folder / f"{part.name}.spec.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "enginecmp_custom_cuda.bench.parts", str(path)]
    begin = time.monotonic()
    with log.open("wb") as output:
        # A group of its own, so that what a part starts ends with it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
    took = time.monotonic() - begin
    found = read_records(records)
    end = last_lines(log)
    outcome = judge(part.name, code, found, end[-1] if end else "", Outcome(part.name, "right", took, seconds))
    if outcome.state not in ("right", "skipped"):
        outcome.log = end
    return outcome


def judge(name: str, code: int | None, records: list[Record], last: str, outcome: Outcome) -> Outcome:
    """Fill in an outcome's state and error.

    Args:
        name: of the part.
        code: its exit code; None where it was killed for its time.
        records: what it wrote.
        last: the last line of its log.
        outcome: to be filled in, and returned.
    """
    outcome.records = records
    errors = [record["text"] for record in records if record["record"] == "error"]
    if wrong_records(records):
        outcome.state = "WRONG"
    elif code is None:
        outcome.state = "out of time"
    elif code or errors:
        outcome.state = "failed"
    if errors:
        outcome.error = "; ".join(errors)
    elif code is None:
        outcome.error = f"killed after {outcome.box_seconds:.0f} s; what it had found is kept"
    elif code:
        outcome.error = last or f"{name} ended with code {code}"
    return outcome


def wrong_records(records: list[Record]) -> list[Record]:
    """Return the measurements of work that was not done right."""
    return [each for each in records if each.get("verified") is False]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a part and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_records(path: Path) -> list[Record]:
    """Return the whole lines of a file of records; the last one may have been cut off."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log that say something, shortened."""
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return [line[:300] for line in lines[-LOG_LINES:]]


def main(arguments: list[str]) -> int:
    """Run the part that a spec names, in this process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)
    spec = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    if os.getppid() != spec["parent"]:  # it ended before it could be seen to
        return 1
    context = Context(spec)
    try:
        importlib.import_module(spec["module"]).run(context)
    except BaseException as error:  # a part may end in anything
        traceback.print_exc()
        context.failed(one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
