"""One race of `cmp tune`: a run whose contenders are settings of one engine, and which ends as soon as it may."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from enginecmp.cli.console import say
from enginecmp.contender import Contender
from enginecmp.equivalence import NOT_COMPARABLE
from enginecmp.errors import CmpError
from enginecmp.estimate import duration
from enginecmp.manifest import new_run_id
from enginecmp.results import finished_launches, read_manifest
from enginecmp.run import execute
from enginecmp.run_request import RunRequest
from enginecmp.tune.candidates import Candidate, with_changes
from enginecmp_analysis.data.load import load_runs
from enginecmp_analysis.metrics import METRICS
from enginecmp_analysis.report import Options, analyse
from enginecmp_analysis.statistics.race import MIN_BLOCKS, Race, Standing, scores_of


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """When a race is over.

    Attributes:
        metric: what is raced for.
        alpha: largest probability that the best candidate is dropped.
        margin: candidates that differ by less than this share are equivalent.
        seconds: time for the launches; a block that would not end within it is not begun.
        most_seconds: the same while there are too few blocks to tell anything.
    """

    metric: str
    alpha: float
    margin: float
    seconds: float
    most_seconds: float


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


def race(base: RunRequest, candidates: Sequence[Candidate], default: str, folder: Path, rules: Rules) -> RaceResult:
    """Run candidates against each other, block by block, and drop whoever is shown to be worse.

    Args:
        base: of the engine as it comes: one contender, whose options the candidates change.
        candidates: the first one is to be beaten and wins ties; the simpler ones come before the others.
        default: label that standings are shown beside.
        folder: of the race's runs.
        rules: when it is over.

    Raises:
        KeyboardInterrupt: the run is kept, nothing is decided.
        CmpError: the first candidate fails, or does not compute what the reference computes.
    """
    (engine,) = base.contenders
    by_label = {candidate.label: candidate for candidate in candidates}
    contenders = [_contender(engine, candidate) for candidate in candidates]
    request = msgspec.structs.replace(base, contenders=contenders, baseline=default, gate_timed_only=True)
    state = Race(list(by_label), alpha=rules.alpha, margin=rules.margin)
    began = time.monotonic()

    def retire(run: Path, block: int) -> list[str]:
        nonlocal began
        if block == 0:
            began = time.monotonic()
            _exclude_other_distributions(state, run)
        else:
            _exclude_failures(state, run)
            dropped = set(state.dropped)
            scores = _scores(run, rules.metric)
            state.look(scores)
            if block == MIN_BLOCKS and not any(scores.values()):
                say("warning: every launch so far was disturbed, so nothing can be told; is the machine idle?")
            for label in state.dropped.keys() - dropped:
                say(f"dropped: {label}: {state.dropped[label]}")
            limit = rules.seconds if block >= MIN_BLOCKS else rules.most_seconds
            if time.monotonic() - began + _block_seconds(run, state.alive) > limit:
                state.stop(f"its time of {duration(limit)} is over")
        return list(by_label) if state.ended else list(state.dropped)

    request.retire = retire
    run = folder / new_run_id(request.scenario.name)
    execute(request, run, say)
    seconds = time.monotonic() - began
    _exclude_failures(state, run)
    scores = _scores(run, rules.metric)
    if not state.ended:
        state.look(scores)
        state.stop(f"all {request.scenario.blocks} blocks are run")
    winner = state.winner(scores)
    launches = Counter(record.engine for record in finished_launches(run))
    blocks = max(launches.values(), default=0)
    decided = len(state.alive) <= 1 or max(map(len, scores.values()), default=0) >= MIN_BLOCKS
    return RaceResult(
        folder=run,
        candidates=by_label,
        winner=winner,
        ended=state.ended,
        outcomes={label: _outcome(label, winner if decided else "", state) for label in by_label},
        standings={s.label: s for s in Race([default, *(x for x in by_label if x != default)]).standings(scores)},
        launches={label: launches[label] for label in by_label},
        blocks=blocks,
        decided=decided,
        seconds=seconds,
    )


def _contender(engine: Contender, candidate: Candidate) -> Contender:
    return msgspec.structs.replace(
        engine,
        label=candidate.label,
        options=with_changes(engine.options, candidate.changes),
        tuned="tuned" if candidate.changes else "default",
    )


def _scores(run: Path, metric: str) -> Mapping[str, Mapping[int, float]]:
    (group,) = analyse(load_runs([str(run)]), Options(metrics=(metric,))).groups
    return scores_of(group.means, metric)


def _exclude_other_distributions(state: Race, run: Path) -> None:
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


def _exclude_failures(state: Race, run: Path) -> None:
    """Take out whoever failed a launch: a setting that fails once in a few launches is none to run with."""
    for record in finished_launches(run):
        if record.status != "ok":
            if record.engine == state.labels[0]:
                msg = f"{record.error}; mend that first, there is nothing to tune against"
                raise CmpError(msg)
            state.exclude(record.engine, f"fails: {(record.error or '').partition('; log:')[0]}")


def _block_seconds(run: Path, alive: Sequence[str]) -> float:
    """Return how long another block will take, from the launches so far."""
    seconds: dict[str, list[float]] = {}
    for record in finished_launches(run):
        seconds.setdefault(record.engine, []).append(record.seconds)
    return sum(sum(seconds[label]) / len(seconds[label]) for label in alive if label in seconds)


def _outcome(label: str, winner: str, state: Race) -> str:
    if label == winner:
        return "best"
    return state.dropped.get(label, "not shown to be better" if winner else "nothing can be told")


def in_terms_of(metric: str, value: float) -> float:
    """Return a ratio of scores, where above 1 is better, as a ratio of the metric as it is named."""
    return value if METRICS[metric].higher_is_better else 1 / value
