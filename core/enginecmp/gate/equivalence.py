"""The equivalence gate: does an engine compute the same distribution as the reference?

Two questions, both before anything is timed. On the exact float32 file with exact numerics: is the engine's
implementation of the model right (mean KL < 1e-8 nats)? On the file that will be timed, as it will be timed: is
it still close to the same float32 reference (mean KL < 2e-2 nats, or what the run allows)? The same logits give
perplexity (`enginecmp.gate.quality`). A diffusion model is asked for what stands at the masked positions of the text.
Greedy text decides nothing: two right engines part ways after a few tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import msgspec

from enginecmp.errors import CannotWrite, CmpError, UsageError
from enginecmp.format.records import (
    EQUIVALENT,
    NOT_CHECKED,
    NOT_COMPARABLE,
    NOT_PROVEN,
    REFERENCE,
    Equivalence,
)
from enginecmp.gate.answers import ask
from enginecmp.gate.divergence import divergence, exact_threshold
from enginecmp.gate.gate import Gate
from enginecmp.gate.kept import Kept
from enginecmp.gate.quality import agreement_tokens, negative_log_likelihoods, quality
from enginecmp.gate.questions import Question, graded, questions
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import LaunchFailure
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions
from enginecmp.wire.answers import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GREEDY_TOKENS = 32
"""Longest prompt, and most greedy tokens, of the comparison that is information only."""

REFERENCE_ENGINE = "pytorch_baseline"


class _Reference(NamedTuple):
    """The reference's answers; the logits lie in a file, so that memory never holds two engines' at once."""

    logits: NDArray[np.float32]
    nll: NDArray[np.float64]
    greedy: list[int] | None


def _ask_reference(gate: Gate, options: LoadOptions, file: BinaryIO) -> _Reference:
    import numpy as np

    config = EngineConfig("reference", gate.reference, options)
    log = gate.logs / "gate-reference.log"
    answers = ask(config, gate.exact, gate.asked_ids, log, gate.deadlines, _greedy_tokens(gate), None)
    if answers.logits is None:
        msg = f"{gate.reference.name}: has no cmp_score, so it cannot be the reference; choose another with --reference"
        raise CmpError(msg)
    rows = gate.compared(answers.logits)
    try:
        rows.tofile(file)
        file.flush()
        logits = np.memmap(file, dtype=np.float32, mode="r", shape=rows.shape)
    except OSError as error:
        raise _cannot_keep(gate, error) from error
    return _Reference(logits, negative_log_likelihoods(logits, gate.told_ids), answers.greedy)


def _greedy_tokens(gate: Gate) -> int:
    if gate.mask_id is not None:
        return 0
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
    masked = "masked " if gate.mask_id is not None else ""
    where = f"in float32 on {gate.exact.quantization}, {gate.positions} {masked}positions"
    kept = Kept(gate, exact_options, fresh=fresh)
    entries: list[Equivalence]
    found = [(question, kept.find(*question.subject)) for question in questions(configs, gate, exact_options)]
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
            entries.append(graded(question, entry, entries, gate))
            asked[key] = entries[-1]
            say(describe(entries[-1], config.options.device))
    return entries


def _told(
    question: Question, known: Equivalence, before: Sequence[Equivalence], gate: Gate, say: Callable[[str], None]
) -> Equivalence:
    """Return what an earlier gate found, under the label of today."""
    entry = graded(question, msgspec.structs.replace(known, engine=question.config.label), before, gate)
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
        positions=gate.positions,
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
        answers = ask(config, model, gate.asked_ids, log, gate.deadlines, _greedy_tokens(gate), gate.loaded)
        if answers.logits is None:
            entry.note = "it has no cmp_score, so nothing can be proven"
            return entry
        logits = gate.compared(answers.logits)
        found = divergence(wanted.logits, logits)
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
    cost = quality(wanted.nll, negative_log_likelihoods(logits, gate.told_ids))
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
