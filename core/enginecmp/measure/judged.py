"""A plugin's measurement, seen from the host: its judge in a process of its own, asked between samples.

The host imports nothing of a plugin. What the judge says is held to a schema and to the metrics that the plugin named;
a judge that crashes, hangs or says something else ends the launch in one line with the measurement's name.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import msgspec

from enginecmp.errors import CmpError, LaunchError, UsageError
from enginecmp.format.measures import Measure
from enginecmp.format.text import plain
from enginecmp.scenarios import Scenario
from enginecmp.types import Given
from enginecmp.wire.answers import TEXT_CHARACTERS, Failed, Numbers
from enginecmp.wire.guarded import GuardedProcess
from enginecmp.wire.protocol import Channel, channel_pair

DEADLINE_SECONDS = 600.0
"""For a judge's answer: it may work out the true answers of a large question."""

_CHECK_SECONDS = 30.0
_MOST_BYTES = 1 << 30


class JudgeError(CmpError):
    """A judge cannot ask or judge; the message names the measurement."""


class Question(msgspec.Struct):
    """What an engine is asked, and the tokens or rows of one call."""

    parameters: dict[str, Any]
    amount: Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


class Judgement(msgspec.Struct):
    """What a judge says of one answer: its numbers, or what is wrong with it."""

    metrics: Numbers
    wrong: str


class _Answer(msgspec.Struct):
    ok: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Failed | msgspec.UnsetType = msgspec.UNSET
    cpu_seconds: float = 0.0


class Judged(NamedTuple):
    """A judgement and the processor time that it took: no time of foreigners."""

    judgement: Judgement
    cpu_seconds: float


class JudgeProcess:
    """One judge's process, started when it is first asked.

    Args:
        measure: whose.
        log: file for what it prints; appended to.
    """

    def __init__(self, measure: Measure, log: Path) -> None:
        self._measure = measure
        self._log = log
        self._channel: Channel | None = None

    def check(self, parameters: Mapping[str, Any], given: Given) -> None:
        """Let the judge look at a variant's parameters.

        Raises:
            JudgeError: they are wrong, or the judge cannot be asked.
        """
        self._ask("check", bool, _CHECK_SECONDS, key="", parameters=parameters, given=given)

    def question(self, key: str, parameters: Mapping[str, Any], given: Given) -> Question:
        """Return what the engines are asked in a cell.

        Args:
            key: of the question: the judge keeps what it works out for it.
            parameters: of the variant.
            given: what else the judge is told.

        Raises:
            JudgeError: there is no answer, or a wrong one.
        """
        found: Question = self._ask("question", Question, key=key, parameters=parameters, given=given)[0]
        return found

    def judge(self, key: str, answer: Any, seconds: float, marks: Sequence[float]) -> Judged:
        """Return what the judge says of an answer to a question. Errors as for `question`."""
        judgement, cpu_seconds = self._ask("judge", Judgement, key=key, answer=answer, seconds=seconds, marks=marks)
        known = {metric.name for metric in self._measure.metrics}
        if strange := sorted(judgement.metrics.keys() - known):
            self._fail(f"expected numbers named in its metrics, got {plain(strange[0], 80)}")
        judgement.wrong = plain(judgement.wrong, TEXT_CHARACTERS)
        return Judged(judgement, max(0.0, cpu_seconds))

    def close(self) -> None:
        """End the process; it starts again when it is asked again."""
        if self._channel is not None:
            self._end()
            self._channel = None

    def _ask(
        self, operation: str, kind: Any, deadline_seconds: float = DEADLINE_SECONDS, **fields: Any
    ) -> tuple[Any, float]:
        if self._channel is None:
            self._start()
        assert self._channel is not None
        try:
            self._channel.send({"op": operation, **fields}, deadline_seconds)
            answer = self._channel.receive(deadline_seconds, _Answer, _MOST_BYTES)
        except TimeoutError:
            self._fail(f"no answer within {deadline_seconds:g} s; log: {self._log}")
        except LaunchError as error:
            self._fail(f"{error}; log: {self._log}")
        if answer is None:
            self._process.reap()
            self._fail(f"{self._process.how_it_ended()}; log: {self._log}")
        if not isinstance(answer.error, msgspec.UnsetType):
            msg = f"{self._measure.name}: {plain(answer.error.message, TEXT_CHARACTERS).removeprefix('ValueError: ')}"
            raise JudgeError(msg)
        try:
            return msgspec.msgpack.decode(answer.ok or b"\xc0", type=kind), answer.cpu_seconds
        except msgspec.ValidationError as error:
            self._fail(f"its answer to {operation}: {plain(str(error), 300)}")

    def _start(self) -> None:
        channel, theirs = channel_pair()
        command = [sys.executable, "-P", "-m", "enginecmp.measure.judge_server", str(theirs), self._measure.judge]
        try:
            self._process = GuardedProcess(command, self._log, (theirs,), {**os.environ, "PYTHONSAFEPATH": "1"})
        except (LaunchError, OSError) as error:
            channel.close()
            msg = f"{self._measure.name}: its judge cannot be started: {error}"
            raise JudgeError(msg) from error
        finally:
            os.close(theirs)
        self._channel = channel
        self._end = weakref.finalize(self, _end, self._process, channel)

    def _fail(self, how: str) -> NoReturn:
        self.close()
        msg = f"{self._measure.name}: its judge {self._measure.judge}: {how}"
        raise JudgeError(msg)


def _end(process: GuardedProcess, channel: Channel) -> None:
    channel.close()
    process.kill()


def check_variants(scenario: Scenario) -> None:
    """Refuse variants that the measurement of a plugin does not take, before anything is made ready for them.

    Raises:
        UsageError: names the variant, with the judge's words.
    """
    if scenario.measure is None:
        return
    judge = JudgeProcess(scenario.measure, Path(os.devnull))
    try:
        for name, parameters in scenario.variants.items():
            try:
                judge.check(parameters, Given())
            except JudgeError as error:
                msg = f"scenario {scenario.name} [variants.{plain(name, 80)}]: {error}"
                raise UsageError(msg) from error
    finally:
        judge.close()
