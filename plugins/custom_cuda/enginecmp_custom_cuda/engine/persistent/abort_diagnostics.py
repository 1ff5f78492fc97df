"""What a block of the persistent kernel leaves when it gives up, for people."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .schedule import Kind, Schedule, counter_name

STATUS_WORDS = 8
"""int32, of a block: reason, token, row, counter or slot, expected, seen, and two that are not used."""


def abort_diagnostics(status: NDArray[np.uint8], schedule: Schedule) -> str:
    """Return why blocks gave up, the first few of them; "" where none did.

    Args:
        status: what they left, int32 (multiprocessors, 8): reason, token, row, counter or slot, expected, seen.
        schedule: that they followed.
    """
    lines = []
    for sm, words in enumerate(status.view(np.int32).reshape(-1, STATUS_WORDS).tolist()):
        reason, token, row, what, expected, seen = words[:6]
        if not reason:
            continue
        plan = schedule.plan(sm)
        step = f"{Kind(plan[row].kind).name} of layer {plan[row].layer}" if 0 <= row < len(plan) else "its end"
        waited = {
            1: f"counter {counter_name(what)} to reach {expected}, it was {seen}",
            2: f"slot {what} of the ring to be full in pass {expected}",
            3: f"slot {what} of the ring to be empty in pass {expected}",
        }.get(reason, f"reason {reason}")
        lines.append(f"multiprocessor {sm} gave up at {step}, token {token}: it had waited for {waited}")
    more = f", and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more
