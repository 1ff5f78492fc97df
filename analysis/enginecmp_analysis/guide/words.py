"""How the guide says values, settings, runs and commands."""

from __future__ import annotations

import math
from collections.abc import Iterable

from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.text import command_line
from enginecmp_analysis.data.asked import kept_command
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.render.layout import show_count, show_interval, three_digits, unit_for
from enginecmp_analysis.render.needed import MOST_MORE
from enginecmp_analysis.render.ranking_rows import heading
from enginecmp_analysis.schema.stats import Comparison, Summary


def value_words(summary: Summary) -> str:
    """Return a mean with its unit and 95 % limits: "47.7 [42.7, 52.7] tokens/s"."""
    scale, unit = unit_for(summary.metric, abs(summary.mean))
    name = heading(summary.metric, unit)
    told = with_limits(summary.mean / scale, summary.ci_low / scale, summary.ci_high / scale)
    return told if name == "value" else f"{told} {name}"


def with_limits(mean: float, low: float, high: float) -> str:
    """Return a mean with its limits, where it has any: "47.7 [42.7, 52.7]"."""
    return three_digits(mean) + (f" {show_interval(low, high)}" if math.isfinite(low) else "")


def settings(group: GroupResult, engine: str) -> str:
    """Return the settings that an engine ran with, as its manifest has them."""
    made = next(e for run in group.runs for e in run.manifest.engines if e.name == engine)
    options = made.options
    parts = [made.device]
    if threads := options.get("threads"):
        parts.append(show_count(threads, "thread"))
    batching = {"continuous": "continuous batching", "queue": "one request after the other"}
    if told := batching.get(str(options.get("batching"))):
        parts.append(told)
    extra = options.get("extra")
    if isinstance(extra, dict):
        parts += [f"{key}={value}" for key, value in extra.items()]
    if tuned := options.get("tuned"):
        parts.append("as `cmp tune` left it" if tuned == "tuned" else "default settings")
    kind = str(options.get("engine", engine))
    return ", ".join(([kind] if kind != engine else []) + [made.version, *parts])


def run_names(group: GroupResult) -> str:
    """Return the runs that something rests on."""
    return ", ".join(group.context.run_ids)


def closing_command(analysis: Analysis, group: GroupResult, comparisons: Iterable[Comparison]) -> str:
    """Return the command that measures what a verdict lacks; "" where no run of a sensible length would do.

    Blocks are added to a run only where verdicts were withheld. Where data were looked at and decide nothing, a longer
    run of its own answers: going on because of a p-value raises false alarms (docs/METHODOLOGY.md).

    Args:
        analysis: of all runs.
        group: whose latest run gets further blocks.
        comparisons: that are open.
    """
    run, found = group.runs[-1], list(comparisons)
    scenario = group.context.scenario
    if run.path is None or run.manifest.scenario.get("source_tool") is not None:
        return ""
    blocks = int(run.manifest.scenario.get("blocks") or LAUNCHES_NEEDED)
    launches = max([c.launches_needed or 0 for c in found], default=0)
    if launches > MOST_MORE:
        return ""
    if short := [c for c in found if c.verdict == "withheld" and c.requests_needed]:
        # More of the same launches would never do.
        wanted = ("--blocks", blocks + launches, "--requests", max(c.requests_needed for c in short))
        return f"{start_command(analysis, scenario)} {command_line(map(str, wanted))}"
    if any(c.verdict == "withheld" for c in found):
        return command_line(["cmp", "run", "--extend", str(run.path), "--blocks", f"+{launches or blocks}"])
    return f"{start_command(analysis, scenario)} --blocks {blocks + (launches or blocks)}"


def start_command(analysis: Analysis, scenario: str) -> str:
    """Return the command that measures a scenario that is missing, with the engines and the model of the others."""
    group = next((g for g in reversed(analysis.groups) if g.context.scenario == scenario), analysis.groups[-1])
    engines = {e.name: str(e.options.get("engine", e.name)) for run in group.runs for e in run.manifest.engines}
    names = ",".join(name if name == kind else f"{name}={kind}" for name, kind in engines.items())
    same = scenario == group.context.scenario
    # A scenario of the user's own is known by its file, which the command that was kept names.
    asked = (_kept(group, "--scenario") if same else []) or ["--scenario", scenario]
    kept = _kept(group, *(("--profile",) if same else ()), "--model", "--threads", "--device", "--reference", "-o")
    return command_line(["cmp", "run", *asked, "--engines", names, *kept])


def tune_command(analysis: Analysis, engine: str) -> str:
    """Return the command that races an engine's settings on the model that the runs are of."""
    return command_line(["cmp", "tune", engine, *_kept(analysis.groups[-1], "--model", "--threads", "--device")])


def _kept(group: GroupResult, *options: str) -> list[str]:
    """Return options of the command that made the latest run, with their values."""
    kept = kept_command(group.runs[-1])
    return [word for option in options for at, word in enumerate(kept) if option in (word, *kept[max(0, at - 1) : at])]
