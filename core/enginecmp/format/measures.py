"""Measurements that plugins bring: what a run writes of one into its manifest, so that the analysis needs no plugin."""

from __future__ import annotations

import msgspec


class MeasuredMetric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number that a measurement has for every sample.

    Attributes:
        name: lower case with its unit at the end, e.g. "step_seconds", "index_bytes"; no metric of ours.
        what: it is, where it begins and ends, in one sentence.
        higher_is_better: which direction is good.
        compared: whether engines are compared on it. A number that may be zero has no ratio, and one that every launch
            repeats exactly has no spread.
        beside: stands beside the primary metric wherever engines are ranked: what a speed is worth nothing without.
        words: for a verdict that says "faster", and for one that says "slower".
    """

    name: str
    what: str
    higher_is_better: bool = False
    compared: bool = True
    beside: bool = False
    words: tuple[str, str] = ("faster", "slower")


class Measure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of measurement: what a scenario with `kind = "operation"` and `operation = NAME` runs.

    Attributes:
        name: of the operation, in scenario files and in `EngineInfo.operations`.
        judge: "package.module:Class" of its `enginecmp.Judge`, which runs in a process of its own.
        metrics: what it tells beside `operation_seconds`, the time of one call.
        driver: "package.module:function" that makes the operation of the engine's hooks, in the worker; empty where
            the engine's own `cmp_operation` does.
        of_every_engine: engines need not name it in `EngineInfo.operations`: its driver needs hooks that all have.
        needs_model: a model is loaded; without it engines that load none are measured, there is no equivalence gate,
            and what the judge says of every answer stands in its place.
        sequences: parameter of its variants that says how many sequences a call works on at once, which engines are
            loaded with room for; empty where it is one.
    """

    name: str
    judge: str
    metrics: tuple[MeasuredMetric, ...] = ()
    driver: str = ""
    of_every_engine: bool = False
    needs_model: bool = True
    sequences: str = ""
