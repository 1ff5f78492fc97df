"""The part "resident": tokens a second of the resident kernel, in a process of its own.

Its blocks wait for one another, so a fault in it may cost the device; nothing else is lost with it then.
"""

from __future__ import annotations

import numpy as np

from ..persistent.plan import misfit
from ..persistent.run import PersistentDecoder
from .context import Context, Skip
from .speed import Sizes, Speed, load


def run(context: Context) -> None:
    """Time launches of many tokens at every context.

    Raises:
        Skip: the model and the device do not suit it.
    """
    sizes = Sizes(context.dry)
    session = load(context, context.model(), max(sizes.contexts) + sizes.room, 1, "load_seconds of the resident kernel")
    try:
        speed = Speed(context, session, sizes)
        if reason := misfit(session.device, session.model, speed.decoding):
            raise Skip(reason)
        decoder = PersistentDecoder(session.device, session.model, speed.decoding, session.cache)
        context.fact("splits of the resident kernel", decoder.schedule.splits)
        for tokens in sizes.contexts:
            session.begin_alone(tokens + sizes.room)
            decoder.seat(tokens, 1)
            seconds = speed.sampled(lambda: decoder.enqueue(sizes.steps), sizes.steps)
            decoder.synchronize()
            token = int(session.device.download(decoder.buffers.token, 1, np.int32)[0])
            speed.measured("resident kernel", 1, tokens, seconds, decoder.step.nbytes, speed.exists([token]))
        session.reset()
        decoder.close()
    finally:
        session.close()
