"""The equivalence gate: does an engine compute the same distribution as the reference?

Two questions, both before anything is timed. On the exact float32 file with exact numerics: is the engine's
implementation of the model right (mean KL < 1e-8 nats)? On the file that will be timed, as it will be timed: is
it still close to the same float32 reference (mean KL < 2e-2 nats)? Greedy text is never compared: two right
engines part ways after a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from enginecmp.errors import CmpError
from enginecmp.launch import Contender, Deadlines, Launch, LaunchFailure
from enginecmp.plugins import Plugin
from enginecmp.types import Equivalence, LoadOptions, ModelInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT_THRESHOLD = 1e-8
EXACT_THRESHOLDS = {"gpt2": 1e-6}
"""Where a family's kernels round on purpose: GGML takes GELU from a float16 table, which alone costs 2e-7 nats."""

TIMED_THRESHOLD = 2e-2
POSITIONS = 64
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


def divergence(reference: NDArray[np.float32], engine: NDArray[np.float32]) -> Divergence:
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
        p = _log_softmax(reference[row].astype(np.float64))
        q = _log_softmax(engine[row].astype(np.float64))
        possible = p > -np.inf  # 0 log 0 = 0; impossible for the engine alone is infinitely far
        terms = np.exp(p[possible]) * (p[possible] - q[possible])
        # Rounding can leave a difference of nothing a hair below zero.
        kl[row] = np.maximum(0.0, terms.sum())
    top1 = float(np.mean(reference.argmax(axis=1) == engine.argmax(axis=1)))
    return Divergence(float(kl.mean()), float(kl.max()), top1, len(kl))


def _log_softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    shifted = row - row.max()
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted))))


def score(
    contender: Contender, model: ModelInfo, token_ids: Sequence[int], log: Path, deadlines: Deadlines
) -> NDArray[np.float32] | None:
    """Launch an engine, return its logits at every position; None where it has no `cmp_score`.

    Raises:
        LaunchFailure: it crashed, hung or refused.
    """
    import numpy as np

    with Launch(contender.label, contender.plugin, log=log, options=contender.options) as launch:
        launch.load(model, deadlines.load_seconds)
        answer = launch.call("score", deadlines.score_seconds, token_ids=list(token_ids))
    if answer["shape"] is None:
        return None
    return np.frombuffer(answer["data"], dtype=np.float32).reshape(answer["shape"])


def run_gate(
    contenders: Sequence[Contender],
    reference: Plugin,
    timed: ModelInfo,
    exact: ModelInfo,
    token_ids: Sequence[int],
    logs: Path,
    deadlines: Deadlines,
    say: Callable[[str], None],
) -> list[Equivalence]:
    """Hold every engine against the reference, on the exact file and on the timed one.

    Args:
        contenders: the engines of the run.
        reference: plugin of the reference engine, run in float32 on `exact`.
        timed: the file being timed.
        exact: its float32 sibling; may be the same file.
        token_ids: at least `POSITIONS` ids.
        logs: folder for the launches' logs.
        deadlines: of the launches.
        say: told what is going on, one line each.

    Returns:
        One or two entries an engine. An engine that fails any is not comparable.

    Raises:
        LaunchFailure: the reference itself failed.
    """
    threads = max((contender.options.threads for contender in contenders), default=1)
    exact_options = LoadOptions(
        threads=threads, numerics="exact", context_tokens=len(token_ids) + 1, device=_default_device(reference)
    )
    say(f"gate: reference {reference.name} in float32 on {exact.quantization}, {len(token_ids)} positions")
    wanted = score(
        Contender("reference", reference, exact_options), exact, token_ids, logs / "gate-reference.log", deadlines
    )
    if wanted is None:
        msg = f"{reference.name}: has no cmp_score, so it cannot be the reference; choose another with --reference"
        raise CmpError(msg)
    entries: list[Equivalence] = []
    for contender in contenders:
        assert contender.plugin.info is not None
        device = contender.options.device
        changes = {"context_tokens": len(token_ids) + 1, "max_sequences": 1}
        plain = msgspec.structs.replace(contender.options, **changes)
        careful = msgspec.structs.replace(plain, numerics="exact")
        if contender.plugin.origin == reference.origin and careful == exact_options:
            entries.append(
                Equivalence(
                    engine=contender.label,
                    mean_kl=0.0,
                    max_kl=0.0,
                    top1=1.0,
                    verdict=REFERENCE,
                    quantization=exact.quantization,
                    positions=len(token_ids),
                )
            )
        elif exact.quantization in contender.plugin.info.quantizations:
            subject = msgspec.structs.replace(contender, options=careful)
            log = logs / f"gate-{contender.label}-exact.log"
            entries.append(_check(subject, exact, wanted, token_ids, exact_threshold(exact), log, deadlines))
            say(describe(entries[-1], device))
        subject = msgspec.structs.replace(contender, options=plain)
        log = logs / f"gate-{contender.label}-timed.log"
        entries.append(_check(subject, timed, wanted, token_ids, TIMED_THRESHOLD, log, deadlines))
        say(describe(entries[-1], device))
    return entries


def _check(
    contender: Contender,
    model: ModelInfo,
    wanted: NDArray[np.float32],
    token_ids: Sequence[int],
    threshold: float,
    log: Path,
    deadlines: Deadlines,
) -> Equivalence:
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
    try:
        logits = score(contender, model, token_ids, log, deadlines)
        if logits is None:
            entry.note = "it has no cmp_score, so nothing can be proven"
            return entry
        found = divergence(wanted, logits)
    except LaunchFailure as failure:
        entry.note = str(failure)
        return entry
    except CmpError as error:
        entry.note = str(error)
        return entry
    entry.mean_kl, entry.max_kl, entry.top1 = found.mean_kl, found.max_kl, found.top1
    entry.positions = found.positions
    if found.mean_kl < threshold:
        entry.verdict = EQUIVALENT
    return entry


def describe(entry: Equivalence, device: str = "cpu") -> str:
    """Return one line about an entry."""
    where = f"gate: {entry.engine} ({device}) on {entry.quantization}"
    if entry.mean_kl is None:
        return f"{where}: {entry.verdict}: {entry.note}"
    bound = f" (limit {entry.threshold:g})" if entry.threshold is not None else ""
    return f"{where}: mean KL {entry.mean_kl:.1e} nats{bound}, top-1 {entry.top1:.2f}: {entry.verdict}"


def not_checked(labels: Sequence[str]) -> list[Equivalence]:
    """Return the entries of a run that was told to skip the gate."""
    return [
        Equivalence(engine=label, mean_kl=None, max_kl=None, top1=None, verdict=NOT_CHECKED, note="--no-gate")
        for label in labels
    ]


def _default_device(plugin: Plugin) -> str:
    assert plugin.info is not None
    return "cpu" if "cpu" in plugin.info.devices else plugin.info.devices[0]
