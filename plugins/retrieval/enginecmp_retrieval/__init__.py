"""The measurement `retrieval`: the nearest patterns to a query, from an index, with recall beside every latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enginecmp import Measure, MeasuredMetric, hookimpl

MEASURE = Measure(
    name="retrieval",
    judge="enginecmp_retrieval.judge:RecallJudge",
    driver="enginecmp_retrieval.driver:drive",
    needs_model=False,
    metrics=(
        MeasuredMetric(
            name="recall_share",
            what="the k true nearest patterns of the query's timestep that were returned / k, mean over queries",
            higher_is_better=True,
            compared=False,
            beside=True,
            words=("better", "worse"),
        ),
        MeasuredMetric(
            name="timestep_share",
            what="returned patterns that belong to the query's timestep / all that were returned",
            higher_is_better=True,
            compared=False,
            beside=True,
            words=("better", "worse"),
        ),
        MeasuredMetric(
            name="index_build_seconds",
            what="all keys in memory to an index that answers, once a launch",
        ),
        MeasuredMetric(
            name="index_growth_bytes",
            what="resident memory of the worker after building less before, keys not counted, once a launch",
            words=("less", "more"),
        ),
    ),
)


@hookimpl
def cmp_measures() -> Sequence[Measure]:
    """Return the measurement."""
    return [MEASURE]


@hookimpl
def cmp_scenarios() -> Sequence[str]:
    """Return the scenario files beside this module."""
    return sorted(map(str, Path(__file__).parent.glob("*.toml")))
