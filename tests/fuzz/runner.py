"""Run a reader over damaged inputs, each within limits of processor time and memory.

An input follows from target, seed and index alone, so a fault is repeated by its numbers. The inputs of a target run
in one child process: a crash, a panic or a kill by the kernel is then a fault of one named input as well.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import random
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from enginecmp.errors import CmpError

TESTS = Path(__file__).parent.parent
MESSAGE_CHARACTERS = 2000
"""Longest error that a reader may raise: it goes to a terminal."""


class Target(NamedTuple):
    """One reader and what it is fed.

    Attributes:
        name: unique; the argument of `python -m fuzz`.
        make: gives the input of a random generator; must draw from nothing else.
        check: reads the input; a `CmpError` of one printable line refuses it, any other exception is a fault.
        seconds: processor time that one input may take.
        memory_bytes: address space that the inputs may add to the process.
    """

    name: str
    make: Callable[[random.Random], bytes]
    check: Callable[[bytes], None]
    seconds: float = 5.0
    memory_bytes: int = 2**30


class TooSlow(BaseException):
    """An input took more processor time than it may; no `except Exception` holds it."""


def targets() -> dict[str, Target]:
    """Return the targets of all modules in this folder."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in ("runner", "__main__"):
            offered: tuple[Target, ...] = getattr(importlib.import_module(f"fuzz.{module.name}"), "TARGETS", ())
            found |= {target.name: target for target in offered}
    return found


def input_of(target: Target, seed: int, index: int) -> bytes:
    """Return one input."""
    return target.make(random.Random(f"{target.name} {seed} {index}"))


def fault(target: Target, content: bytes) -> str | None:
    """Return what is wrong with how a target took an input, or None."""
    try:
        with _time_limit(target.seconds):
            target.check(content)
    except CmpError as error:
        text = str(error)
        if not text.isprintable() or not text:
            return f"an error that is no printable line: {text[:400]!r}"
        if len(text) > MESSAGE_CHARACTERS:
            return f"an error of {len(text)} characters: {text[:200]!r}"
        return None
    except TooSlow:
        return f"more than {target.seconds:g} s of processor time\n{traceback.format_exc(limit=-6)}"
    except BaseException:
        return traceback.format_exc(limit=-12)
    return None


def hold(name: str, count: int, seed: int = 0) -> str | None:
    """Run a target's inputs in a child process and return what went wrong with the first bad one, or None."""
    with tempfile.NamedTemporaryFile() as progress:
        command = [sys.executable, "-m", "fuzz", name, f"--count={count}", f"--seed={seed}"]
        done = subprocess.run(
            [*command, f"--progress={progress.name}"],
            cwd=TESTS, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode in (0, 1):
            return done.stdout + done.stderr if done.returncode else None
        index = int(progress.read() or b"0")
    how = f"the process ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return _report(targets()[name], seed, index, how)


def main() -> None:
    """Run inputs of one target in this process; exit status 1 after the first bad one."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(targets()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first input")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--progress", type=Path, help="file that gets the index of the current input")
    arguments = parser.parse_args()
    target = targets()[arguments.target]
    _limit_memory(target.memory_bytes)
    descriptor = os.open(arguments.progress or os.devnull, os.O_WRONLY)
    for index in range(arguments.first, arguments.first + arguments.count):
        os.pwrite(descriptor, b"%d" % index, 0)
        _end_in_native_code(target.seconds)
        found = fault(target, input_of(target, arguments.seed, index))
        if found is not None:
            print(_report(target, arguments.seed, index, found))
            sys.exit(1)
    print(f"{target.name}: {arguments.count} inputs, no fault")


def _report(target: Target, seed: int, index: int, how: str) -> str:
    """Save a bad input and return what to tell of it: where it is, what happened, how to repeat it."""
    folder = Path(tempfile.gettempdir()) / "enginecmp-fuzz"
    folder.mkdir(exist_ok=True)
    path = folder / f"{target.name}-{seed}-{index}.bin"
    path.write_bytes(input_of(target, seed, index))
    repeat = f"cd tests && {sys.executable} -m fuzz {target.name} --seed {seed} --first {index} --count 1"
    return f"{target.name}: input {index} of seed {seed}, saved as {path}: {how}\nrepeat it: {repeat}"


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` after so much processor time.

    Processor time and not the clock: another busy process is no fault of the reader.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def _end_in_native_code(seconds: float) -> None:
    """Let the kernel end this process after ten times an input's processor time: no exception reaches native code."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + 10 * seconds) + 1, hard))


def _limit_memory(more: int) -> None:
    """Let this process's address space grow by so much, and no further."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
