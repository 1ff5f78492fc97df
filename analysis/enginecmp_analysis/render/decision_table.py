"""The parts of the table that lead to a decision: quality, claims, money, machines, dominated engines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from enginecmp.format.records import Equivalence
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.group import Context
from enginecmp_analysis.decisions.capacity import shape_name
from enginecmp_analysis.decisions.money import COSTS, PRIMARY_COST, SPLIT, WHOLE
from enginecmp_analysis.render.layout import (
    WIDTH,
    Line,
    shorten,
    show_count,
    show_interval,
    show_limits,
    show_p,
    show_percent,
    show_times,
    three_digits,
    wrap,
)
from enginecmp_analysis.render.needed import MOST_MORE, hopeless_words
from enginecmp_analysis.schema.decisions import (
    Capacity,
    CostComparison,
    CostRow,
    ExpectationRow,
    LimitRow,
    Money,
    ParetoRow,
    QualityRow,
)
from enginecmp_analysis.schema.stats import StatsReport

_MARKS = {"cheaper": "+", "more": "+", "costlier": "-", "fewer": "-", "equivalent": "="}
_STYLES = {"+": "green", "-": "red", "=": "cyan", "~": "yellow"}


def quality_lines(rows: Sequence[QualityRow], context: Context) -> Iterator[Line]:
    """Yield the quality of a group's engines; columns that no engine has are left out."""
    here = [row for row in rows if row.scenario == context.scenario]
    if not here:
        return
    titles = ("file", "mean KL", "top-1", "ppl", "ΔNLL (nats/token)", "greedy")
    table = [titles, *(quality_values(row) for row in here)]
    used = [i for i in range(len(titles)) if any(values[i] for values in table[1:])]
    # How long two texts agree is luck after the first close call.
    greedy = " (greedy: information only)" if table[0].index("greedy") in used else ""
    yield f"quality on the bundled text, against the reference{greedy}", "dim"
    widths = [max(len(values[i]) for values in table) for i in used]
    # Whatever the names are, the line must fit.
    room = WIDTH - 2 - sum(width + 2 for width in widths)
    names = min(max(len(row.engine) for row in here), max(8, room))
    for label, values in zip(["", *(row.engine for row in here)], table, strict=True):
        cells = "  ".join(f"{values[i]:>{width}}" for i, width in zip(used, widths, strict=True))
        yield f"  {shorten(label, names):<{names}}  {cells}", "" if label else "dim"
    references = {row.reference_perplexity for row in here if row.timed and row.reference_perplexity is not None}
    if references:
        yield f"  perplexity (ppl) of the reference: {', '.join(f'{value:.4g}' for value in sorted(references))}", "dim"


def quality_values(row: QualityRow | Equivalence) -> tuple[str, ...]:
    """Return file, KL, top-1, perplexity, ΔNLL with limits and greedy tokens of a row; "" for what is absent."""
    nats = "" if row.nll_difference is None else f"{row.nll_difference:.4f}"
    if nats and row.nll_difference_low is not None and row.nll_difference_high is not None:
        nats += f" [{row.nll_difference_low:.4f}, {row.nll_difference_high:.4f}]"
    return (
        row.quantization,
        "" if row.mean_kl is None else f"{row.mean_kl:.1e}",
        "" if row.top1 is None else f"{row.top1:.1%}",
        "" if row.perplexity is None else f"{row.perplexity:.4g}",
        nats,
        "" if row.greedy_agreement_tokens is None else str(row.greedy_agreement_tokens),
    )


def proven_on(entry: QualityRow | Equivalence) -> str:
    """Return " (proven on DATE)" of what an earlier gate found; "" where the run asked itself."""
    return f" (proven on {entry.proven_utc[:10]})" if isinstance(entry.proven_utc, str) else ""


def decision_lines(report: StatsReport) -> Iterator[Line]:
    """Yield what stands below all groups."""
    yield from limit_lines(report.limits or [])
    yield from _expectations(report.expectations or [])
    if report.money:
        yield from _money(report.money)
    if report.capacity:
        yield from _capacity(report.capacity)


def limit_lines(rows: Sequence[LimitRow]) -> Iterator[Line]:
    """Yield what searches for the largest load found, largest first."""
    if not rows:
        return
    yield from ((text, "bold") for text in wrap(f"largest load that keeps {', '.join(rows[0].slo)}", ""))
    for row in sorted(rows, key=lambda row: -(row.kept or 0.0)):
        yield from ((text, "green" if row.kept is not None else "yellow") for text in wrap(row.text, "  "))
    yield "", ""


def _expectations(rows: Sequence[ExpectationRow]) -> Iterator[Line]:
    if not rows:
        return
    yield "status, target, actual (each target judged alone at 95 %)", "bold"
    styles = {"holds": "green", "refuted": "red", "open": "yellow"}
    for row in rows:
        head = f"{row.engine}  {row.metric} {expected_range(row)}"
        yield from ((text, styles.get(row.status, "yellow")) for text in wrap(head, f"  {row.status:<12}  "))
        place = f"{row.scenario}, {cell_name(row.cell)}" if row.actual is not None else row.scenario
        found = [actual_words(row), place, row.source and f"source: {row.source}"]
        yield from ((text, "dim") for text in wrap("; ".join(filter(None, found)), " " * 16))
    for measured in dict.fromkeys(row.measured for row in rows if row.measured and row.actual is not None):
        yield from ((text, "dim") for text in wrap(measured, "  measured: "))
    yield "", ""


def expected_range(row: ExpectationRow) -> str:
    """Return what a claim says in a few characters."""
    if row.low is not None and row.high is not None:
        return f"{row.low:g} to {row.high:g}"
    return f">= {row.low:g}" if row.low is not None else f"<= {row.high:g}"


def actual_words(row: ExpectationRow) -> str:
    """Return what was measured, and what it makes of the claim."""
    if row.actual is None:
        return row.reason
    limits = "" if row.ci_low is None or not math.isfinite(row.ci_low) else f" [{row.ci_low:.4g}, {row.ci_high:.4g}]"
    text = f"{row.actual:.4g}{limits}"
    if row.status == "refuted":
        side = "below" if row.low is not None and row.actual < row.low else "above"
        far = f"{show_percent(row.off_by)} {side}" if row.off_by < 1 else f"{row.off_by + 1:.3g} times the claim"
        text += f": at least {far}"
    return text + (f": {row.reason}" if row.reason else "")


def pareto_lines(rows: Sequence[ParetoRow]) -> Iterator[Line]:
    """Yield who is proven dominated, scenario by scenario."""
    for scenario in dict.fromkeys(row.scenario for row in rows):
        here = [row for row in rows if row.scenario == scenario]
        objectives = ", ".join(here[0].objectives)
        yield from ((text, "bold") for text in wrap(f"{scenario}: who is proven dominated in {objectives}", ""))
        for row in here:
            yield from ((text, "yellow" if row.dominated_by else "") for text in wrap(pareto_words(row), "  "))
        yield "", ""


def pareto_words(row: ParetoRow) -> str:
    """Return whether an engine is dominated, by whom and in what."""
    if row.dominated_by is None:
        return f"{row.engine}: not dominated"
    better = ", ".join(row.better_in)
    rest = ", no worse in the rest" if len(row.better_in) < len(row.objectives) else ""
    return (
        f"{row.engine}: dominated by {row.dominated_by}, better in {better}{rest} (Holm p{show_p(row.p_adjusted or 0)})"
    )


def _money(money: Money) -> Iterator[Line]:
    unit = money.currency or "unit of the price"
    prices = {row.engine: row.price_per_hour for row in money.rows}
    listed = ", ".join(f"{engine} {price:g}" for engine, price in prices.items())
    hour = f"; an hour of a machine: {listed}" if listed else ""
    yield from ((text, "bold") for text in wrap(f"money in {unit}{hour}", ""))
    for place in dict.fromkeys((row.scenario, row.cell) for row in money.rows):
        rows = [row for row in money.rows if (row.scenario, row.cell) == place]
        yield "", ""
        yield from ((text, "bold") for text in wrap(f"{place[0]}, {cell_name(place[1])}", ""))
        for metric in dict.fromkeys(row.metric for row in rows):
            comparisons = [c for c in money.comparisons if (c.scenario, c.cell, c.metric) == (*place, metric)]
            yield from _cost([row for row in rows if row.metric == metric], comparisons)
    for text in money.absent:
        yield from ((line, "yellow") for line in wrap(text, "! "))
    yield "", ""


def _cost(rows: Sequence[CostRow], comparisons: Sequence[CostComparison]) -> Iterator[Line]:
    kind = COSTS[rows[0].metric]
    notes = [
        "primary" if any(c.primary for c in comparisons) else "exploratory",
        "higher is better" if kind.higher_is_better else "lower is better",
        charge_words(rows[0]),
    ]
    yield from ((text, "bold") for text in wrap(f"{kind.name}  ({'; '.join(filter(None, notes))})", ""))
    # Where everything is charged to either side, both have the ratio of the whole, which is told above them.
    apart = rows[0].charged != WHOLE or rows[0].metric == PRIMARY_COST
    for c in comparisons if apart else ():
        mark = _MARKS.get(c.verdict, "~")
        yield from ((text, _STYLES[mark]) for text in wrap(cost_words(c), f"{mark} "))
        for text in c.warnings:
            yield from ((line, "") for line in wrap(text, "    ! "))
    width = max(len(row.engine) for row in rows)
    for row in rows:
        yield from (
            (text, "")
            for text in wrap(
                f"{row.engine:<{width}}  {three_digits(row.mean)} {show_interval(row.ci_low, row.ci_high)}", "  "
            )
        )


def charge_words(row: CostRow) -> str:
    """Return which time is charged to what a cost is of; "" where the name says it."""
    if row.metric not in ("cost_per_million_output_tokens", "cost_per_million_input_tokens"):
        return ""
    if row.charged == SPLIT:
        return "decode alone" if "output" in row.metric else "prefill alone"
    return "everything; not to be added to the other"


def cost_words(c: CostComparison) -> str:
    """Return one comparison of costs: ratio, limits, names and verdict."""
    ratio, limits = show_times(c.ratio), show_limits(c.ci_low, c.ci_high)
    more = f": {show_count(c.launches_needed, 'more launch', 'es')} needed" if c.launches_needed else ""
    if c.launches_needed and c.launches_needed > MOST_MORE:
        more = f": {hopeless_words('launches', c.ci_low, c.ci_high)}"
    p = f" (Holm p{show_p(c.p_adjusted)})" if c.primary and math.isfinite(c.p_adjusted) else ""
    return f"{ratio}{limits}  {c.engine} / {c.baseline}  {c.verdict}{more}{p}"


def _capacity(capacity: Capacity) -> Iterator[Line]:
    asked = [f"SLO {', '.join(capacity.slo)}"]
    if capacity.demand_per_second is not None:
        asked.append(f"demand {capacity.demand_per_second:.4g} requests/s")
    if capacity.budget_per_hour is not None:
        asked.append(f"budget {capacity.budget_per_hour:g} {capacity.currency}/h".replace(" /h", "/h"))
    yield from ((text, "bold") for text in wrap(f"machines: {'; '.join(asked)}", ""))
    for place in dict.fromkeys((row.scenario, shape_name(row)) for row in capacity.rows):
        rows = [row for row in capacity.rows if (row.scenario, shape_name(row)) == place]
        yield from ((text, "bold") for text in wrap(", ".join(place), ""))
        for row in rows:
            style = "red" if row.fits == "no" else "yellow" if row.machines_high is None else ""
            yield from ((text, style) for text in wrap(f"{row.engine}: {row.answer}", "  "))
        for advice in dict.fromkeys(text for row in rows for text in row.measure):
            whose = [row.engine for row in rows if advice in row.measure]
            engines = "" if len(whose) == len(rows) else f" ({', '.join(whose)})"
            yield from ((text, "dim") for text in wrap(f"to know more{engines}, measure {advice}", "  "))
    for choice in capacity.choices:
        yield from ((text, "bold") for text in wrap(choice, "> "))
    if not capacity.rows:
        yield "  no cell tells: no engine was measured at a known load", "yellow"
    yield "", ""
