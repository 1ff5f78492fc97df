"""The part "engine": tokens a second of prompts and of steps, by the engine's own settings, on one copy of the weights.

What matters most comes first. A model without a file: its matrices are as large as the shape's, what they say is not
looked at. Whether the numbers are right is asked in the part "correctness"; here a step's ids must be those that
the same kernels find when they are launched one by one, and everything else the same every time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from enginecmp import LoadOptions, Request

from ..engine.session import Session
from ..options import Settings
from .context import Context
from .measurement import Measurement
from .synthesized import Arrays, shape_of, synthesize

if TYPE_CHECKING:
    from ..device import Device
    from ..weights.model import DeviceModel

PROMPT, STEPS = 512, 256
DRY_PROMPT, DRY_STEPS = 20, 4
PROMPTS = (512, 2048, 128)
DRY_PROMPTS = (20,)
BATCHES = (8, 64, 16, 32)
DRY_BATCHES = (2,)
RUNS = 5
LEAST_SECONDS = 4.0
"""Left of the box, or the next measurement is not begun."""


def run(context: Context) -> None:
    """Measure in the order of worth; whatever there is no time for is named."""
    config, kind = shape_of(context.wanted_model, 1)
    context.fact("engine_model", f"{config.architecture}, {config.layers} layers of {config.width}, {kind}")
    most = PROMPT + STEPS if not context.dry else DRY_PROMPT + DRY_STEPS
    longest = max(PROMPTS if not context.dry else DRY_PROMPTS)
    with context.device() as device:
        arrays = Arrays(device)
        positions = max(most, longest + 1)
        model = synthesize(device, arrays, config, kind, positions, layers=config.layers)
        work = (
            ("steps of one sequence", steps),
            ("prompts", prompts),
            ("steps without overlap", steps_apart),
            ("batches", batches),
        )
        for what, measure in work:
            if context.enough(LEAST_SECONDS, what):
                with context.guarded(what):
                    for one in measure(context, device, model, positions):
                        context.measured(one)
        arrays.close()


def session_of(device: Device, model: DeviceModel, positions: int, sequences: int = 1, **settings: Any) -> Session:
    """Return a session on a model that is there already."""
    options = LoadOptions(device=device.kind, context_tokens=positions, max_sequences=sequences)
    return Session(device, model, options, msgspec.structs.replace(Settings(), **settings))


def told(device: Device, seconds: list[float]) -> tuple[float, ...]:
    """Return times where they are times; a rehearsal takes them and drops them."""
    return tuple(seconds) if device.timed else ()


def ids_of(model: DeviceModel, count: int, seed: int = 0) -> list[int]:
    """Return ids without a pattern."""
    return [int(each) for each in np.random.default_rng(seed).integers(0, model.config.vocabulary, count)]


def steps(context: Context, device: Device, model: DeviceModel, positions: int) -> Iterator[Measurement]:
    """Yield the seconds of a token of one sequence, by graph; the ids must be those of the launches one by one."""
    yield from _steps(context, device, model, positions, {"decoder": "graph"})


def steps_apart(context: Context, device: Device, model: DeviceModel, positions: int) -> Iterator[Measurement]:
    """Yield the same without overlapping kernels, and with other numbers of steps under way."""
    settings: tuple[dict[str, Any], ...] = ({"overlap": False}, {"ahead": 2}, {"ahead": 32})
    for setting in settings[: 1 if context.dry else None]:
        if context.enough(LEAST_SECONDS, f"steps with {setting}"):
            yield from _steps(context, device, model, positions, setting)


def _steps(
    context: Context, device: Device, model: DeviceModel, positions: int, setting: dict[str, Any]
) -> Iterator[Measurement]:
    prompt, count = (DRY_PROMPT, DRY_STEPS) if context.dry else (PROMPT, STEPS)
    ids = ids_of(model, prompt)
    wanted = generate(session_of(device, model, positions, decoder="launches", overlap=False), ids, count)
    session = session_of(device, model, positions, **setting)
    seconds = []
    verified = generate(session, ids, count) == wanted
    for _ in range(RUNS if device.timed else 1):
        verified &= generate(session, ids, count) == wanted
        seconds.append(session.metrics()["device_decode_seconds"] / (count - 1))
    shown: dict[str, int | str] = {key: str(value) for key, value in setting.items()}
    nbytes = session.step.nbytes
    yield Measurement("token", {"prompt": prompt, **shown}, told(device, seconds), verified, nbytes)


def generate(session: Session, ids: list[int], count: int) -> list[int]:
    """Return so many ids behind a prompt."""
    return [session.prefill(ids, count), *session.decode(count - 1)]


def prompts(context: Context, device: Device, model: DeviceModel, positions: int) -> Iterator[Measurement]:
    """Yield the seconds of a prompt's token by own kernels and by cuBLASLt."""
    ways = ("own", "cublaslt") if device.timed else ("own",)
    counts = DRY_PROMPTS if context.dry else PROMPTS
    sessions = {}
    for way in ways:
        with context.guarded(f"prompts by {way}"):
            sessions[way] = session_of(device, model, positions, gemm=way, prefill_chunk=max(counts))
    for count in counts:
        ids = ids_of(model, count, 1)
        for way, session in sessions.items():
            if not context.enough(LEAST_SECONDS, f"prompts of {count} by {way}"):
                return
            first = session.prefill(ids, 1)
            seconds = []
            for _ in range(RUNS if device.timed else 1):
                session.prefill(ids, 1)
                seconds.append(session.metrics()["device_prefill_seconds"] / count)
            verified = first == session.prefill(ids, 1)
            yield Measurement("prompt token", {"tokens": count, "gemm": way}, told(device, seconds), verified)


def batches(context: Context, device: Device, model: DeviceModel, positions: int) -> Iterator[Measurement]:
    """Yield the seconds of a token where several sequences generate at once."""
    for batch in DRY_BATCHES if context.dry else BATCHES:
        if not context.enough(LEAST_SECONDS, f"batches of {batch}"):
            return
        count, prompt = (DRY_STEPS, 8) if context.dry else (64, 64)
        session = session_of(device, model, prompt + count, batch)
        requests = [Request(id=f"{n}", token_ids=ids_of(model, prompt, n), output_tokens=count) for n in range(batch)]
        whole: dict[str, list[int]] = {}
        seconds = []
        for run in range(1 + (3 if device.timed else 1)):
            found: dict[str, list[int]] = {one.id: [] for one in requests}
            for one in requests:
                session.batching.submit(one)
            begin = time.perf_counter()
            tokens = 0
            while tokens < batch * count:
                for name, token in session.batching.step():
                    found[name].append(token)
                    tokens += 1
            if run:
                seconds.append((time.perf_counter() - begin) / tokens)
            whole = whole or found
            verified = found == whole
        yield Measurement("token of a batch", {"batch": batch}, told(device, seconds), verified)
