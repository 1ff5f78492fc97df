"""How often requests are flagged on a quiet and on a lightly used machine, and whether the flagged ones are slower.

Each round launches llama.cpp once for every load, in random order: nothing, and a process that wakes twenty times a
second and computes for 5 % or 20 % of a core. Times are held against the unflagged requests of the same round without
load, so what the machine does from minute to minute is in both; the interval is over rounds. About five minutes.

A flag is right where the times behind it differ; where they do not, its limit is stricter than its effect.
"""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from enginecmp.launch.launch import Launch
from enginecmp.models.store import resolve
from enginecmp.plugins.discovery import discover, find
from enginecmp.prompts import PromptSet
from enginecmp.run.selection import resolve_threads
from enginecmp.telemetry.contention import Validity
from enginecmp.types import LoadOptions
from enginecmp.wire.deadlines import Deadlines
from enginecmp_analysis.statistics.student import mean_interval

ENGINE = "llamacpp"
LOADS = (0.0, 0.05, 0.20)
"""Shares of a core that the other process takes."""

ROUNDS = 8
REQUESTS = 10
PROMPT_TOKENS, OUTPUT_TOKENS = 16, 32
MOST_FLAGGED = 0.02
"""Of the requests on a machine that does nothing else."""

BINS = (0.0, 0.02, 0.05, 0.10, 0.20, 0.50, math.inf)
"""Limits of the shares of a core that others took, by which times are told beside the flags."""

_BUSY = """
import sys, time
share = float(sys.argv[1])
while True:
    until = time.perf_counter() + 0.05 * share
    while time.perf_counter() < until:
        pass
    time.sleep(0.05 * (1 - share))
"""


class Request(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        round: number of the round.
        load: share of a core that the other process took, as it was meant.
        seconds: from its start to its end.
        foreign: CPU time of others as a share of one core, as the worker read it; NaN where it cannot be read.
        flags: by the rules of a run.
    """

    round: int
    load: float
    seconds: float
    foreign: float
    flags: tuple[str, ...]


class Part(msgspec.Struct, frozen=True):
    """Some of the requests.

    Attributes:
        name: which.
        n: how many.
        share: of the requests that they were chosen from.
        ratio: of their time to that of unflagged requests without load in the same round; NaN without any.
        ci_low: lower 95 % limit over rounds.
        ci_high: upper one.
        flags: how many carry each flag.
    """

    name: str
    n: int
    share: float
    ratio: float
    ci_low: float
    ci_high: float
    flags: dict[str, int]


def measure() -> dict[str, Any]:
    """Return what was flagged under each load, and how much longer it took."""
    requests = list(_requests())
    parts, bins = by_flag(requests), by_foreign_share(requests)
    print(f"{ENGINE}, {ROUNDS} rounds of {len(LOADS)} launches of {REQUESTS} requests, limits: {Validity()}")
    for title, some in (("load, flags", parts), ("others' share of a core", bins)):
        print(f"{title:<26} {'n':>4} {'share':>7}  time over that of unflagged requests without load")
        for part in some:
            told = f"{part.ratio:.3f} [{part.ci_low:.3f}, {part.ci_high:.3f}]" if math.isfinite(part.ratio) else "n/a"
            flags = ", ".join(f"{flag} {count}" for flag, count in part.flags.items())
            print(f"{part.name:<26} {part.n:>4} {part.share:>7.1%}  {told:<22} {flags}".rstrip(), flush=True)
    flagged = next(part.share for part in parts if part.name == _name(0.0, flagged=True))
    return {
        "target": f"at most {MOST_FLAGGED:.0%} of requests flagged where nothing else runs",
        "met": flagged <= MOST_FLAGGED,
        "parts": msgspec.to_builtins(parts),
        "by_foreign_share": msgspec.to_builtins(bins),
        "requests": msgspec.to_builtins(requests),
    }


def by_flag(requests: Sequence[Request]) -> list[Part]:
    """Return two parts a load: what is flagged, and what is not."""
    parts = []
    for load in dict.fromkeys(sorted(request.load for request in requests)):
        mine = [request for request in requests if request.load == load]
        for flagged in (True, False):
            some = [request for request in mine if bool(request.flags) is flagged]
            parts.append(_part(_name(load, flagged=flagged), some, len(mine), requests))
    return parts


def by_foreign_share(requests: Sequence[Request]) -> list[Part]:
    """Return a part for each range of the share of a core that others really took, whatever was flagged."""
    parts = []
    for low, high in itertools.pairwise(BINS):
        some = [request for request in requests if low <= request.foreign < high]
        name = f"{low:.0%} to {high:.0%}" if math.isfinite(high) else f"{low:.0%} and more"
        parts.append(_part(name, some, len(requests), requests))
    return parts


def _name(load: float, *, flagged: bool) -> str:
    return f"{'none' if not load else f'{load:.0%}'}, {'flagged' if flagged else 'not flagged'}"


def _part(name: str, some: Sequence[Request], of: int, everything: Sequence[Request]) -> Part:
    logs = []
    for number in dict.fromkeys(request.round for request in some):
        quiet = _level(r for r in everything if r.round == number and not r.load and not r.flags)
        mine = _level(r for r in some if r.round == number)
        if math.isfinite(quiet):
            logs.append(mine - quiet)
    mean = low = high = math.nan
    if logs:
        mean, low, high = mean_interval(logs)
    flags = {flag: sum(flag in r.flags for r in some) for flag in sorted({flag for r in some for flag in r.flags})}
    share = len(some) / of if of else math.nan
    return Part(name, len(some), share, math.exp(mean), math.exp(low), math.exp(high), flags)


def _level(some: Iterable[Request]) -> float:
    """Return the mean log of seconds; NaN of none."""
    logs = [math.log(request.seconds) for request in some]
    return math.fsum(logs) / len(logs) if logs else math.nan


def _requests() -> Iterator[Request]:
    model = resolve("smollm2-135m-instruct:q8_0", fetch=True)
    prompts, plugin, deadlines, validity = PromptSet(model), find(ENGINE, discover()), Deadlines(), Validity()
    options = LoadOptions(threads=resolve_threads("auto"), context_tokens=PROMPT_TOKENS + OUTPUT_TOKENS)
    for number in range(ROUNDS):
        order = random.Random(number).sample(LOADS, len(LOADS))
        for load in order:
            with (
                TemporaryDirectory(prefix="cmp-bench-") as folder,
                _busy(load),
                Launch(ENGINE, plugin, log=Path(folder) / "log", options=options) as launch,
            ):
                launch.load(model, deadlines.load_seconds)
                for index in range(-1, REQUESTS):
                    token_ids = prompts.take(PROMPT_TOKENS, key=index + 1, seed=number)
                    answer = launch.request(token_ids, OUTPUT_TOKENS, deadlines)
                    if index >= 0:  # the first one warms up
                        yield _request(number, load, answer, validity, launch.conditions)


def _request(
    number: int,
    load: float,
    answer: Mapping[str, Any],
    validity: Validity,
    conditions: Callable[[int, int], Iterable[str]],
) -> Request:
    start_ns, end_ns, metrics = answer["start_ns"], answer["end_ns"], answer["metrics"]
    seconds = (end_ns - start_ns) / 1e9
    flags = (*validity.flags(metrics, seconds), *conditions(start_ns, end_ns))
    return Request(number, load, seconds, metrics.get("foreign_cpu_seconds", math.nan) / seconds, flags)


@contextmanager
def _busy(share: float) -> Iterator[None]:
    """Let another process take a share of a core meanwhile."""
    if not share:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", _BUSY, str(share)]) as process:
        try:
            yield
        finally:
            process.kill()
