"""Whether a run has measured anything, and what to do where it has not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from enginecmp.format.files import SAMPLES
from enginecmp.format.flags import DISTURBED, Flag
from enginecmp.format.readers import finished_launches, whole_lines
from enginecmp.format.records import Sample

_IDLE = "stop what `top` shows, or add --wait-idle to wait for an idle machine"
_NEXT: dict[str, str] = {
    **dict.fromkeys(DISTURBED, _IDLE),
    Flag.SHORT_OUTPUT: "see the engine's log for why it ends early",
    Flag.LONG_OUTPUT: "see the engine's log for why it does not stop",
    Flag.LATE_DISPATCH: "leave the load generator a core with a smaller --threads",
    Flag.REPEATED_PROMPT: "switch the engine's prompt cache off",
    Flag.TORN_LAUNCH: "start a new run",
}


def without_result(folder: Path, labels: list[str]) -> dict[str, str]:
    """Return label → why nothing that counts was measured of it, the next step included.

    A sample counts where it is of phase "measure", has status "ok", bears no flag and took time. Engines without any
    launch that is over are not judged.

    Args:
        folder: of the run.
        labels: engines that are timed.
    """
    counting: Counter[str] = Counter()
    measured: Counter[str] = Counter()
    flags: dict[str, Counter[str]] = {}
    errors: dict[str, Counter[str]] = {}
    for sample in whole_lines(folder / SAMPLES, Sample):
        if sample.status != "ok":
            errors.setdefault(sample.engine, Counter())[sample.error or sample.status] += 1
        elif sample.phase == "measure":
            measured[sample.engine] += 1
            flags.setdefault(sample.engine, Counter()).update(sample.flags)
            counting[sample.engine] += not sample.flags and sample.end_ns > sample.start_ns
    over = finished_launches(folder)
    launched = Counter(record.engine for record in over)
    # What ended a launch is its reason; its requests under way may tell no more than that it ended.
    ended = {label: Counter(r.error for r in over if r.engine == label and r.error) for label in labels}
    return {
        label: _why(
            launched[label], measured[label], flags.get(label, Counter()), ended[label] or errors.get(label, Counter())
        )
        for label in labels
        if launched[label] and not counting[label]
    }


def _why(launches: int, measured: int, flags: Counter[str], errors: Counter[str]) -> str:
    if measured and flags:
        (flag, count), *_ = flags.most_common(1)
        several = f"all {measured} requests" if measured > 1 else "the only request"
        share = "" if count == measured else f", {count} of them {flag}"
        what = f"{several} flagged {flag if count == measured else ' and '.join(sorted(flags))}{share}"
        return f"{what}; {_NEXT.get(flag, '`cmp doctor` says what disturbs the machine')}"
    if measured:
        return f"all {measured} requests took 0 ns; the engine's clock stands still, so there is nothing to compare"
    (error, _), *_ = errors.most_common(1) or [("no request was answered", 0)]
    return f"{_count(launches)} failed: {error}"


def _count(launches: int) -> str:
    return {1: "the only launch", 2: "both launches"}.get(launches, f"all {launches} launches")
