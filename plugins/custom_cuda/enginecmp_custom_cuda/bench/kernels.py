"""The part "kernels": each kernel alone, many times as a graph, over weights that no cache holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..device import Device
from ..engine.decode.step import BATCHES, ELEMENT_BYTES, DecodeSettings, DecodeStep
from ..engine.memory.pages import Cache
from ..engine.prefill.cublaslt import Product
from ..engine.prefill.gemm import Step
from ..engine.prefill.params import Embed, Flash, Gemm, Reduce, Split
from ..engine.prefill.prefill import Prefill, Program
from ..weights.model import DeviceModel
from .context import Context
from .measurement import Measurement
from .synthesized import Arrays, fill, shape_of, synthesize
from .timing import recorded_seconds

POSITIONS = {1: (15, 511, 2047, 8191), 2: (511, 2047), 4: (511, 2047), 8: (511, 2047)}
DRY_POSITIONS = {1: (15, 70), 2: (70,)}
TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048)
LIBRARY_TOKENS = (128, 512, 2048)
DRY_TOKENS = (1, 20)
HEAD_TOKENS = 64
"""Prompts want an id at their last tokens: the head sees a batch at most."""


def run(context: Context) -> None:
    """Time the kernels of steps, then those of prompts."""
    positions = DRY_POSITIONS if context.dry else POSITIONS
    longest = max(map(max, positions.values())) + 1
    tokens = DRY_TOKENS if context.dry else TOKENS
    config, kind = shape_of(context.wanted_model, max(longest, *tokens))
    context.fact("model", f"{Path(context.wanted_model).name}, {kind}")
    with context.device() as device:
        arrays = Arrays(device)
        model = synthesize(device, arrays, config, kind, max(longest, *tokens))
        context.fact("kernel_layers", model.config.layers)
        for batch in sorted(positions):
            if context.enough(1, f"steps of {batch}"):
                with context.guarded(f"kernels of a step of {batch}"):
                    step_kernels(context, device, model, batch, positions[batch])
        with context.guarded("kernels of prompts"):
            prompt_kernels(context, device, model, tokens, library=False)
        if context.device_timed:
            with context.guarded("cuBLASLt's products"):
                prompt_kernels(context, device, model, LIBRARY_TOKENS, library=True)
        arrays.close()


def step_kernels(context: Context, device: Device, model: DeviceModel, batch: int, positions: Sequence[int]) -> None:
    """Time the kernels of a decode step of a batch."""
    assert batch in BATCHES
    settings = DecodeSettings(positions=max(positions) + 1)
    cache = filled_cache(device, model, max(positions) + 1, batch)
    step = DecodeStep(device, model, batch, settings, cache)
    begin(device, model, step, batch, positions[0])
    groups: dict[str, list[Any]] = {}
    for phase in step.phases:
        for launch in phase.launches:
            groups.setdefault(launch.kernel.name, []).append(launch)
    kv_bytes = model.config.kv_heads * 2 * model.config.head_dim * ELEMENT_BYTES[settings.kv]
    layer, width = model.layers[0], model.config.width
    read = {name: getattr(layer, name).nbytes for name in ("qkv", "output", "gate_up", "down")}
    read["head"] = model.head.nbytes
    # `next` alone would find no choice; with `head` before it, it does.
    works = {name: groups[name] for name in ("qkv", "output", "gate_up", "down", "head")}
    works["head, next"] = [groups["head"][0], groups["next"][0]]
    for name, launches in works.items():
        nbytes = read.get(name, model.head.nbytes)
        units = 1 if name == "head, next" else len(launches)
        measure(context, device, step, name, {"batch": batch}, launches, units, nbytes, width)
        if batch == 1 and name == "gate_up":
            alone = DecodeStep(device, model, batch, replace(settings, overlap=False), cache, step.buffers)
            apart = [one for phase in alone.phases for one in phase.launches if one.kernel.name == name]
            measure(context, device, step, f"{name}, no overlap", {"batch": batch}, apart, units, nbytes, width)
            alone.close()
    for position in positions:
        device.upload(step.buffers.position, np.full(batch, position, np.int32))
        setting = {"batch": batch, "position": position + 1}
        launches = groups["attention"]
        nbytes = batch * (position + 1) * kv_bytes
        measure(context, device, step, "attention", setting, launches, len(launches), nbytes, width)
    step.close()
    cache.close()


def measure(
    context: Context,
    device: Device,
    step: DecodeStep,
    name: str,
    setting: dict[str, int],
    launches: Sequence[Any],
    units: int,
    nbytes: int,
    width: int,
) -> None:
    """Time launches of one kernel; what the step works on, (batch, width), must still be numbers afterwards."""
    seconds = recorded_seconds(device, [launch.launch for launch in launches], units)
    sound = bool(np.isfinite(device.download(step.buffers.x, step.batch * width, np.float32)).all())
    context.measured(Measurement("kernel", {"kernel": name, **setting}, seconds, sound, nbytes))


def begin(device: Device, model: DeviceModel, step: DecodeStep, batch: int, position: int) -> None:
    """Bind sequences and run a step, so that every buffer holds what a step leaves."""
    for slot in range(batch):
        step.bind(slot, position, slot)
    step.enqueue()
    device.synchronize()
    device.upload(step.buffers.position, np.full(batch, position, np.int32))


def filled_cache(device: Device, model: DeviceModel, tokens: int, sequences: int) -> Cache:
    """Return a cache full of random keys and values, with pages for every sequence."""
    cache = Cache(device, model.config, "f16", tokens, sequences)
    values = np.random.default_rng(12).standard_normal(1 << 16).astype(np.float16).view(np.uint8)
    start = cache.layer_address(0)
    fill(device, start, values, cache.nbytes - cache.pages.table.nbytes)
    for slot in range(sequences):
        cache.pages.promise(slot, tokens)
        cache.grow(slot, tokens)
    return cache


def prompt_kernels(
    context: Context, device: Device, model: DeviceModel, counts: Sequence[int], *, library: bool
) -> None:
    """Time the kernels of prompts of some lengths, at the prompt's beginning."""
    cache = filled_cache(device, model, max(counts), 1)
    backend = None
    if library:
        from ..engine.prefill.cublaslt import Backend
        from ..engine.prefill.cublaslt_library import open_library

        backend = Backend(device, open_library())
    prefill = Prefill(device, model, cache, precise=False, max_tokens=max(counts), library=backend)
    prefix = "cublaslt " if library else ""
    for tokens in counts:
        if not context.enough(1, f"prompts of {tokens}"):
            break
        programs: list[Program] = []
        ids = np.arange(tokens) % model.config.vocabulary
        prefill.enqueue(ids, np.arange(tokens), np.zeros(tokens), run=programs.append)
        programs[0].launch()
        device.synchronize()
        for name, (launches, products, flop) in sorted(grouped(programs[0], model).items()):
            if library and not products:
                continue
            seconds = recorded_seconds(device, launches, max(1, products or len(launches)), least_nodes=8)
            sound = bool(np.isfinite(device.download(prefill.hidden, model.config.width, np.float32)).all())
            one = Measurement("prompt kernel", {"kernel": prefix + name, "tokens": tokens}, seconds, sound)
            context.measured(one, flop=flop * tokens if products else flop_of_attention(model, name, tokens))
    if not library:
        for tokens in (each for each in counts if each <= HEAD_TOKENS):
            head_of_prompts(context, device, model, prefill, tokens)
    prefill.close()
    if backend is not None:
        backend.close()
    cache.close()


def head_of_prompts(context: Context, device: Device, model: DeviceModel, prefill: Prefill, tokens: int) -> None:
    """Time norm and head of a batch of prompts."""
    arrays = Arrays(device)
    program = prefill.head(prefill.hidden, tokens, arrays.room(tokens * model.head.rows * 4))
    seconds = recorded_seconds(device, [program.launch], 1, least_nodes=4)
    flop = 2 * model.head.rows * model.head.columns * tokens
    context.measured(Measurement("prompt kernel", {"kernel": "head", "tokens": tokens}, seconds, True), flop=flop)
    arrays.close()


def grouped(program: Program, model: DeviceModel) -> dict[str, tuple[list[Callable[[], None]], int, int]]:
    """Return a program's launches by what they do: launches, products among them, operations of one for a token."""
    layer = model.layers[0]
    matrices = {name: getattr(layer, name) for name in ("qkv", "output", "gate_up", "down")}
    names = {(matrix.rows, matrix.columns): name for name, matrix in matrices.items()}
    found: dict[str, tuple[list[Callable[[], None]], int, int]] = {}
    last = ""
    for step in steps_of(program):
        params: Any = getattr(step, "params", None)
        if isinstance(params, Gemm) or isinstance(step, Product):
            last = names[step.shape[:2] if isinstance(step, Product) else (params.w.rows, params.w.columns)]
            add(found, last, [step], matrices[last])
        elif isinstance(params, Reduce):
            found[last][0].append(step.launch)
        elif not isinstance(params, Embed):
            name = "attention" if isinstance(params, Flash | Split) else step.kernel.name  # type: ignore[attr-defined]
            found.setdefault(name, ([], 0, 0))[0].append(step.launch)
    return found


def steps_of(program: Program) -> Iterator[Step]:
    """Yield a program's launches in order."""
    for _, step in program.steps:
        yield step


def add(
    found: dict[str, tuple[list[Callable[[], None]], int, int]], name: str, steps: Sequence[Step], matrix: Any
) -> None:
    """Count one product more."""
    launches, products, _ = found.get(name, ([], 0, 0))
    launches += [step.launch for step in steps]
    found[name] = (launches, products + 1, 2 * matrix.rows * matrix.columns)


def flop_of_attention(model: DeviceModel, name: str, tokens: int) -> int:
    """Return the operations of causal attention of a prompt: two products over half of the square; 0 for others."""
    if name != "attention":
        return 0
    config = model.config
    return 4 * config.heads * config.head_dim * tokens * (tokens + 1) // 2
