"""`python -m bench flag_rates`: what it makes of requests whose times and flags are known."""

from __future__ import annotations

import math

import pytest
from bench.flag_rates import Request, by_flag, by_foreign_share


def requests(slower: float) -> list[Request]:
    """Three rounds, each twice as slow as the one before; flagged requests take `slower` times as long."""
    made = []
    for number in range(3):
        level = 2.0**number * (1 + 0.01 * number)
        made += [Request(number, 0.0, level, 0.0, ()) for _ in range(9)]
        made += [Request(number, 0.0, slower * level * (1 + 0.001 * number), 0.3, ("foreign_cpu",))]
        made += [Request(number, 0.2, slower * level, 0.2, ("cpu_pressure", "foreign_cpu")) for _ in range(4)]
    return made


def test_rates_and_ratios_come_from_rounds_and_hold_the_machines_drift_out() -> None:
    quiet, rest, loaded, none = by_flag(requests(1.5))
    assert [part.name for part in (quiet, rest, loaded, none)] == [
        "none, flagged",
        "none, not flagged",
        "20%, flagged",
        "20%, not flagged",
    ]
    assert (quiet.n, quiet.share, quiet.flags) == (3, pytest.approx(0.1), {"foreign_cpu": 3})
    assert (rest.ratio, rest.share) == (pytest.approx(1.0), pytest.approx(0.9))
    assert quiet.ci_low < 1.5 * 1.001 < quiet.ci_high
    assert quiet.ci_high - quiet.ci_low < 0.01
    assert loaded.ratio == pytest.approx(1.5)
    assert loaded.flags == {"cpu_pressure": 12, "foreign_cpu": 12}
    assert (none.n, math.isnan(none.ratio)) == (0, True)


def test_times_are_told_by_what_others_really_took() -> None:
    found = {part.name: part for part in by_foreign_share(requests(1.2))}
    assert sum(part.n for part in found.values()) == len(requests(1.2))
    assert found["0% to 2%"].n == 27
    assert found["20% to 50%"].ratio == pytest.approx(1.2, rel=1e-3)
    assert found["50% and more"].n == 0
