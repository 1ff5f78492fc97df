"""One race of `cmp tune`: a run whose engine configs are candidates, and which ends as soon as it may.

What decides is handed in (`Judge`): the statistics belong to the analysis.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from enginecmp.errors import CmpError
from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.format.records import NOT_COMPARABLE
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.run.estimate import duration
from enginecmp.run.execute import execute
from enginecmp.run.manifest import new_run_id
from enginecmp.run.request import RunRequest
from enginecmp.tune.candidates import DEFAULT, Candidate, with_changes

Scores = Mapping[str, Mapping[int, float]]
"""Candidate → block → its score there, larger is better."""


class Standing(Protocol):
    """One candidate beside the default: ratio of their scores, its 95 % limits, and how many blocks hold both."""

    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def n(self) -> int: ...  # noqa: D102
    @property
    def ratio(self) -> float: ...  # noqa: D102
    @property
    def ci_low(self) -> float: ...  # noqa: D102
    @property
    def ci_high(self) -> float: ...  # noqa: D102
    @property
    def better_p(self) -> float: ...  # noqa: D102


class State(Protocol):
    """Which candidates still run, which were dropped and why, and why the race is over."""

    labels: Sequence[str]
    alive: list[str]
    dropped: dict[str, str]
    ended: str

    def exclude(self, label: str, why: str) -> None:
        """Take a candidate out for a reason that is not its score."""

    def look(self, scores: Scores) -> None:
        """Judge what was measured so far."""

    def stop(self, why: str) -> None:
        """End the race for a reason from outside."""

    def winner(self, scores: Scores) -> str:
        """Return the label that has won."""


class Judge(NamedTuple):
    """What decides a race.

    Attributes:
        state: of this race, nothing looked at yet.
        scores: reads those of a run.
        beside: returns every label's standing beside the first of them.
        min_blocks: fewer tell nothing.
    """

    state: State
    scores: Callable[[Path], Scores]
    beside: Callable[[Sequence[str], Scores], Sequence[Standing]]
    min_blocks: int


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """When a race is over.

    Attributes:
        metric: what is raced for.
        higher_is_better: which of its values are good.
        alpha: largest probability that the best candidate is dropped.
        margin: candidates that differ by less than this share are equivalent.
        seconds: time for the launches; a block that would not end within it is not begun.
        most_seconds: the same while there are too few blocks to tell anything.
    """

    metric: str
    higher_is_better: bool
    alpha: float
    margin: float
    seconds: float
    most_seconds: float

    def in_terms_of_metric(self, value: float) -> float:
        """Return a ratio of scores, where above 1 is better, as a ratio of the metric as it is named."""
        return value if self.higher_is_better else 1 / value


class RaceResult(msgspec.Struct, kw_only=True):
    """How a race went.

    Attributes:
        folder: of the run.
        candidates: label → candidate, in the order of the race.
        winner: label.
        ended: why it was over.
        outcomes: label → what became of it, in words.
        standings: label → its score beside the default's.
        launches: label → launches that it had.
        blocks: that were run.
        decided: enough blocks were run to tell anything, or nobody was left to race.
        seconds: from the first launch to the end.
    """

    folder: Path
    candidates: dict[str, Candidate]
    winner: str
    ended: str
    outcomes: dict[str, str]
    standings: dict[str, Standing]
    launches: dict[str, int]
    blocks: int
    decided: bool
    seconds: float

    def advantages(self) -> dict[str, float]:
        """Return label → log ratio of those that looked better than the default (p < .05, uncorrected).

        Who fails or computes something else is not among them.
        """
        ran = [s for label, s in self.standings.items() if not self.outcomes[label].startswith(("fail", "not comp"))]
        return {s.label: s.ratio for s in ran if s.better_p < 0.05}


def race(
    base: RunRequest,
    candidates: Sequence[Candidate],
    folder: Path,
    rules: Rules,
    judge: Judge,
    say: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
) -> RaceResult:
    """Run candidates against each other, block by block, and drop whoever is shown to be worse.

    Args:
        base: of the engine as it comes, whose options the candidates change.
        candidates: the first one is to be beaten and wins ties; the simpler ones come before the others.
        folder: of the race's runs.
        rules: when it is over.
        judge: what decides; its state holds the labels of the candidates.
        say: told one line at a time.
        now: seconds on a clock that does not go back.

    Raises:
        KeyboardInterrupt: the run is kept, nothing is decided.
        CmpError: the first candidate fails, or does not compute what the reference computes.
    """
    (engine,) = base.configs
    by_label = {candidate.label: candidate for candidate in candidates}
    configs = [_config(engine, candidate) for candidate in candidates]
    request = msgspec.structs.replace(
        base, configs=configs, baseline=DEFAULT, gate_timed_only=True, most_seconds=rules.most_seconds
    )
    state = judge.state
    began = now()

    def retire(run: Path, block: int) -> list[str]:
        nonlocal began
        if block == 0:
            began = now()
            _exclude_other_distributions(state, run)
        else:
            _exclude_failures(state, run)
            dropped = set(state.dropped)
            scores = judge.scores(run)
            state.look(scores)
            if block == judge.min_blocks and not any(scores.values()):
                say("warning: every launch so far was disturbed, so nothing can be told; is the machine idle?")
            for label in state.dropped.keys() - dropped:
                say(f"dropped: {label}: {state.dropped[label]}")
            limit = rules.seconds if block >= judge.min_blocks else rules.most_seconds
            if now() - began + _block_seconds(run, state.alive) > limit:
                state.stop(f"its time of {duration(limit)} is over")
        return list(by_label) if state.ended else list(state.dropped)

    request.retire = retire
    run = folder / new_run_id(request.scenario.name)
    execute(request, run, say)
    seconds = now() - began
    _exclude_failures(state, run)
    scores = judge.scores(run)
    if not state.ended:
        state.look(scores)
        state.stop(f"all {request.scenario.blocks} blocks are run")
    winner = state.winner(scores)
    launches = Counter(record.engine for record in finished_launches(run))
    blocks = max(launches.values(), default=0)
    decided = len(state.alive) <= 1 or max(map(len, scores.values()), default=0) >= judge.min_blocks
    return RaceResult(
        folder=run,
        candidates=by_label,
        winner=winner,
        ended=state.ended,
        outcomes={label: _outcome(label, winner if decided else "", state) for label in by_label},
        standings={s.label: s for s in judge.beside([DEFAULT, *(x for x in by_label if x != DEFAULT)], scores)},
        launches={label: launches[label] for label in by_label},
        blocks=blocks,
        decided=decided,
        seconds=seconds,
    )


def _config(engine: EngineConfig, candidate: Candidate) -> EngineConfig:
    return msgspec.structs.replace(
        engine,
        label=candidate.label,
        options=with_changes(engine.options, candidate.changes),
        tuned="tuned" if candidate.changes else "default",
    )


def _exclude_other_distributions(state: State, run: Path) -> None:
    """Take out whoever the gate found to compute something else."""
    for entry in read_manifest(run).equivalence:
        if entry.verdict == NOT_COMPARABLE:
            if entry.engine == state.labels[0]:
                msg = (
                    f"{entry.engine}: does not compute what the reference computes ({entry.note}), so there is "
                    "nothing to tune against; allow more with --max-kl, or skip the gate with --no-gate"
                )
                raise CmpError(msg)
            state.exclude(entry.engine, f"not comparable: {entry.note}")


def _exclude_failures(state: State, run: Path) -> None:
    """Take out whoever failed a launch: a setting that fails once in a few launches is none to run with."""
    for record in finished_launches(run):
        if record.status != "ok":
            if record.engine == state.labels[0]:
                msg = f"{record.error}; fix that first, there is nothing to tune against"
                raise CmpError(msg)
            state.exclude(record.engine, f"fails: {(record.error or '').partition('; log:')[0]}")


def _block_seconds(run: Path, alive: Sequence[str]) -> float:
    """Return how long another block will take, from the launches so far."""
    seconds: dict[str, list[float]] = {}
    for record in finished_launches(run):
        seconds.setdefault(record.engine, []).append(record.seconds)
    return sum(sum(seconds[label]) / len(seconds[label]) for label in alive if label in seconds)


def _outcome(label: str, winner: str, state: State) -> str:
    if label == winner:
        return "best"
    return state.dropped.get(label, "not shown to be better" if winner else "nothing can be told")
