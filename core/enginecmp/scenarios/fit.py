"""Cells that a model cannot hold are left out, said and recorded; a scenario of which nothing is left is refused."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.records import Cell
from enginecmp.models.end_tokens import end_tokens
from enginecmp.scenarios.scenario import Scenario
from enginecmp.types import ModelInfo


def fit(scenario: Scenario, model: ModelInfo, say: Callable[[str], None]) -> Scenario:
    """Return the scenario without the cells that need more context than the model was made for.

    Args:
        scenario: with its profile applied.
        model: the weights file.
        say: told about each cell that is left out.

    Raises:
        UsageError: no cell is left, or requests are to end and the model has no token for that.
    """
    kept = tuple(cell for cell in scenario.cells if _needed(cell) <= model.context_tokens)
    if not kept:
        msg = (
            f"scenario {scenario.name} needs {min(map(_needed, scenario.cells))} tokens of context, "
            f"{model.name} was made for {model.context_tokens}; choose shorter cells or another model"
        )
        raise UsageError(msg)
    if any(scenario.rule(cell).may_end for cell in kept) and not end_tokens(model.path):
        msg = (
            f"scenario {scenario.name} lets requests end at the end-of-sequence token, {model.name} has none; choose "
            "another model or scenario"
        )
        raise UsageError(msg)
    left_out = {
        describe(cell): f"needs {_needed(cell)} tokens of context, {model.name} was made for {model.context_tokens}"
        for cell in scenario.cells
        if cell not in kept
    }
    for cell, reason in left_out.items():
        say(f"left out: {cell}: {reason}")
    return msgspec.structs.replace(scenario, cells=kept, left_out=left_out)


def describe(cell: Cell) -> str:
    """Return a cell in words, e.g. "prompt 128, output 32, 4 at once, leak"."""
    most = "up to " if cell.workload else ""
    parts = [f"prompt {most}{cell.prompt_tokens}", f"output {most}{cell.output_tokens}"]
    if cell.concurrency != 1:
        parts.append(f"{cell.concurrency} at once")
    if cell.arrival:
        rate = f" at {cell.rate_per_second:g}/s" if cell.rate_per_second else ""
        parts.append(f"{cell.arrival}{rate}")
    return ", ".join([*parts, *filter(None, [cell.variant or "", cell.workload or "", cell.decoding or ""])])


def _needed(cell: Cell) -> int:
    return cell.prompt_tokens + cell.output_tokens
