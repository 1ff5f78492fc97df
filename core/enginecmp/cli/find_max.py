"""`cmp run --find-max`: what the search asks of the analysis, and what it tells at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from enginecmp.cli.console import say
from enginecmp.errors import UsageError
from enginecmp.run.options import RunOptions
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.find_max import MOST_USERS, searched


def searching(scenario: Scenario, options: RunOptions) -> Scenario:
    """Return the scenario of a search for the largest load.

    Raises:
        UsageError: an objective is wrong, or the scenario holds no requests.
    """
    from enginecmp_analysis.decisions.limit_search import least_requests
    from enginecmp_analysis.decisions.slo import all_objectives

    assert options.find_max is not None
    if scenario.kind != "requests":
        msg = (
            f"--find-max: expected a scenario of requests, got {scenario.name} of kind {scenario.kind}; try concurrent"
        )
        raise UsageError(msg)
    least = least_requests(all_objectives(options.slo))
    return searched(scenario, options.find_max, options.slo, options.blocks, least)


def loads_of(scenario: Scenario) -> Callable[[Path, int, Sequence[str]], Mapping[str, Sequence[float]]]:
    """Return the question that a search asks before each block: which loads each engine is measured at."""
    from enginecmp_analysis.data.load import load_run
    from enginecmp_analysis.decisions.limit_search import allowed_loads, measured_loads, next_loads
    from enginecmp_analysis.decisions.slo import all_objectives

    objectives = all_objectives(scenario.slo)
    allowed = allowed_loads(scenario.find_max, MOST_USERS)

    def ask(folder: Path, block: int, labels: Sequence[str]) -> Mapping[str, Sequence[float]]:
        seen = measured_loads(load_run(folder, sensors=False), objectives, scenario.find_max, block) if block else {}
        return {label: next_loads(seen.get(label, {}), allowed) for label in labels}

    return ask


def tell(folder: Path) -> None:
    """Print what the search found."""
    from enginecmp_analysis.data.load import load_run
    from enginecmp_analysis.decisions.limit_search import limits

    run = load_run(folder, sensors=False)
    for row in limits(str(run.manifest.scenario.get("name", "")), run):
        say(row.text)
