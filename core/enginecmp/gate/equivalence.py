"""The equivalence gate: does an engine compute the same distribution as the reference?

Two questions, both before anything is timed. On the exact float32 file with exact numerics: is the engine's
implementation of the model right (mean KL < 1e-8 nats)? On the file that will be timed, as it will be timed: is
it still close to the same float32 reference (mean KL < 2e-2 nats, or what the run allows)? The same logits give
perplexity (`enginecmp.gate.quality`). Greedy text decides nothing: two right engines part ways after a few tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, cast

import msgspec

from enginecmp.errors import CannotWrite, CmpError, UsageError
from enginecmp.format.records import (
    EQUIVALENT,
    NOT_CHECKED,
    NOT_COMPARABLE,
    NOT_PROVEN,
    REFERENCE,
    TIMED_ONLY,
    Equivalence,
)
from enginecmp.gate.gate import Gate
from enginecmp.gate.kept import Kept
from enginecmp.gate.quality import agreement_tokens, log_softmax, negative_log_likelihoods, quality
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.answers import MAX_MESSAGE_BYTES
from enginecmp.wire.deadlines import Deadlines

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT_THRESHOLD = 1e-8
EXACT_THRESHOLDS = {"gpt2": 1e-6}
"""Where a family's kernels round on purpose: GGML takes GELU from a float16 table, which alone costs 2e-7 nats."""

GREEDY_TOKENS = 32
"""Longest prompt, and most greedy tokens, of the comparison that is information only."""

REFERENCE_ENGINE = "pytorch_baseline"


class Divergence(msgspec.Struct, frozen=True):
    """How far one engine's distributions are from the reference's.

    Attributes:
        mean_kl: mean over positions of KL(reference || engine), nats.
        max_kl: the largest of them, nats.
        top1: share of positions with the same most likely token.
        positions: how many.
    """

    mean_kl: float
    max_kl: float
    top1: float
    positions: int


def exact_threshold(model: ModelInfo) -> float:
    """Return the largest mean KL, in nats, that passes on the float32 file."""
    return EXACT_THRESHOLDS.get(model.architecture, EXACT_THRESHOLD)


def divergence(reference: NDArray[np.floating], engine: NDArray[np.floating]) -> Divergence:
    """Compare teacher-forced logits position by position.

    Args:
        reference: raw logits, shape (T, vocabulary).
        engine: raw logits or log-probabilities, same shape.

    Raises:
        CmpError: the shapes differ, or a value is not finite.
    """
    import numpy as np

    if reference.shape != engine.shape:
        msg = f"expected logits of shape {reference.shape}, got {engine.shape}"
        raise CmpError(msg)
    if np.isnan(engine).any() or not np.isfinite(engine.max(axis=1)).all():
        bad = int(np.argmax(np.isnan(engine).any(axis=1) | ~np.isfinite(engine.max(axis=1))))
        msg = f"expected finite logits, got NaN or infinity at position {bad}"
        raise CmpError(msg)
    kl = np.empty(len(reference))
    for row in range(len(reference)):  # row by row: float64 of a whole prompt would be four times its size
        p = log_softmax(reference[row].astype(np.float64))
        q = log_softmax(engine[row].astype(np.float64))
        possible = p > -np.inf  # 0 log 0 = 0; impossible for the engine alone is infinitely far
        terms = np.exp(p[possible]) * (p[possible] - q[possible])
        # Rounding can leave a difference of nothing a hair below zero.
        kl[row] = np.maximum(0.0, terms.sum())
    top1 = float(np.mean(reference.argmax(axis=1) == engine.argmax(axis=1)))
    return Divergence(float(kl.mean()), float(kl.max()), top1, len(kl))


class Answers(NamedTuple):
    """What one launch said of the text.

    Attributes:
        logits: teacher-forced, shape (T, vocabulary), float32; None where the engine has no `cmp_score`.
        greedy: ids of an ordinary request for the text's beginning; None where it was not asked or failed.
    """

    logits: NDArray[np.float32] | None
    greedy: list[int] | None


def score(
    config: EngineConfig, model: ModelInfo, token_ids: Sequence[int], log: Path, deadlines: Deadlines
) -> NDArray[np.float32] | None:
    """Launch an engine, return its logits at every position; None where it has no `cmp_score`.

    Raises:
        LaunchFailure: it crashed, hung or refused.
    """
    return _ask(config, model, token_ids, log, deadlines, 0, None).logits


def _ask(
    config: EngineConfig,
    model: ModelInfo,
    token_ids: Sequence[int],
    log: Path,
    deadlines: Deadlines,
    greedy_tokens: int,
    loaded: Callable[[str, Mapping[str, Any]], None] | None,
) -> Answers:
    import numpy as np

    with Launch(config.label, config.plugin, log=log, options=config.options) as launch:
        told = launch.load(model, deadlines.load_seconds)
        if loaded is not None:
            loaded(config.label, told)
        answer = launch.call("score", deadlines.score_seconds, token_ids=list(token_ids))
        if answer["shape"] is None:
            return Answers(None, None)
        logits = np.frombuffer(answer["data"], dtype=np.float32).reshape(answer["shape"])
        greedy: list[int] | None = None
        if greedy_tokens:
            try:
                said = launch.request(tuple(token_ids[:greedy_tokens]), greedy_tokens, deadlines)
                greedy = None if said["error"] else said["ids"]
            except LaunchFailure:
                greedy = None  # information only: what matters will fail again where it is measured
    return Answers(logits, greedy)


class _Reference(NamedTuple):
    """The reference's answers; the logits lie in a file, so that memory never holds two engines' at once."""

    logits: NDArray[np.float32]
    nll: NDArray[np.float64]
    greedy: list[int] | None


def _ask_reference(gate: Gate, options: LoadOptions, file: BinaryIO) -> _Reference:
    import numpy as np

    config = EngineConfig("reference", gate.reference, options)
    log = gate.logs / "gate-reference.log"
    answers = _ask(config, gate.exact, gate.token_ids, log, gate.deadlines, _greedy_tokens(gate), None)
    if answers.logits is None:
        msg = f"{gate.reference.name}: has no cmp_score, so it cannot be the reference; choose another with --reference"
        raise CmpError(msg)
    try:
        answers.logits.tofile(file)
        file.flush()
        logits = np.memmap(file, dtype=np.float32, mode="r", shape=answers.logits.shape)
    except OSError as error:
        raise _cannot_keep(gate, error) from error
    return _Reference(logits, negative_log_likelihoods(logits, gate.token_ids), answers.greedy)


def _greedy_tokens(gate: Gate) -> int:
    return min(GREEDY_TOKENS, len(gate.token_ids) // 2)


def run_gate(
    configs: Sequence[EngineConfig], gate: Gate, say: Callable[[str], None], *, fresh: bool = False
) -> list[Equivalence]:
    """Hold every engine against the reference, on the exact file and on the timed one.

    Args:
        configs: the engines of the run.
        gate: what they are held against.
        say: told what is going on, one line each.
        fresh: ask every engine, whatever an earlier gate proved.

    Returns:
        One or two entries an engine. An engine that fails any is not comparable. One that passes on the timed file and
        cannot answer the exact question is comparable on that file, its exactness unproven.

    Raises:
        LaunchFailure: the reference itself failed.
        UsageError: more positions than fit a message.
    """
    most = MAX_MESSAGE_BYTES // (4 * gate.exact.vocabulary) - 1
    if len(gate.token_ids) > most:
        msg = f"--score-positions {len(gate.token_ids)}: expected at most {most} for a vocabulary of this size"
        raise UsageError(msg)
    context_tokens = len(gate.token_ids) + 1
    exact_options = LoadOptions(
        threads=max((config.options.threads for config in configs), default=1),
        numerics="exact",
        context_tokens=context_tokens,
        device=_default_device(gate.reference),
    )
    where = f"in float32 on {gate.exact.quantization}, {len(gate.token_ids)} positions"
    questions = _questions(configs, gate, exact_options)
    kept = Kept(gate, exact_options, fresh=fresh)
    entries: list[Equivalence]
    found = [(question, kept.find(*question.subject)) for question in questions]
    if all(known for _, known in found):
        say(f"gate: reference {gate.reference.name} {where}: proven earlier; --fresh-gate asks again")
        entries = []
        for question, known in found:
            if known is not None:
                entries.append(_told(question, known, entries, gate, say))
        return entries
    say(f"gate: reference {gate.reference.name} {where}")
    entries = []
    asked: dict[bytes, Equivalence] = {}
    with _nameless_file(gate) as file:
        wanted = _ask_reference(gate, exact_options, file)
        for question, known in found:
            config = question.config
            if known is not None:
                entries.append(_told(question, known, entries, gate, say))
                continue
            if question.kind == "reference":
                entries.append(_reference_entry(config.label, gate, wanted))
                kept.keep(*question.subject, entries[-1])
                continue
            plain = msgspec.structs.replace(config.options, threads=1)
            key = msgspec.json.encode((config.plugin.origin, plain))
            if gate.timed_only and key in asked:
                same = asked[key]
                note = same.note or f"scored as {same.engine}, which differs in threads only"
                entries.append(msgspec.structs.replace(same, engine=config.label, note=note))
                continue
            entry = _check(config, gate, wanted, exact=question.kind == "exact")
            kept.keep(*question.subject, entry)
            entries.append(_graded(question, entry, entries, gate))
            asked[key] = entries[-1]
            say(describe(entries[-1], config.options.device))
    return entries


class _Question(NamedTuple):
    """One engine, as it is loaded for one of the questions, and the file that it is asked about."""

    config: EngineConfig
    model: ModelInfo
    kind: Literal["reference", "exact", "timed"]

    @property
    def subject(self) -> tuple[Plugin, LoadOptions, ModelInfo, str]:
        return self.config.plugin, self.config.options, self.model, self.kind


def _questions(configs: Sequence[EngineConfig], gate: Gate, exact_options: LoadOptions) -> list[_Question]:
    """Return what is asked of which engine, in order."""
    questions: list[_Question] = []
    for config in configs:
        assert config.plugin.info is not None
        plain = msgspec.structs.replace(config.options, context_tokens=exact_options.context_tokens, max_sequences=1)
        careful = msgspec.structs.replace(plain, numerics="exact")
        if not gate.timed_only:
            exact = msgspec.structs.replace(config, options=careful)
            if config.plugin.origin == gate.reference.origin and careful == exact_options:
                questions.append(_Question(exact, gate.exact, "reference"))
            elif _can_be_asked(config, gate):
                questions.append(_Question(exact, gate.exact, "exact"))
        questions.append(_Question(msgspec.structs.replace(config, options=plain), gate.timed, "timed"))
    return questions


def _can_be_asked(config: EngineConfig, gate: Gate) -> bool:
    """Say whether an engine can be given the exact file at all: one that runs already serves the timed one."""
    assert config.plugin.info is not None
    if config.probed.running and gate.exact.sha256 != gate.timed.sha256:
        return False
    return gate.exact.quantization in config.plugin.info.quantizations


def _graded(question: _Question, entry: Equivalence, before: Sequence[Equivalence], gate: Gate) -> Equivalence:
    """Return the entry of a timed file as the answer to the exact question, which came before it, lets it stand."""
    if gate.timed_only or question.kind != "timed" or entry.verdict != EQUIVALENT:
        return entry
    exact = [other for other in before if other.engine == entry.engine]
    if exact and exact[-1].verdict != NOT_PROVEN:
        return entry
    if exact:
        why = f"the {gate.exact.quantization} file has no answer"
    elif question.config.probed.running:
        why = f"it runs already, so it cannot be asked on the {gate.exact.quantization} file"
    else:
        why = f"it does not load {gate.exact.quantization}"
    return msgspec.structs.replace(entry, verdict=TIMED_ONLY, note=f"exactness unproven: {why}")


def _told(
    question: _Question, known: Equivalence, before: Sequence[Equivalence], gate: Gate, say: Callable[[str], None]
) -> Equivalence:
    """Return what an earlier gate found, under the label of today."""
    entry = _graded(question, msgspec.structs.replace(known, engine=question.config.label), before, gate)
    if question.kind != "reference":
        say(describe(entry, question.config.options.device))
    return entry


def _nameless_file(gate: Gate) -> BinaryIO:
    """Return a file beside the logs that is gone whenever this process is, kill -9 included."""
    try:
        return cast("BinaryIO", tempfile.TemporaryFile(dir=gate.logs))
    except OSError as error:
        raise _cannot_keep(gate, error) from error


def _cannot_keep(gate: Gate, error: OSError) -> CannotWrite:
    return CannotWrite(f"{gate.logs}: the reference's logits cannot be kept: {error.strerror or error}")


def _reference_entry(label: str, gate: Gate, wanted: _Reference) -> Equivalence:
    found = quality(wanted.nll, wanted.nll)
    return Equivalence(
        engine=label,
        mean_kl=0.0,
        max_kl=0.0,
        top1=1.0,
        verdict=REFERENCE,
        quantization=gate.exact.quantization,
        positions=len(gate.token_ids),
        perplexity=found.perplexity,
        reference_perplexity=found.reference_perplexity,
        nll_difference=0.0,
        nll_difference_low=found.low,
        nll_difference_high=found.high,
        greedy_agreement_tokens=agreement_tokens(wanted.greedy, wanted.greedy),
    )


def _check(config: EngineConfig, gate: Gate, wanted: _Reference, *, exact: bool) -> Equivalence:
    """Ask one engine one of the two questions."""
    model = gate.exact if exact else gate.timed
    threshold = exact_threshold(model) if exact else gate.max_kl
    entry = Equivalence(
        engine=config.label,
        mean_kl=None,
        max_kl=None,
        top1=None,
        verdict=NOT_COMPARABLE,
        quantization=model.quantization,
        positions=0,
        threshold=threshold,
    )
    log = gate.logs / f"gate-{config.label}-{'exact' if exact else 'timed'}.log"
    try:
        answers = _ask(config, model, gate.token_ids, log, gate.deadlines, _greedy_tokens(gate), gate.loaded)
        if answers.logits is None:
            entry.note = "it has no cmp_score, so nothing can be proven"
            return entry
        found = divergence(wanted.logits, answers.logits)
    except CannotWrite:
        raise
    except CmpError as error:
        if isinstance(error, LaunchFailure) and error.kind == "UnknownOption" and not gate.timed_only:
            # Every launch would say the same: it is a word on the command line that is wrong.
            raise UsageError(str(error).partition("; log:")[0]) from error
        entry.note = str(error)
        if exact and isinstance(error, LaunchFailure):
            entry.verdict = NOT_PROVEN  # an answer that does not come disproves nothing
        return entry
    cost = quality(wanted.nll, negative_log_likelihoods(answers.logits, gate.token_ids))
    entry.mean_kl, entry.max_kl, entry.top1 = found.mean_kl, found.max_kl, found.top1
    entry.positions = found.positions
    entry.perplexity, entry.reference_perplexity = cost.perplexity, cost.reference_perplexity
    entry.nll_difference = cost.nll_difference
    entry.nll_difference_low, entry.nll_difference_high = cost.low, cost.high
    entry.greedy_agreement_tokens = agreement_tokens(wanted.greedy, answers.greedy)
    limit = None if exact else gate.max_nll_increase
    if not found.mean_kl < threshold:
        entry.note = f"mean KL {found.mean_kl:.2g} nats is not below {threshold:g}"
        if exact and config.probed.running and found.mean_kl < gate.max_kl:
            entry.verdict = NOT_PROVEN
            entry.note += "; it runs already, so exact numerics cannot be asked for"
    elif limit is not None and not cost.nll_difference <= limit:
        entry.note = (
            f"each token costs {cost.nll_difference:+.2g} nats more than the reference's, {limit:g} are allowed"
        )
    else:
        entry.verdict = EQUIVALENT
    return entry


def describe(entry: Equivalence, device: str = "cpu") -> str:
    """Return one line about an entry."""
    where = f"gate: {entry.engine} ({device}) on {entry.quantization}"
    if entry.mean_kl is None:
        return f"{where}: {entry.verdict}: {entry.note}"
    bound = f" (limit {entry.threshold:g})" if entry.threshold is not None else ""
    numbers = f"mean KL {entry.mean_kl:.1e} nats{bound}, top-1 {entry.top1:.2f}, perplexity {entry.perplexity:.4g}"
    why = f": {entry.note}" if entry.note else ""
    if isinstance(entry.proven_utc, str):
        why = f" (proven on {entry.proven_utc[:10]}){why}"
    return f"{where}: {numbers} (reference {entry.reference_perplexity:.4g}): {entry.verdict}{why}"


def not_checked(labels: Sequence[str]) -> list[Equivalence]:
    """Return the entries of a run that was told to skip the gate."""
    return [
        Equivalence(engine=label, mean_kl=None, max_kl=None, top1=None, verdict=NOT_CHECKED, note="--no-gate")
        for label in labels
    ]


def _default_device(plugin: Plugin) -> str:
    assert plugin.info is not None
    return "cpu" if "cpu" in plugin.info.devices else plugin.info.devices[0]
