"""The part "persistent": the persistent kernel's seconds a token, by slots of its ring and tokens of a launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..engine.decode.step import DecodeSettings
from ..engine.memory.pages import Cache
from ..engine.persistent.plan import misfit
from ..engine.persistent.run import PersistentDecoder
from .context import Context
from .engine import LEAST_SECONDS, PROMPT
from .kernels import filled_cache
from .measurement import Measurement
from .synthesized import Arrays, shape_of, synthesize

if TYPE_CHECKING:
    from ..device import Device
    from ..weights.model import DeviceModel

VARIANTS = tuple((slots, tokens) for tokens in (32, 64) for slots in (0, 24, 16, 12, 8))
"""Slots of the ring (0: as many as fit) and tokens of a launch, in the order of worth."""
DRY_VARIANTS = ((0, 2), (4, 2))
DRY_POSITION = 10
RUNS = 4
LAUNCHES = 3
"""Of a run."""


def run(context: Context) -> None:
    """Measure the variants; all must find the same ids, because none changes the order of a sum."""
    config, kind = shape_of(context.wanted_model, 1)
    variants = DRY_VARIANTS if context.dry else VARIANTS
    position = DRY_POSITION if context.dry else PROMPT
    positions = position + (LAUNCHES * (RUNS + 1) + 1) * max(tokens for _, tokens in variants)
    with context.device() as device:
        arrays = Arrays(device)
        model = synthesize(device, arrays, config, kind, positions, layers=config.layers)
        settings = DecodeSettings(positions=positions, ring_slots=LAUNCHES * max(tokens for _, tokens in variants))
        if reason := misfit(device, model, settings):
            context.note(f"the persistent kernel: {reason}")
            return
        cache = filled_cache(device, model, positions, 1)
        known: list[int] = []
        for slots, tokens in variants:
            if not context.enough(LEAST_SECONDS, f"{slots or 'all'} slots, {tokens} tokens a launch"):
                break
            with context.guarded(f"{slots} slots, {tokens} tokens"):
                for one in measure(device, model, settings, cache, (slots, tokens, position), known):
                    context.measured(one)
        arrays.close()


def measure(
    device: Device,
    model: DeviceModel,
    settings: DecodeSettings,
    cache: Cache,
    how: tuple[int, int, int],
    known: list[int],
) -> Iterator[Measurement]:
    """Yield a variant's seconds a token.

    Args:
        device: where.
        model: its weights.
        settings: of the steps.
        cache: filled.
        how: slots, tokens of a launch, position of the first.
        known: the first ids that an earlier variant found; filled by the first one.
    """
    slots, tokens, position = how
    decoder = PersistentDecoder(device, model, settings, cache, slots=slots or None)
    decoder.bind(position, 5)
    decoder.buffers.ring.wait(0)

    def launches(count: int) -> list[int]:
        found = []
        for _ in range(count):
            decoder.enqueue(tokens)
            decoder.synchronize()
            found += [decoder.buffers.ring.wait(0) for _ in range(tokens)]
        return found

    ids = launches(LAUNCHES)
    known += ids[len(known) :] if not known else []
    shared = min(len(ids), len(known))
    verified = ids[:shared] == known[:shared]
    first, second = device.event(), device.event()
    seconds = []
    for _ in range(RUNS if device.timed else 1):
        first.record()
        for _ in range(LAUNCHES):
            decoder.enqueue(tokens)
        second.record()
        seconds.append(first.seconds_until(second) / (LAUNCHES * tokens))
        for _ in range(LAUNCHES * tokens):
            decoder.buffers.ring.wait(0)
    setting = {"slots": decoder.schedule.layout.slots, "tokens": tokens, "position": position}
    timed = tuple(seconds) if device.timed else ()
    yield Measurement("persistent token", setting, timed, verified, decoder.step.nbytes)
    first.close()
    second.close()
    decoder.close()
