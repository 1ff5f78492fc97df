"""The parts of a run on a GPU: each a process of its own, in its own time, and what became of it.

A part that hangs is killed, one that loses the device takes only its own context with it, and what it had written until
then counts. Parts talk to this process through lines of JSON in a file, one record a line:

    {"record": "fact", "name": ..., "value": ...}
    {"record": "check", "name": ..., "setting": {...}, "ok": true, "detail": "..."}
    {"record": "measurement", "name": ..., "setting": {...}, "seconds": [...], "verified": true, "nbytes": ...,
     "median": ..., "bytes_per_second": ..., "flop": ...}
    {"record": "note", "text": ...}          something left out, and why
    {"record": "error", "text": ...}         what ended the part, or one thing in it
    {"record": "skipped", "text": ...}       why there is nothing of the part here
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["right", "WRONG", "failed", "out of time", "skipped"]

GRACE_SECONDS = 5.0
"""Between the time that a part is told and the time at which it is killed; a tenth of a short box."""

LEAST_SECONDS = 3.0
"""With less left, a part is not begun."""

LOG_LINES = 30
"""Of a part that is not right, kept in the report."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One part of a run.

    Attributes:
        name: as `--only` takes it; "rivals:NAME" belongs to "rivals".
        seconds: its time box on a GPU.
        dry_seconds: its time box in a rehearsal, where compilers may be slow; 0: a part before it shows as much.
        module: below `enginecmp_custom_cuda.bench`, with a function `run(context)`.
    """

    name: str
    seconds: float
    dry_seconds: float
    module: str

    def wanted(self, only: tuple[str, ...]) -> bool:
        """Return whether a choice of names takes it in; an empty one takes all."""
        return not only or self.name in only or self.name.partition(":")[0] in only


PARTS = (
    Part("facts", 20, 60, "facts"),
    Part("micro", 30, 60, "ceilings"),
    Part("prepare", 90, 120, "prepare"),
    Part("correctness", 90, 240, "correctness"),
    Part("engine", 120, 240, "speed"),
    Part("resident", 60, 120, "resident"),
    Part("kernels", 90, 120, "kernels"),
    Part("rivals:custom_cuda", 45, 120, "rivals"),
    Part("rivals:torch-compile", 120, 120, "rivals"),
    Part("rivals:torch-eager", 45, 120, "rivals"),
    Part("rivals:llamacpp", 60, 60, "rivals"),
    Part("rivals:candle", 60, 60, "rivals"),
    Part("sanitizer", 90, 60, "sanitizer"),
    Part("rivals:torch-compile-int8", 90, 0, "rivals"),
    Part("rivals:torch-max-autotune", 150, 0, "rivals"),
)
"""In the order in which they run: the most important first."""


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
    if spec["dry"] and not part.dry_seconds:
        return Outcome(part.name, "skipped", error="a rehearsal does without")
    if seconds < LEAST_SECONDS:
        return Outcome(part.name, "skipped", error="no time was left")
    stem = part.name.replace(":", "-")
    records, log = folder / f"{stem}.jsonl", folder / f"{stem}.log"
    records.write_text("", encoding="utf-8")
    told = seconds - min(GRACE_SECONDS, seconds / 10)
    content = {**spec, "part": part.name, "module": part.module, "records": str(records), "seconds": told}
    path = folder / f"{stem}.spec.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, "-m", "enginecmp_custom_cuda.bench.child", str(path)]
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
    skipped = [record["text"] for record in records if record["record"] == "skipped"]
    if wrong_records(records):
        outcome.state = "WRONG"
    elif code is None:
        outcome.state = "out of time"
    elif code or errors:
        outcome.state = "failed"
    elif skipped:
        outcome.state = "skipped"
    if errors:
        outcome.error = "; ".join(errors)
    elif code is None:
        outcome.error = f"killed after {outcome.box_seconds:.0f} s; what it had found is kept"
    elif code:
        outcome.error = last or f"{name} ended with code {code}"
    elif skipped:
        outcome.error = skipped[-1]
    return outcome


def wrong_records(records: list[Record]) -> list[Record]:
    """Return the checks that failed, and the measurements of work that was not done right."""
    return [each for each in records if each.get("ok") is False or each.get("verified") is False]


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
