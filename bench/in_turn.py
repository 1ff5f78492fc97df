"""Two processes that live at the same time and answer one request each in turn.

A machine drifts: by percents within a minute on a shared host. Two requests a second apart see nearly the same
machine, so their ratio says what sums over whole processes do not. The side whose turn it is not sleeps on its pipe.
"""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from enginecmp.errors import CmpError
from enginecmp.launch.launch import Launch, last_line
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines
from enginecmp_analysis.statistics.student import mean_interval

ANSWER_SECONDS = 300.0


class Answer(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        ids: the generated tokens.
        token_ns: when each could be used, nanoseconds of the monotonic clock.
        engine_seconds: what the engine's own calls took for the tokens after the first; None where it does not say.
    """

    ids: list[int]
    token_ns: list[int]
    engine_seconds: float | None = None

    @property
    def decode_seconds(self) -> float:
        """The time from the first token to the last."""
        return (self.token_ns[-1] - self.token_ns[0]) * 1e-9

    @property
    def decode_tokens_per_second(self) -> float:
        """The rate of the tokens after the first: (n - 1) / (last - first)."""
        return (len(self.token_ns) - 1) / self.decode_seconds


Request = Callable[[], Answer]
Side = Callable[[], AbstractContextManager[Request]]
Rates = tuple[float, float]
"""Decode rates through `cmp` and of the engine by itself, tokens per second."""


@contextmanager
def through_cmp(
    plugin: Plugin, model: ModelInfo, prompt: Sequence[int], n_tokens: int, threads: int
) -> Iterator[Request]:
    """Launch the engine as `cmp run` does; each call of what comes back is one request."""
    options = LoadOptions(threads=threads, context_tokens=len(prompt) + n_tokens)
    with (
        TemporaryDirectory(prefix="cmp-bench-") as folder,
        Launch(plugin.name, plugin, log=Path(folder) / "log", options=options) as launch,
    ):
        deadlines = Deadlines()
        launch.load(model, deadlines.load_seconds)

        def request() -> Answer:
            answer = launch.request(tuple(prompt), n_tokens, deadlines)
            return Answer(answer["ids"], answer["token_ns"], answer["metrics"].get("engine_decode_seconds"))

        yield request


@contextmanager
def bare(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Request]:
    """Start a bare loop; each call of what comes back writes it a line and waits for the line of its answer.

    Args:
        name: how messages call it.
        command: a program that answers every line with a JSON object of `ids` and `token_ns`.
        environment: variables beside those of this process.
    """
    with TemporaryDirectory(prefix="cmp-bench-") as folder:
        log = Path(folder) / "log"
        with (
            open(log, "wb") as errors,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
            ) as process,
        ):

            def request() -> Answer:
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    process.stdin.write(b"\n")
                    process.stdin.flush()
                except BrokenPipeError:
                    pass  # it ended: what it said comes below
                if not select.select([process.stdout], [], [], ANSWER_SECONDS)[0]:
                    msg = f"{name}: expected an answer within {ANSWER_SECONDS:g} s, got none; run {command[0]} by hand"
                    raise CmpError(msg)
                line = process.stdout.readline()
                if not line.endswith(b"\n"):
                    said = last_line(log) or "nothing"
                    msg = f"{name}: expected an answer, the loop ended and said: {said}; run {command[0]} by hand"
                    raise CmpError(msg)
                return msgspec.convert(json.loads(line), Answer)

            try:
                yield request
            finally:
                process.kill()


def take_turns(name: str, ours: Side, theirs: Side, launches: int, pairs: int) -> dict[str, Any]:
    """Launch both sides several times, ask them in turn (A B B A ...) and return what `summarize` makes of it.

    Where the engine tells what its own calls took, the result has `engine_share` with its limits too: their part of
    the time between the first token and the last through `cmp`. Both are of one request, so no machine's drift is in
    it; what two processes differ by is not in it either.

    Args:
        name: of the comparison, for messages.
        ours: through `cmp`.
        theirs: the engine by itself.
        launches: pairs of fresh processes; every other one starts the other side first.
        pairs: requests of each side in one launch, after one each to warm up.

    Raises:
        CmpError: the sides generate different tokens, or one fails.
    """
    done = [_launch(name, ours, theirs, pairs, swapped=number % 2 == 1) for number in range(launches)]
    rates = [[(a.decode_tokens_per_second, b.decode_tokens_per_second) for a, b in found] for found in done]
    result = summarize(name, rates)
    shares = [[a.engine_seconds / a.decode_seconds for a, _ in found if a.engine_seconds] for found in done]
    if all(shares):
        share, low, high = mean_interval([_mean(found) for found in shares])
        print(f"{name}: {share:.4f} [{low:.4f}, {high:.4f}] of that time through cmp is the engine's own", flush=True)
        result |= {"engine_share": share, "engine_share_low": low, "engine_share_high": high}
    return result


def _launch(name: str, ours: Side, theirs: Side, pairs: int, *, swapped: bool) -> list[tuple[Answer, Answer]]:
    """Return the answers of both sides, ours first."""
    with ExitStack() as stack:
        sides = [stack.enter_context(side()) for side in ((theirs, ours) if swapped else (ours, theirs))]
        warm = [side() for side in sides]
        found = []
        for number in range(pairs):
            forward = number % 2 == 0
            answers = [side() for side in (sides if forward else reversed(sides))]
            if any(answer.ids != warm[0].ids for answer in (*warm, *answers)):
                msg = f"{name}: expected the same tokens from both sides, got different ones; build both again"
                raise CmpError(msg)
            first, second = answers
            found.append((first, second) if forward != swapped else (second, first))
    return found


def summarize(name: str, launches: Sequence[Sequence[Rates]]) -> dict[str, Any]:
    """Print one line and return ratio, interval and rates.

    Args:
        name: of the comparison.
        launches: rates of every pair of requests, in the order they were made. The launch is the unit: its pairs
            share whatever two processes differ by, so they are one number, the mean of their log ratios.
    """
    logs = [math.fsum(math.log(a / b) for a, b in pairs) / len(pairs) for pairs in launches]
    ratio, low, high = (math.exp(value) for value in mean_interval(logs))
    left, right = (math.exp(_mean([math.log(pair[side]) for pairs in launches for pair in pairs])) for side in (0, 1))
    rounds = f"{len(launches)} launches of {len(launches[0])} pairs"
    print(f"{name}: {left:.2f} / {right:.2f} tok/s, ratio {ratio:.4f} [{low:.4f}, {high:.4f}], {rounds}", flush=True)
    return {"ratio": ratio, "ci_low": low, "ci_high": high, "rates": launches}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
