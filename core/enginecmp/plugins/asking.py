"""Ask plugins for their facts, each in a process of its own with a deadline."""

from __future__ import annotations

from collections.abc import Sequence

from enginecmp.plugins.facts import MAX_ANSWER_BYTES, Answer, read_answer
from enginecmp.wire.asked import AskedProcess, NoAnswer

DEADLINE_SECONDS = 6.0


def ask(modules: Sequence[str]) -> list[Answer]:
    """Return what each plugin says of itself; all are asked at once, and one that hangs costs its own answer only."""
    asked: list[AskedProcess] = []
    try:
        for module in modules:
            asked.append(
                AskedProcess(
                    "enginecmp.plugins.describe", module, seconds=DEADLINE_SECONDS, most_bytes=MAX_ANSWER_BYTES
                )
            )
        return [_answer(each) for each in asked]
    finally:
        for each in asked:
            each.close()


def _answer(asked: AskedProcess) -> Answer:
    try:
        return read_answer(asked.answer())
    except NoAnswer as silent:
        if silent.late:
            return Answer(error=f"importing it {silent}; import what is large inside cmp_load")
        if str(silent).startswith("expected"):
            return Answer(error=f"its facts: {silent}")
        printed = f"; it printed: {silent.printed}" if silent.printed else ""
        return Answer(error=f"the process that imported it {silent} before it told its facts{printed}")
