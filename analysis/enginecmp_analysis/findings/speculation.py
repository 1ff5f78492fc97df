"""What guessing ahead changes: the gate's word on greedy ids, beside how many tokens a pass gives."""

from __future__ import annotations

from collections.abc import Iterator

from enginecmp.format.records import NOT_CHECKED
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.student import mean_interval
from enginecmp_analysis.statistics.variance import replicates


def guesses(group: GroupResult) -> Iterator[Finding]:
    """Yield for every engine that guesses ahead whether its greedy ids are those without guesses, and what they give.

    `tokens_per_step` is one mean a launch, over all cells; a t over launches, or over runs where several are pooled.
    """
    checked = {
        entry.engine: entry
        for run in group.runs
        for entry in (run.manifest.speculation if isinstance(run.manifest.speculation, list) else ())
    }
    for engine, entry in checked.items():
        per_block: dict[tuple[int, int], list[float]] = {}
        for (label, _, metric), launches in group.means.items():
            if label == engine and metric == "tokens_per_step":
                for block, mean in zip(launches.blocks, launches.means.tolist(), strict=True):
                    per_block.setdefault(block, []).append(mean)
        found = [sum(some) / len(some) for some in per_block.values()]
        mean, low, high = (
            mean_interval(replicates(found, [run for run, _ in per_block])) if found else (float("nan"),) * 3
        )
        same = f"{entry.identical} of {entry.requests} requests of {entry.output_tokens} greedy ids are the same"
        text = f"guessing ahead: ids {entry.verdict}" + (f" ({same})" if entry.verdict != NOT_CHECKED else "")
        if found:
            text += f"; {mean:.2f} tokens a pass" + (f" [{low:.2f}, {high:.2f}]" if len(found) > 1 else "")
        if entry.note:
            text += f"; {entry.note}"
        yield Finding(
            scenario=group.context.scenario,
            topic="speculation",
            engine=engine,
            cell=None,
            verdict=entry.verdict,
            value=mean,
            ci_low=low,
            ci_high=high,
            n_launches=len(found),
            text=text,
            details={"identical_requests": float(entry.identical), "requests": float(entry.requests)},
        )
