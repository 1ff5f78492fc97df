"""The part "resident": tokens a second of the resident kernel, in a process of its own, and whether it repeats itself.

Its blocks wait for one another, so a fault in it may cost the device; nothing else is lost with it then. The part
"correctness" runs it over tiny models, which keep few multiprocessors busy: what happens when all take part shows here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..engine.session import Session
from ..persistent.plan import misfit
from ..persistent.run import PersistentDecoder
from ..persistent.schedule import MOST_PARTS
from .context import Context, Skip
from .lab import distance
from .speed import Sizes, Speed, load

VARIANTS: tuple[dict[str, Any], ...] = ({}, {"parts": MOST_PARTS}, {"splits": 8})
"""What is measured beside the defaults: arguments of `PersistentDecoder`."""

REPEATS = 5
TOKEN = 1
"""That every sequence here begins with, behind a cache of random keys and values."""

NEAR_STEP = 3e-2
"""Logits of one token beside those of a step, whose sums are in another order: where activations are rounded to 8 bits,
some round to a neighbour, and that feeds on from layer to layer."""


def run(context: Context) -> None:
    """Check one context, then time launches of many tokens at every context, for every variant.

    Raises:
        Skip: the model and the device do not suit it.
    """
    amounts = Sizes(context.dry)
    tokens = max(amounts.contexts) + amounts.room
    session = load(context, context.model(), tokens, 1, "load_seconds of the resident kernel")
    try:
        speed = Speed(context, session, amounts)
        if reason := misfit(session.device, session.model, speed.decoding):
            raise Skip(reason)
        for sizes in VARIANTS:
            name = " ".join(["resident kernel", *(f"{key}={value}" for key, value in sizes.items())])
            if context.enough(3, name):
                with context.guarded(name):
                    check(context, session, speed, sizes)
                    measure(context, session, speed, sizes, name)
    finally:
        session.close()


def check(context: Context, session: Session, speed: Speed, sizes: dict[str, Any]) -> None:
    """Check a token against a step, and that the same tokens again give the same ids and logits to the bit."""
    position, rows = speed.sizes.contexts[:2][-1], session.model.head.rows
    session.begin_alone(position + speed.sizes.room)
    decoding = replace(speed.decoding, logits=True)
    decoder = PersistentDecoder(session.device, session.model, decoding, session.cache, **sizes)
    ring = decoder.buffers.ring

    def seat() -> None:
        decoder.seat(position, TOKEN)
        ring.wait(0)

    def logits() -> np.ndarray:
        return session.device.download(decoder.buffers.logits, rows, np.float32)

    setting = {"multiprocessors": decoder.schedule.multiprocessors, "context": position, **sizes}
    seat()
    decoder.step.enqueue()
    ring.wait(0)
    expected = logits()
    seat()
    decoder.run(1)
    error = distance(logits(), expected)
    context.check("resident kernel, logits of a step", setting, error <= NEAR_STEP, f"error {error:.1e}")
    found = []
    for _ in range(REPEATS):
        seat()
        found.append((decoder.run(speed.sizes.steps), logits().tobytes()))
    same = sum(each == found[0] for each in found)
    context.check("resident kernel, again to the bit", setting, same == REPEATS, f"{same} of {REPEATS} alike")
    session.reset()
    decoder.close()


def measure(context: Context, session: Session, speed: Speed, sizes: dict[str, Any], name: str) -> None:
    """Time launches of many tokens at every context."""
    steps, room = speed.sizes.steps, speed.sizes.room
    decoder = PersistentDecoder(session.device, session.model, speed.decoding, session.cache, **sizes)
    context.fact(f"splits of the {name}", decoder.schedule.splits)
    for tokens in speed.sizes.contexts:
        session.begin_alone(tokens + room)
        decoder.seat(tokens, TOKEN)
        seconds = speed.sampled(lambda: decoder.enqueue(steps), steps)
        decoder.synchronize()
        token = int(session.device.download(decoder.buffers.token, 1, np.int32)[0])
        speed.measured(name, 1, tokens, seconds, decoder.step.nbytes, speed.exists([token]))
    session.reset()
    decoder.close()
