"""One cell of concurrent load against a real worker with the fake engine, without a whole run around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from enginecmp.format.records import Cell, Sample
from enginecmp.launch.launch import Launch
from enginecmp.measure.concurrent import measure
from enginecmp.measure.task import Place, Task
from enginecmp.plugins.discovery import examine
from enginecmp.plugins.plugin import Plugin
from enginecmp.prompts import PromptSet
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.plan import PlannedLaunch
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines

FAKE_QUEUE = "enginecmp.testing.fake_queue"

EXACT = {"clock": "real", "launch_sd": "0", "request_sd": "0", "prefill_us": "0"}
"""A fake engine that takes the time it is told to and no other."""


def fake_queue() -> Plugin:
    """Return the fake engine that takes one request at a time."""
    plugin = examine("fake_queue", FAKE_QUEUE, "", "")
    assert plugin.error is None, plugin.error
    return plugin


def scenario_of(cell: Cell, **changes: Any) -> Scenario:
    """Return a scenario of one cell with short deadlines."""
    fields: dict[str, Any] = {
        "name": "cell",
        "profile": "test",
        "primary_metric": "ttft_seconds",
        "cells": (cell,),
        "blocks": 1,
        "requests": 8,
        "deadlines": Deadlines(load_seconds=30, prefill_seconds=20, decode_seconds=20),
    }
    return Scenario(**{**fields, **changes})


@contextlib.contextmanager
def loaded(
    plugin: Plugin, model: ModelInfo, folder: Path, scenario: Scenario, extra: dict[str, Any], keep: Callable[..., None]
) -> Iterator[Task]:
    """Load the engine and yield the task of the scenario's only cell."""
    cell = scenario.cells[0]
    options = LoadOptions(
        context_tokens=scenario.context_tokens,
        # More room than the cell allows, so that it is the cell that decides.
        max_sequences=cell.concurrency + 4 if plugin.batches else 1,
        extra={**EXACT, **{key: str(value) for key, value in extra.items()}},
    )
    place = Place(PlannedLaunch(0, 0, plugin.name), "b0", cell)
    with Launch(plugin.name, plugin, log=folder / "engine.log", options=options) as launch:
        launch.load(model, 30)
        yield Task(launch, scenario, model, PromptSet(model), 7, place, keep, lambda start_ns, end_ns: [])


def serve(plugin: Plugin, model: ModelInfo, folder: Path, scenario: Scenario, **extra: Any) -> list[Sample]:
    """Measure the cell and return its samples, in the order in which requests were sent."""
    samples: list[Sample] = []
    with loaded(plugin, model, folder, scenario, extra, samples.append) as task:
        measure(task)
    return samples
