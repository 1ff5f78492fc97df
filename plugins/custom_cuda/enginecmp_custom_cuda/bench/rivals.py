"""The parts "rivals:...": the same file, the same ids and the same counts in other engines, and in ours the same way.

Each engine is asked in a process of its own and timed by the host's clock: a prompt from its ids to the first id, then
ids one after the other. Engines that are plugins of the host are driven through their hooks.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from enginecmp import LoadOptions, ModelInfo
from enginecmp.plugins import discover_installed, load_object, manager_with

from .context import Context, Skip
from .measurement import Measurement

CONTEXTS = (512, 16, 2048)
PROMPTS = (512, 128, 2048)
OUTPUT = 128
REPETITIONS = 5
VARIANTS: dict[tuple[str, str], tuple[dict[str, str], ...]] = {
    ("custom_cuda", "emulated"): ({"decoder": "persistent"},),
    ("custom_cuda", "cuda"): ({"gemm": "own"}, {"decoder": "persistent"}),
}
"""Options that are measured beside the defaults, by engine and device."""

COMPARED = 16
"""Ids that are kept, to see whether engines agree."""


@dataclass(frozen=True)
class Cells:
    """What is measured: contexts to decode at, prompts, ids a request, repetitions, and room for all."""

    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    output: int
    repetitions: int

    @property
    def room(self) -> int:
        """Return the tokens of the longest request."""
        return max(*self.contexts, *self.prompts) + self.output


@dataclass(frozen=True)
class Engine:
    """One engine with the model loaded.

    Attributes:
        name: shown in the table.
        prefill: runs a prompt from an empty cache and returns the first id, on the host.
        decode: returns so many more ids, on the host when it returns.
    """

    name: str
    prefill: Callable[[Sequence[int]], int]
    decode: Callable[[int], list[int]]


def run(context: Context) -> None:
    """Measure the engine that the part is called after."""
    name = context.part.partition(":")[2]
    cells = Cells((16,), (20,), 3, 1) if context.dry else Cells(CONTEXTS, PROMPTS, OUTPUT, REPETITIONS)
    try:
        if name.startswith("torch-"):
            from .torch_rival import measure_torch

            measure_torch(context, name, cells)
        else:
            measure_hooks(context, name, cells)
    except ModuleNotFoundError as error:
        msg = f"the package {error.name} is not installed"
        raise Skip(msg) from error


def prompt(tokens: int, vocabulary: int) -> list[int]:
    """Return the ids that every engine gets."""
    return [int(each) for each in np.random.default_rng(tokens).integers(0, vocabulary, tokens)]


def measure_cells(context: Context, engine: Engine, cells: Cells, vocabulary: int) -> None:
    """Measure every cell, those that matter most first; one that fails does not stop the others."""
    for tokens in cells.contexts:
        with context.guarded(f"{engine.name}, decode at {tokens}"):
            if context.enough(3, f"{engine.name}, decode at {tokens}"):
                decode_cell(context, engine, cells, prompt(tokens, vocabulary))
    for tokens in cells.prompts:
        with context.guarded(f"{engine.name}, prompt of {tokens}"):
            if context.enough(3, f"{engine.name}, prompt of {tokens}"):
                prompt_cell(context, engine, cells, prompt(tokens, vocabulary))


def decode_cell(context: Context, engine: Engine, cells: Cells, ids: list[int]) -> None:
    """Time ids behind a prompt."""
    seconds: list[float] = []
    found: list[list[int]] = []
    for _ in range(cells.repetitions + 1):  # the first one warms up
        first = engine.prefill(ids)
        begin = time.perf_counter()
        more = engine.decode(cells.output - 1)
        seconds.append((time.perf_counter() - begin) / len(more))
        found.append([first, *more])
        if context.left() < 2:
            break
    context.fact(f"ids of {engine.name} at {len(ids)}", found[-1][:COMPARED])
    context.fact(f"ids of {engine.name} at {len(ids)} repeat", all(each == found[0] for each in found))
    record(context, engine, f"decode at {len(ids)}", 1, seconds)


def prompt_cell(context: Context, engine: Engine, cells: Cells, ids: list[int]) -> None:
    """Time a prompt to its first id."""
    seconds = []
    for _ in range(cells.repetitions + 1):
        begin = time.perf_counter()
        engine.prefill(ids)
        seconds.append(time.perf_counter() - begin)
        if context.left() < 2:
            break
    record(context, engine, f"prompt of {len(ids)}", len(ids), seconds)


def record(context: Context, engine: Engine, cell: str, tokens: int, seconds: list[float]) -> None:
    """Write a cell down, the first repetition left out."""
    kept = tuple(seconds[1:] or seconds) if context.device_timed else ()
    setting: dict[str, int | str] = {"engine": engine.name, "cell": cell, "unit_tokens": tokens}
    context.measured(Measurement("rival", setting, kept, True))


def measure_hooks(context: Context, name: str, cells: Cells) -> None:
    """Measure an engine that is a plugin of the host."""
    module = next((each.module for each in discover_installed() if each.name == name), f"enginecmp_{name}")
    if importlib.util.find_spec(module.partition(":")[0]) is None:
        msg = f"{module} is not installed"
        raise Skip(msg)
    try:
        hook = manager_with(load_object(module)).hook
    except ImportError as error:
        msg = f"{module} cannot be imported: {error}"
        raise Skip(msg) from error
    device = device_for(context, hook.cmp_engine()[0].devices)
    threads = os.cpu_count() or 1
    for key, value in hook.cmp_engine()[0].environment.items():
        os.environ[key] = value.format(threads=threads)
    options = LoadOptions(device=device, threads=threads, context_tokens=cells.room)
    probe = hook.cmp_probe(options=options)
    if probe is not None and not probe.ok:
        msg = f"{probe.reason}; {probe.mend}" if probe.mend else probe.reason
        raise Skip(msg)
    info: ModelInfo = context.model()
    for extra in ({}, *VARIANTS.get((name, device), ())):
        shown = " ".join([name, *(f"{key}={value}" for key, value in extra.items())])
        if context.enough(5 if extra else 0, shown):
            with context.guarded(shown):
                begin = time.perf_counter()
                session = hook.cmp_load(model=info, options=msgspec.structs.replace(options, extra=extra))
                context.fact(f"load_seconds of {shown}", round(time.perf_counter() - begin, 2))
                measure_cells(context, hooked(shown, hook, session, cells), cells, info.vocabulary)
                hook.cmp_unload(session=session)


def device_for(context: Context, devices: Sequence[str]) -> str:
    """Return the device that an engine is measured on: ours, or the CPU in a rehearsal.

    Raises:
        Skip: it does not run there.
    """
    wanted = ["cuda"] if context.device_timed else ["emulated", "cpu"]
    for device in wanted:
        if device in devices:
            return device
    msg = f"it runs on {', '.join(devices)}, not on {' or '.join(wanted)}"
    raise Skip(msg)


def hooked(name: str, hook: Any, session: Any, cells: Cells) -> Engine:
    """Return an engine driven as the host drives it."""

    def prefill(ids: Sequence[int]) -> int:
        hook.cmp_reset(session=session)
        return int(hook.cmp_prefill(session=session, token_ids=ids, output_tokens=cells.output))

    def decode(tokens: int) -> list[int]:
        return [int(each) for each in hook.cmp_decode(session=session, n_tokens=tokens)]

    return Engine(name, prefill, decode)
