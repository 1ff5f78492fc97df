"""Metrics over many runs, run by run."""

from __future__ import annotations

import math

from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.metrics import metric_of
from enginecmp_analysis.render.layout import WIDTH, Line, shorten, wrap
from enginecmp_analysis.schema.history import HistoryReport, Point


def render_history(report: HistoryReport) -> list[Line]:
    """Return the lines of the report, 80 columns wide."""
    lines: list[Line] = []
    for series in report.series:
        title = f"{series.engine}: {series.metric}, {series.scenario}, {cell_name(series.cell)}"
        lines += [(text, "bold") for text in wrap(title, "")]
        width = min(max(len(point.run_id) for point in series.points), 30)
        lines.append((f"  {'date':<10}  {'run':<{width}}  {'value ± 95 %':>18}  ratio", "dim"))
        for point in series.points:
            lines += _point_lines(point, series.metric, width)
        lines.append(("", ""))
    for warning in dict.fromkeys(report.warnings):
        lines += [(text, "yellow") for text in wrap(warning, "! ")]
    lines += [(text, "dim") for text in wrap(f"ratio: to the level before the last change; changed: {_RULE}", "")]
    return lines


_RULE = "p < .001, corrected for the number of runs, and at least 5 %"


def _point_lines(point: Point, metric: str, width: int) -> list[Line]:
    lines: list[Line] = []
    if point.new_fingerprint:
        lines += [(text, "yellow") for text in wrap(f"new fingerprint: {point.new_fingerprint}", "  ── ")]
    if point.note:
        lines += [(text, "") for text in wrap(f"note: {point.note}", "     ")]
    # The interval is symmetric in logs; its upper half in percent says as much as two limits.
    half = f"{100 * (point.ci_high / point.value - 1):.1f} %" if math.isfinite(point.ci_high) else "n/a"
    name = shorten(point.run_id, width)
    value = f"{f'{point.value:#.4g}'.rstrip('.')} ± {half}"
    ratio = f"{point.ratio:.3f}" if math.isfinite(point.ratio) else "     "
    style, mark = "", ""
    if point.changed:
        worse = (point.ratio < 1) == metric_of(metric).higher_is_better
        style, mark = ("red", "changed, worse") if worse else ("green", "changed, better")
    text = f"  {point.created_utc[:10]:<10}  {name:<{width}}  {value:>18}  {ratio}"
    if mark and len(text) + len(mark) + 1 > WIDTH:
        return [*lines, (text, style), (f"{mark:>{WIDTH}}", style)]
    return [*lines, (f"{text} {mark}".rstrip(), style)]
