"""What `cmp compare --json` prints: schema "enginecmp-compare/1". NaN is written as null."""

from __future__ import annotations

from typing import Literal

import msgspec

from enginecmp.format.records import Cell

COMPARE_SCHEMA = "enginecmp-compare/1"

Band = Literal["acceptable", "warning", "critical"]
Confirmed = Literal["PASS", "WARNING", "CRITICAL", "INCONCLUSIVE"]
Level = Literal["warning", "critical"]


class Side(msgspec.Struct, kw_only=True):
    """The launches of one side of a comparison.

    Attributes:
        n_launches: launches (blocks).
        full_launches: those of them with at least ten requests.
        mean: mean of launch means, in the metric's unit.
        cv: standard deviation of launch means over their mean.
        cv_upper: upper 95 % bound of it.
        reproducible: whether that bound is below 5 %.
    """

    n_launches: int
    full_launches: int
    mean: float
    cv: float
    cv_upper: float
    reproducible: bool


class RegressionLine(msgspec.Struct, kw_only=True):
    """One engine on one metric in one cell, new against base.

    Attributes:
        scenario: name.
        engine: label.
        cell: point of the grid; null for what belongs to a whole launch.
        metric: name with unit.
        base: launches of the old run.
        new: launches of the new run.
        slowdown: new / base of a time, base / new of a rate: above 1 is worse.
        ci_low: lower limit of its two-sided 95 % interval.
        ci_high: upper limit.
        lower: one-sided 95 % bound: the slowdown is at least this.
        upper: one-sided 95 % bound: the slowdown is at most this.
        band: where the point estimate lies; null when there is none.
        confirmed: what the one-sided bounds prove.
        withheld: fewer than ten launches of ten requests on one side, so nothing is confirmed.
        reason: why it is inconclusive, else null.
        n_runs: runs of each side on which interval and bounds rest; only where both sides pool several.
        launches_needed: more launches of each side for an answer; 0 when launches are not what is missing, null when
            unknown.
        runs_needed: more runs of each side for an answer, null when unknown; only where both sides pool several.
        warning_limit: relative slowdown from which on this metric is at warning.
        critical_limit: the same for critical.
        failed: confirmed at or above the level that counts as a failure.
    """

    scenario: str
    engine: str
    cell: Cell | None
    metric: str
    base: Side
    new: Side
    slowdown: float
    ci_low: float
    ci_high: float
    lower: float
    upper: float
    band: Band | None
    confirmed: Confirmed
    withheld: bool
    reason: str | None
    n_runs: int | msgspec.UnsetType = msgspec.UNSET
    launches_needed: int | None
    runs_needed: int | msgspec.UnsetType | None = msgspec.UNSET
    warning_limit: float
    critical_limit: float
    failed: bool


class CompareReport(msgspec.Struct, kw_only=True):
    """Everything that `cmp compare` found.

    Attributes:
        schema: "enginecmp-compare/1".
        base: ids of the old runs.
        new: ids of the new runs.
        warning_limit: relative slowdown, for metrics without limits of their own.
        critical_limit: likewise.
        fail_on: warning or critical.
        failed: at least one regression is confirmed at or above that level.
        lines: one a comparison.
        not_compared: what only one side has, or what must not be compared; one sentence each.
        changed: versions, libraries and options of engines that differ.
        warnings: what else a reader must know.
    """

    schema: str = COMPARE_SCHEMA
    base: list[str]
    new: list[str]
    warning_limit: float
    critical_limit: float
    fail_on: Level
    failed: bool = False
    lines: list[RegressionLine] = []
    not_compared: list[str] = []
    changed: list[str] = []
    warnings: list[str] = []
