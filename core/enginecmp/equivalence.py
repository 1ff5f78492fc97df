"""The equivalence gate: does an engine compute the same distribution as the reference?

Two questions, both before anything is timed. On the exact float32 file with exact numerics: is the engine's
implementation of the model right (mean KL < 1e-8 nats)? On the file that will be timed, as it will be timed: is
it still close to the same float32 reference (mean KL < 2e-2 nats, or what the run allows)? The same logits give
perplexity (`enginecmp.quality`). Greedy text decides nothing: two right engines part ways after a few tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from enginecmp.contender import Contender
from enginecmp.deadlines import Deadlines
from enginecmp.errors import CmpError, UsageError
from enginecmp.launch import Launch, LaunchFailure
from enginecmp.plugins import Plugin
from enginecmp.protocol import MAX_MESSAGE_BYTES
from enginecmp.quality import agreement_tokens, log_softmax, negative_log_likelihoods, quality
from enginecmp.types import Equivalence, LoadOptions, ModelInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT_THRESHOLD = 1e-8
EXACT_THRESHOLDS = {"gpt2": 1e-6}
"""Where a family's kernels round on purpose: GGML takes GELU from a float16 table, which alone costs 2e-7 nats."""

GREEDY_TOKENS = 32
"""Longest prompt, and most greedy tokens, of the comparison that is information only."""

REFERENCE_ENGINE = "pytorch_baseline"

EQUIVALENT = "equivalent"
NOT_COMPARABLE = "not comparable"
REFERENCE = "reference"
NOT_CHECKED = "not checked"


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


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What every engine of a run is held against.

    Attributes:
        reference: plugin of the reference engine, run in float32 on `exact`.
        timed: the file being timed.
        exact: its float32 sibling; may be the same file.
        token_ids: the text to score, T >= 2 ids.
        logs: folder for the launches' logs.
        deadlines: of the launches.
        max_kl: largest mean KL, in nats, that passes on the timed file.
        max_nll_increase: largest mean increase of the negative log-likelihood, in nats, that passes on the timed
            file; None promises nothing.
        timed_only: ask only the second question, of settings of one engine; those that differ in nothing but threads
            are asked once, since threads change the order of sums and no more.
    """

    reference: Plugin
    timed: ModelInfo
    exact: ModelInfo
    token_ids: Sequence[int]
    logs: Path
    deadlines: Deadlines
    max_kl: float
    max_nll_increase: float | None = None
    timed_only: bool = False


class Answers(NamedTuple):
    """What one launch said of the text.

    Attributes:
        logits: teacher-forced, shape (T, vocabulary), float32; None where the engine has no `cmp_score`.
        greedy: ids of an ordinary request for the text's beginning; None where it was not asked or failed.
    """

    logits: NDArray[np.float32] | None
    greedy: list[int] | None


def score(
    contender: Contender, model: ModelInfo, token_ids: Sequence[int], log: Path, deadlines: Deadlines
) -> NDArray[np.float32] | None:
    """Launch an engine, return its logits at every position; None where it has no `cmp_score`.

    Raises:
        LaunchFailure: it crashed, hung or refused.
    """
    return _ask(contender, model, token_ids, log, deadlines, 0).logits


def _ask(
    contender: Contender,
    model: ModelInfo,
    token_ids: Sequence[int],
    log: Path,
    deadlines: Deadlines,
    greedy_tokens: int,
) -> Answers:
    import numpy as np

    with Launch(contender.label, contender.plugin, log=log, options=contender.options) as launch:
        launch.load(model, deadlines.load_seconds)
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


def _ask_reference(gate: Gate, options: LoadOptions, folder: Path) -> _Reference:
    import numpy as np

    contender = Contender("reference", gate.reference, options)
    log = gate.logs / "gate-reference.log"
    answers = _ask(contender, gate.exact, gate.token_ids, log, gate.deadlines, _greedy_tokens(gate))
    if answers.logits is None:
        msg = f"{gate.reference.name}: has no cmp_score, so it cannot be the reference; choose another with --reference"
        raise CmpError(msg)
    path = folder / "reference.f32"
    answers.logits.tofile(path)
    logits = np.memmap(path, dtype=np.float32, mode="r", shape=answers.logits.shape)
    return _Reference(logits, negative_log_likelihoods(logits, gate.token_ids), answers.greedy)


def _greedy_tokens(gate: Gate) -> int:
    return min(GREEDY_TOKENS, len(gate.token_ids) // 2)


def run_gate(contenders: Sequence[Contender], gate: Gate, say: Callable[[str], None]) -> list[Equivalence]:
    """Hold every engine against the reference, on the exact file and on the timed one.

    Args:
        contenders: the engines of the run.
        gate: what they are held against.
        say: told what is going on, one line each.

    Returns:
        One or two entries an engine. An engine that fails any is not comparable.

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
        threads=max((contender.options.threads for contender in contenders), default=1),
        numerics="exact",
        context_tokens=context_tokens,
        device=_default_device(gate.reference),
    )
    where = f"in float32 on {gate.exact.quantization}, {len(gate.token_ids)} positions"
    say(f"gate: reference {gate.reference.name} {where}")
    entries: list[Equivalence] = []
    asked: dict[bytes, Equivalence] = {}
    with tempfile.TemporaryDirectory(prefix="gate-", dir=gate.logs) as folder:
        wanted = _ask_reference(gate, exact_options, Path(folder))
        for contender in contenders:
            assert contender.plugin.info is not None
            plain = msgspec.structs.replace(contender.options, context_tokens=context_tokens, max_sequences=1)
            careful = msgspec.structs.replace(plain, numerics="exact")
            if gate.timed_only:
                pass
            elif contender.plugin.origin == gate.reference.origin and careful == exact_options:
                entries.append(_reference_entry(contender.label, gate, wanted))
            elif gate.exact.quantization in contender.plugin.info.quantizations:
                subject = msgspec.structs.replace(contender, options=careful)
                entries.append(_check(subject, gate, wanted, exact=True))
                say(describe(entries[-1], contender.options.device))
            key = msgspec.json.encode((contender.plugin.origin, msgspec.structs.replace(plain, threads=1)))
            if gate.timed_only and key in asked:
                same = asked[key]
                note = same.note or f"scored as {same.engine}, which differs in threads only"
                entries.append(msgspec.structs.replace(same, engine=contender.label, note=note))
                continue
            entries.append(_check(msgspec.structs.replace(contender, options=plain), gate, wanted, exact=False))
            asked[key] = entries[-1]
            say(describe(entries[-1], contender.options.device))
        del wanted  # its memory map, before the file under it
    return entries


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


def _check(contender: Contender, gate: Gate, wanted: _Reference, *, exact: bool) -> Equivalence:
    """Ask one engine one of the two questions."""
    model = gate.exact if exact else gate.timed
    threshold = exact_threshold(model) if exact else gate.max_kl
    entry = Equivalence(
        engine=contender.label,
        mean_kl=None,
        max_kl=None,
        top1=None,
        verdict=NOT_COMPARABLE,
        quantization=model.quantization,
        positions=0,
        threshold=threshold,
    )
    log = gate.logs / f"gate-{contender.label}-{'exact' if exact else 'timed'}.log"
    try:
        answers = _ask(contender, model, gate.token_ids, log, gate.deadlines, _greedy_tokens(gate))
        if answers.logits is None:
            entry.note = "it has no cmp_score, so nothing can be proven"
            return entry
        found = divergence(wanted.logits, answers.logits)
    except CmpError as error:
        entry.note = str(error)
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
