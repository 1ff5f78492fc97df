"""The one clock: nanoseconds of `time.perf_counter_ns`, on Linux CLOCK_MONOTONIC for the whole machine.

Callers write `clock.now_ns()` and never bind the function to another name, so that the fake engine
(`enginecmp.testing`) can put a deterministic clock in its place.
"""

from time import perf_counter_ns as now_ns

__all__ = ["now_ns"]
