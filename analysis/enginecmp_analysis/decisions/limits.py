"""Limits of a regression: from which slowdown on something is done about it, for all metrics or for one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from enginecmp.errors import UsageError
from enginecmp_analysis.data.metrics import METRICS, Metric, find_metric
from enginecmp_analysis.schema.regression import Level
from enginecmp_analysis.statistics.quantiles import SHOWN

_SHARE = r"(\d+(?:\.\d*)?)\s*%"
_LIMIT = re.compile(rf"(?P<metric>\w+)={_SHARE}(?:,{_SHARE})?")

CRITICAL_OVER_WARNING = 2.0
"""A limit that names its warning alone is critical at so many times of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """From which slowdown on something is done about it.

    Attributes:
        warning: relative slowdown, e.g. 0.10.
        critical: relative slowdown, above `warning`.
        fail_on: the lowest level whose confirmation counts as a failure.
    """

    warning: float = 0.10
    critical: float = 0.20
    fail_on: Level = "critical"

    def __post_init__(self) -> None:
        if not 0 < self.warning < self.critical:
            msg = f"limits: expected 0 < warning < critical, got {self.warning:.1%} and {self.critical:.1%}"
            raise UsageError(msg)


def parse_limit(text: str, fail_on: Level) -> tuple[str, Limits]:
    """Read "METRIC=WARNING%,CRITICAL%", like "e2e_seconds_p50=5%,10%"; without the second twice the first is critical.

    Raises:
        UsageError: it is not of that form, or the metric does not exist.
    """
    form = _LIMIT.fullmatch(text.strip())
    if form is None:
        msg = f"--limit: expected METRIC=WARNING%[,CRITICAL%] like ttft_seconds_p50=5%,10%, got '{text}'"
        raise UsageError(msg)
    warning = float(form[2]) / 100
    critical = float(form[3]) / 100 if form[3] else CRITICAL_OVER_WARNING * warning
    find_compared(form["metric"])
    return form["metric"], Limits(warning, critical, fail_on)


def find_compared(name: str) -> Metric:
    """Return the metric that a name is about, be it a metric's own or a quantile of its launches.

    Raises:
        UsageError: there is no such metric, or it has no such quantile.
    """
    base, _, percent = name.rpartition("_p")
    if name in METRICS or base not in METRICS:
        return find_metric(name)
    known = [str(round(100 * q)) for q in SHOWN]
    if percent not in known or METRICS[base].per == "launch":
        has = f"p{', p'.join(known)}" if METRICS[base].per != "launch" else "one value a launch and no quantiles"
        msg = f"'{name}': {base} has {has}"
        raise UsageError(msg)
    return METRICS[base]
