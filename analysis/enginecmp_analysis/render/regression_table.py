"""Regressions in words: a table of 80 columns for people, Markdown for the summary page of a CI job."""

from __future__ import annotations

import math
from collections.abc import Sequence

from enginecmp_analysis.data.cells import cell_name, short_name
from enginecmp_analysis.data.metrics import metric_of
from enginecmp_analysis.render.escape import for_markdown
from enginecmp_analysis.render.layout import WIDTH, Line, show_count, wrap
from enginecmp_analysis.render.needed import MOST_MORE, missing
from enginecmp_analysis.schema.regression import CompareReport, Confirmed, RegressionLine, Side

_STYLES: dict[Confirmed, str] = {"PASS": "green", "WARNING": "yellow", "CRITICAL": "red", "INCONCLUSIVE": "yellow"}


def render_regression(report: CompareReport) -> list[Line]:
    """Return the lines of the report; the verdict of the whole is the last."""
    lines: list[Line] = [(f"base {_runs(report.base)}", "bold"), (f"new  {_runs(report.new)}", "bold")]
    for text in report.changed:
        lines += [(line, "") for line in wrap(f"changed: {text}", "  ")]
    lines.append(("slowdown [95 % CI], above 1 is worse: new / base of a time, base / new of a rate", "dim"))
    for place in dict.fromkeys((line.scenario, line.cell) for line in report.lines):
        lines += [("", ""), (f"── {place[0]}: {cell_name(place[1])} ".ljust(WIDTH, "─"), "bold")]
        here = [line for line in report.lines if (line.scenario, line.cell) == place]
        for metric in dict.fromkeys(line.metric for line in here):
            better = "higher is better" if metric_of(metric).higher_is_better else "lower is better"
            lines.append((f"{metric}  ({better}{_own_limits(report, here, metric)})", "bold"))
            for line in [line for line in here if line.metric == metric]:
                lines += _lines(line)
    lines.append(("", ""))
    for text in report.not_compared:
        lines += [(line, "yellow") for line in wrap(f"not compared: {text}", "! ")]
    for text in dict.fromkeys(report.warnings):
        lines += [(line, "yellow") for line in wrap(text, "! ")]
    style = "red" if report.failed else "green"
    lines += [(line, style) for line in wrap(conclusion(report), "")]
    return lines


def _own_limits(report: CompareReport, lines: Sequence[RegressionLine], metric: str) -> str:
    """Return the limits of a metric where they are not those of the others."""
    line = next(line for line in lines if line.metric == metric)
    if (line.warning_limit, line.critical_limit) == (report.warning_limit, report.critical_limit):
        return ""
    return f"; warning {_percent(line.warning_limit)}, critical {_percent(line.critical_limit)}"


def _lines(line: RegressionLine) -> list[Line]:
    limits = f" [{line.ci_low:.3f}, {line.ci_high:.3f}]" if math.isfinite(line.ci_low) else ""
    ratio = f"{line.slowdown:.3f}×" if math.isfinite(line.slowdown) else "n/a"
    mark = "-" if line.failed else {"PASS": "+", "INCONCLUSIVE": "~"}.get(line.confirmed, "!")
    head = [
        (text, _STYLES[line.confirmed]) for text in wrap(f"{ratio}{limits}  {line.engine}  {words(line)}", f"{mark} ")
    ]
    sides = ((text, "dim") for name in ("base", "new") for text in wrap(_side(name, getattr(line, name)), "    "))
    return [*head, *sides]


def words(line: RegressionLine) -> str:
    """Return the verdict of one comparison, with what is missing for a better one."""
    where = f"{line.band}" if line.band else "no ratio"
    if line.confirmed != "INCONCLUSIVE":
        bound = f"at most {line.upper:.3f}" if line.confirmed == "PASS" else f"at least {line.lower:.3f}"
        return f"{line.confirmed} ({where}; {bound} with 95 %)"
    name = "WITHHELD" if line.withheld else "INCONCLUSIVE"
    more = "" if line.withheld or missing(line)[0] is None else f"; {_more(line)}"
    return f"{name} ({where}): {line.reason}{more}"


def conclusion(report: CompareReport) -> str:
    """Return the verdict of the whole in one sentence."""
    counts = {name: sum(line.confirmed == name for line in report.lines) for name in _STYLES}
    told = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    if report.failed:
        return f"FAILED: a regression is confirmed at level {report.fail_on} or above ({told})"
    # Not failed is not the same as passed: what is inconclusive may still be slower.
    return f"{'open' if counts['INCONCLUSIVE'] else 'passed'}: no regression is confirmed at level " + (
        f"{report.fail_on} or above ({told})"
    )


def regression_markdown(report: CompareReport) -> str:
    """Return the report as Markdown, verdict first."""
    open_ = any(line.confirmed == "INCONCLUSIVE" for line in report.lines)
    icon = "❌" if report.failed else "❔" if open_ else "✅"
    rows = [
        f"### {icon} {conclusion(report)}",
        "",
        f"base {for_markdown(_runs(report.base))}, new {for_markdown(_runs(report.new))}; a slowdown above 1 is worse",
        "",
        "| scenario | cell | engine | metric | slowdown | 95 % CI | band | confirmed | CV base → new |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in report.lines:
        limits = f"{line.ci_low:.3f} – {line.ci_high:.3f}" if math.isfinite(line.ci_low) else "n/a"
        ratio = f"{line.slowdown:.3f}" if math.isfinite(line.slowdown) else "n/a"
        verdict = f"**{line.confirmed}**" if line.failed else line.confirmed
        note = f": {line.reason}" if line.reason else ""
        row = (
            *map(for_markdown, (line.scenario, short_name(line.cell), line.engine)),
            line.metric + _own_limits(report, [line], line.metric), ratio, limits,
            line.band or "n/a", verdict + note, f"{_percent(line.base.cv)} → {_percent(line.new.cv)}",
        )  # fmt: skip
        rows.append(f"| {' | '.join(row)} |")
    notes = [f"changed: {text}" for text in report.changed]
    notes += [f"not compared: {text}" for text in report.not_compared] + list(dict.fromkeys(report.warnings))
    rows += ["", *(f"- {for_markdown(note)}" for note in notes)] if notes else []
    return "\n".join(rows) + "\n"


def _side(name: str, side: Side) -> str:
    means = f"{name:<4} {side.mean:.4g}, {side.n_launches} launch{'' if side.n_launches == 1 else 'es'}"
    if not math.isfinite(side.cv):
        return means
    claim = "reproducible" if side.reproducible else "not shown reproducible"
    return f"{means}, CV {_percent(side.cv)} (<= {_percent(side.cv_upper)}, {claim})"


def _more(line: RegressionLine) -> str:
    n, word, plural = missing(line)
    if n and n > MOST_MORE:
        bound = f"; the slowdown is below {line.upper:.3f} with 95 %" if math.isfinite(line.upper) else ""
        return f"no realistic number of {word}{plural} decides it on this machine{bound}"
    return f"{show_count(n or 0, f'more {word}', plural)} of each side needed"


def _runs(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "n/a"
