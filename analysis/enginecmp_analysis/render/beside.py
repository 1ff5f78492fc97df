"""What a speed is worth nothing without, beside every ranking: the recall of an index, the quality of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.data.metrics import METRICS, metric_of
from enginecmp_analysis.render.layout import three_digits, unit_for
from enginecmp_analysis.schema.stats import Ranking, StatsReport


def beside(rankings: Sequence[Ranking], report: StatsReport) -> Iterator[str]:
    """Yield a line for each cell and metric that its measurement wants beside the primary one, engine by engine."""
    for ranking in rankings:
        order = [row.engine for row in ranking.rows]
        here = [s for s in report.summaries if (s.scenario, s.cell) == (ranking.scenario, ranking.cell)]
        for name in METRICS:
            of = {s.engine: s.mean for s in here if s.metric == name and s.engine in order}
            if not of or not metric_of(name).beside or name == ranking.metric:
                continue
            scale, unit = unit_for(name, max(map(abs, of.values())))
            values = [f"{engine} {three_digits(of[engine] / scale)}" for engine in order if engine in of]
            cell = f"{short_name(ranking.cell)}: " if len(rankings) > 1 else ""
            yield f"{cell}{name}{f' ({unit})' if unit else ''}: {', '.join(values)}"
