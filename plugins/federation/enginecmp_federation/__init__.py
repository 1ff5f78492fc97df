"""The measurement `federation`: rounds of adapter deltas over loopback, aggregators compared by time and by error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enginecmp import Measure, MeasuredMetric, hookimpl

MEASURE = Measure(
    name="federation",
    judge="enginecmp_federation.judge:TruthJudge",
    driver="enginecmp_federation.driver:drive",
    needs_model=False,
    metrics=(
        MeasuredMetric(
            name="relative_error",
            what="L2 distance of the aggregate from the planted truth / length of the truth, last call of a sample",
            words=("closer", "farther"),
            beside=True,
        ),
        MeasuredMetric(
            name="heldout_loss",
            what="cross entropy of the small model on held-out data after the last round, nats",
            words=("better", "worse"),
            beside=True,
        ),
        MeasuredMetric(
            name="central_loss",
            what="the same after as many steps on all data at one place",
            compared=False,
            words=("better", "worse"),
        ),
        MeasuredMetric(
            name="round_seconds",
            what="adapter in the server's memory to the aggregate there, over the wire to all nodes and back, mean",
        ),
        MeasuredMetric(
            name="aggregation_seconds",
            what="decompressed deltas in the server's memory to their aggregate, mean over the rounds of a sample",
        ),
        MeasuredMetric(
            name="node_upload_bytes",
            what="one node's answer on the wire, with what frames it; mean over nodes and rounds",
            compared=False,
            beside=True,
            words=("less", "more"),
        ),
        MeasuredMetric(
            name="node_download_bytes",
            what="the request to one node on the wire; mean over nodes and rounds",
            compared=False,
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
