"""What follows from a gate before anything is timed: how to prove what is unproven, and who may be the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enginecmp.format.records import NOT_COMPARABLE, TIMED_ONLY, Equivalence
from enginecmp.run.request import RunRequest


def after_gate(request: RunRequest, entries: Sequence[Equivalence], say: Callable[[str], None]) -> str:
    """Tell what would prove each engine whose exactness is unproven, and return the baseline.

    An engine that is not comparable, or whose exactness is unproven, is a baseline only where the user named it, or
    where no other engine is timed. A better one takes its place, told.

    Args:
        request: its baseline is changed too.
        entries: of the gate.
        say: told one line at a time.
    """
    verdicts = {(entry.engine, entry.verdict) for entry in entries}
    for config in request.everybody:
        if (config.label, TIMED_ONLY) not in verdicts:
            continue
        notes = dict.fromkeys(e.note for e in entries if e.engine == config.label and e.verdict == TIMED_ONLY)
        prove = config.probed.prove.replace("{label}", config.label)
        how = f"; to have it proven, let cmp start it: {prove}" if prove else ""
        say(f"{config.label}: {TIMED_ONLY}, {'; '.join(notes)}{how}")

    def rank(label: str) -> int:
        return 2 if (label, NOT_COMPARABLE) in verdicts else int((label, TIMED_ONLY) in verdicts)

    best = min(request.labels, key=lambda label: (rank(label), label != request.baseline))
    if not request.baseline_chosen and rank(best) < rank(request.baseline):
        why = "is not comparable" if rank(request.baseline) == 2 else "is comparable on the timed file only"
        say(f"baseline: {best}, since {request.baseline} {why}; --baseline names another")
        request.baseline = best
    return request.baseline
