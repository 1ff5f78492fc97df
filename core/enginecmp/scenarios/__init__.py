"""Scenarios: what is measured, written as TOML. The shipped ones lie in this folder."""

from enginecmp.scenarios.check import check
from enginecmp.scenarios.loader import available, change_deadlines, load_scenario, read_trace
from enginecmp.scenarios.scenario import PRIMARY_METRICS, Expectation, Limits, Overload, Profile, Scenario

__all__ = [
    "PRIMARY_METRICS",
    "Expectation",
    "Limits",
    "Overload",
    "Profile",
    "Scenario",
    "available",
    "change_deadlines",
    "check",
    "load_scenario",
    "read_trace",
]
