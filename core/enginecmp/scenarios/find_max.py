"""The scenario of a search for the largest load that keeps an SLO."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from enginecmp.format.records import Cell
from enginecmp.scenarios.scenario import FindMax, Scenario

MOST_USERS = 256
"""No search offers more users than that at once."""

MOST_BLOCKS = 60
"""Most launches of each engine, unless --blocks says otherwise."""

IN_FLIGHT = 32
"""Requests in flight at most where the rate is searched for; the others wait in front of the engine."""


def searched(scenario: Scenario, find_max: FindMax, slo: Sequence[str], blocks: int | None, requests: int) -> Scenario:
    """Return a scenario that searches for the largest load, with the request lengths of its first cell.

    Args:
        scenario: with its profile applied.
        find_max: which load.
        slo: objectives as they were written.
        blocks: most launches of each engine; None takes `MOST_BLOCKS`.
        requests: least requests of a launch at each load.
    """
    return msgspec.structs.replace(
        scenario,
        find_max=find_max,
        slo=tuple(slo),
        cells=(at_load(scenario.cells[0], find_max, 1.0),),
        offered_load=(),
        launch_per_cell=False,
        blocks=blocks or MOST_BLOCKS,
        requests=max(scenario.requests, requests),
        seconds=None,
        max_extra=0.0,
    )


def at_load(cell: Cell, find_max: FindMax, load: float) -> Cell:
    """Return a cell of the same request lengths at a load: so many users, or requests a second."""
    if find_max == "concurrency":
        return Cell(cell.prompt_tokens, cell.output_tokens, round(load))
    return Cell(cell.prompt_tokens, cell.output_tokens, IN_FLIGHT, "poisson", load)


def load_of(cell: Cell, find_max: str) -> float:
    """Return the load that a cell stands for; see `at_load`."""
    return float(cell.concurrency if find_max == "concurrency" else cell.rate_per_second or 0.0)
