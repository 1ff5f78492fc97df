"""Loading by itself: a fresh process, the file out of the page cache or in it, and the first token.

The launch has loaded the model when this kind is called; what is left is one request of the cell's prompt, whose
first token ends the time that a user of a process just started waits.
"""

from __future__ import annotations

import msgspec

from enginecmp import clock
from enginecmp.format.phases import Phase
from enginecmp.format.records import Cell
from enginecmp.launch.launch import LaunchFailure
from enginecmp.launch.model_file import files_of
from enginecmp.measure.planned import planned
from enginecmp.measure.requests import request
from enginecmp.measure.task import Task
from enginecmp.telemetry import page_cache
from enginecmp.types import ModelInfo

COLD_SHARE = 0.01
"""Most of the file that may still be in memory before a load counts as cold."""

WARM_SHARE = 0.99
"""Least of the file that must be in memory before a load counts as warm."""


def before(cell: Cell, model: ModelInfo) -> dict[str, float]:
    """Bring the weights file out of the page cache or into it, and prove that it worked.

    Args:
        cell: its variant is "cold" or "warm".
        model: the file.

    Returns:
        `page_cache_share`, the share of the file that is in memory now.

    Raises:
        LaunchFailure: this machine or this user cannot make it so, or cannot be told.
    """
    path = model.path
    try:
        for file in files_of(model):
            if cell.variant == "cold":
                page_cache.drop(file)
            else:
                page_cache.warm(file)
        share = page_cache.resident_share(*files_of(model))
    except OSError as error:
        msg = f"the page cache cannot be set for {path}: {error.strerror or error}"
        raise LaunchFailure(msg, status="error", phase=Phase.LOAD) from error
    if share is None:
        msg = f"nothing tells how much of {path} is in the page cache; own the file, or make it writable"
    elif cell.variant == "cold" and share > COLD_SHARE:
        msg = (
            f"a cold load needs {path} out of the page cache, {share:.0%} of it stayed; "
            "stop what else has it open or mapped, or put it on a disk"
        )
    elif cell.variant == "warm" and share < WARM_SHARE:
        msg = f"a warm load needs {path} in the page cache, only {share:.0%} of it stayed there; free some memory"
    else:
        return {"page_cache_share": share}
    raise LaunchFailure(msg, status="error", phase=Phase.LOAD)


def measure(task: Task) -> None:
    """Run one request and say how long after the start of the process its first token came.

    Raises:
        LaunchFailure: the engine crashed or hung.
    """
    at = task.at
    at.enter(at.cell, "measure")
    at.start_ns = clock.now_ns()
    sample = request(task, planned(task, 1)[0])
    if sample.token_ns:
        launch = task.launch
        since_start = (sample.token_ns[0] - launch.launched_ns) / 1e9
        loaded = launch.loaded
        disturbed = task.scenario.validity.flags(loaded["metrics"], (loaded["end_ns"] - loaded["start_ns"]) / 1e9)
        sample = msgspec.structs.replace(
            sample,
            # What disturbed the load disturbed this time as well.
            flags=sorted({*sample.flags, *disturbed, *launch.conditions(launch.launched_ns, sample.end_ns)}),
            metrics={**sample.metrics, "first_token_from_start_seconds": since_start},
        )
    task.keep(sample)
