"""`cmp scenario`: list, show and check what `cmp run --scenario` takes."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from enginecmp.cli.console import echo, print_json, table
from enginecmp.measure.judged import check_variants
from enginecmp.plugins.brought import Brought, brought
from enginecmp.run.summary import count
from enginecmp.scenarios.fit import describe
from enginecmp.scenarios.loader import available, load_scenario, profiles_of
from enginecmp.scenarios.scenario import Scenario


@click.group("scenario", short_help="List, show and check scenarios.")
def command() -> None:
    """List, show and check scenarios: what `cmp run` asks of engines, a grid of cells and how requests arrive."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_scenarios(as_json: bool) -> None:
    """List the scenarios that come with `cmp` and with plugins, by the names that `cmp run --scenario` takes."""
    rows: list[dict[str, Any]] = []
    found = brought()
    for name, path in sorted(available(found.scenarios).items()):
        profiles = profiles_of(str(path))
        scenario = load_scenario(str(path), profiles[0], measures=found.measures)
        rows.append(
            {
                "name": name,
                "profiles": profiles,
                "primary_metric": scenario.primary_metric,
                "description": scenario.description,
                "path": str(path),
            }
        )
    if as_json:
        print_json({"scenarios": rows})
        return
    table(
        ("name", "profiles", "primary metric"),
        [(row["name"], ", ".join(row["profiles"]), row["primary_metric"]) for row in rows],
    )
    echo()
    for row in rows:
        echo(f"{row['name']}: {row['description'] or 'no description'}")


@command.command("show")
@click.argument("scenario")
@click.option("--profile", help="One of its profiles.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: every key, as a run's manifest keeps it.")
def show(scenario: str, profile: str | None, as_json: bool) -> None:
    """Show a scenario, by its name or its file: cells, launches and requests of each profile."""
    found = _profiles(scenario, profile)
    if as_json:
        print_json({"scenarios": [msgspec.to_builtins(each) for each in found]})
        return
    if found[0].description:
        echo(found[0].description)
    for each in found:
        length = f"{each.seconds:g} s" if each.seconds else count(each.requests, "request")
        blocks = count(each.blocks, "block")
        echo(f"{each.name}/{each.profile}: {each.primary_metric}, {blocks} × {length}")
        for cell in each.cells:
            echo(f"  {describe(cell)}")
        if each.offered_load:
            loads = ", ".join(f"{load:g}" for load in each.offered_load)
            echo(f"  sweep: {each.arrival} arrivals at {loads} × what an engine shows beforehand")


@command.command("check")
@click.argument("scenario")
def check(scenario: str) -> None:
    """Read a scenario's file with every profile, and say what is wrong with it: exit code 2."""
    found = _profiles(scenario, None)
    check_variants(found[0])
    cells = max(len(each.cells) for each in found)
    echo(f"{scenario}: fine: {', '.join(each.profile for each in found)}, {cells} cell{'' if cells == 1 else 's'}")


def _profiles(name: str, profile: str | None) -> list[Scenario]:
    """Return a scenario resolved for one profile, or for all of them."""
    found: Brought = brought()
    chosen = [profile] if profile else profiles_of(name, found.scenarios)
    return [load_scenario(name, each, found.scenarios, measures=found.measures) for each in chosen]
