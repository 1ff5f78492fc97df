"""Where the time goes: CUDA events around neighbouring launches, which are then launched one by one.

`phases` gives seconds and bytes a phase, `profile` seconds a component as the hook names them. Events between launches
cost a little themselves, and launches that would overlap otherwise do not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .decode.stream import SLOT
from .prefill.prefill import Program
from .recorder import PhaseTime

if TYPE_CHECKING:
    from .session import Session

COMPONENTS: Mapping[str, str] = {
    "embedding": "embedding",
    "norm": "norm",
    "attention": "attention",
    "ffn": "ffn",
    "lm_head": "lm_head",
    # Of a step: the norms and the rotation are in the kernels that need them.
    "qkv": "attention",
    "output": "attention",
    "next": "sampling",
    "begin": "sampling",
}
"""Which component a phase counts to."""


def phases(session: Session, token_ids: Sequence[int], n_tokens: int) -> list[PhaseTime]:
    """Run a prompt and steps after its first id, and return where the time went.

    Args:
        session: what it holds of a request is dropped.
        token_ids: the prompt.
        n_tokens: steps after the first id.

    Raises:
        ContextOverflow: prompt and steps do not fit.
    """
    session.check_room(token_ids, n_tokens + 1)
    session.begin_alone(len(token_ids) + n_tokens)
    record = session.recorder

    def run(program: Program) -> None:
        """Run a chunk, with an event where one component ends and the next begins."""
        record.start() if not started else record.mark()
        started.append(True)
        last = len(program.steps) - 1
        for place, (group, launch) in enumerate(program.steps):
            launch.launch()
            if place == last or program.steps[place + 1][0] != group:
                record.end("prefill", group)

    started: list[bool] = []
    step, ring = session.step, session.buffers.ring
    residual = session.run_prompt(token_ids, run)
    record.mark()
    step.begin(SLOT, len(token_ids) - 1, residual)
    record.end("prefill", "begin", session.model.head.nbytes)
    ring.wait(SLOT)
    each = {phase.name: phase.nbytes for phase in step.phases}
    for number in range(n_tokens):
        position = len(token_ids) + number
        each["attention"] = (position + 1) * session.cache.token_bytes // session.config.layers
        record.mark()
        step.enqueue(lambda name: record.end("decode", name, each[name]))
        ring.wait(SLOT)
    found = record.totals()
    step.end(SLOT)
    session.reset()
    return found


def profile(session: Session, token_ids: Sequence[int], n_tokens: int) -> dict[str, float]:
    """Return seconds per component of a prompt and `n_tokens` steps after its first id.

    Raises:
        ContextOverflow: prompt and steps do not fit.
    """
    seconds: dict[str, float] = {}
    for phase in phases(session, token_ids, n_tokens):
        component = COMPONENTS[phase.name]
        seconds[component] = seconds.get(component, 0.0) + phase.seconds
    return seconds


def table(found: Sequence[PhaseTime]) -> str:
    """Return phases as lines for people: part, phase, runs, microseconds a run, share, GB/s."""
    lines = [f"{'part':8} {'phase':10} {'runs':>6} {'us/run':>9} {'share':>6} {'GB/s':>8}"]
    for part in dict.fromkeys(phase.part for phase in found):
        whole = sum(phase.seconds for phase in found if phase.part == part) or 1.0
        for phase in (each for each in found if each.part == part):
            rate = f"{phase.gigabytes_per_second:8.1f}" if phase.nbytes else f"{'':8}"
            mean_us = phase.seconds / phase.count * 1e6
            share = phase.seconds / whole
            lines.append(f"{part:8} {phase.name:10} {phase.count:6d} {mean_us:9.1f} {share:6.1%} {rate}".rstrip())
    return "\n".join(lines)
