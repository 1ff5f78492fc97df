"""Import one plugin and write down its facts: `python -P -m enginecmp.plugins.describe ANSWER_FD MODULE`.

A process of its own: whatever a module does when it is imported (end the process, hang, close files, change the folder
or the signal handlers, start threads, print) it does here, and the host reads an answer or knows why there is none.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping

import msgspec

from enginecmp.errors import CmpError
from enginecmp.format.text import plain
from enginecmp.plugins.facts import Answer, Facts, usable_name
from enginecmp.plugins.manager import load_object, manager_with
from enginecmp.types import EngineInfo

_LIMITS = ((resource.RLIMIT_DATA, 4 << 30), (resource.RLIMIT_FSIZE, 64 << 20), (resource.RLIMIT_CORE, 0))
"""Bytes of memory and of each file written; an import that wants more is refused, not the machine brought down."""


def describe(module: str) -> bytes:
    """Return the encoded `Answer` of a plugin; whatever it does instead of answering becomes the error."""
    info = None
    try:
        hook = manager_with(load_object(module)).hook
        implemented = tuple(sorted(name for name, caller in vars(hook).items() if caller.get_hookimpls()))
        info = _info(hook.cmp_engine()) if "cmp_engine" in implemented else None
        scenarios = tuple(os.fsdecode(path) for paths in hook.cmp_scenarios() for path in paths)
        measures = tuple(measure for brought in hook.cmp_measures() for measure in brought)
        models = {name: made for brought in hook.cmp_models() for name, made in brought.items()}
        facts = Facts(hooks=implemented, info=info, scenarios=scenarios, measures=measures, models=models)
        return msgspec.msgpack.encode(Answer(facts=facts), enc_hook=_as_dict)
    except BaseException as error:  # a plugin may raise anything on import, SystemExit included
        return msgspec.msgpack.encode(Answer(error=told(error), name=usable_name(info.name if info else "")))


def _info(answers: list[object]) -> EngineInfo:
    if len(answers) == 1 and isinstance(answers[0], EngineInfo):
        return answers[0]
    got = type(answers[0]).__name__ if answers else "None"
    msg = f"cmp_engine: expected enginecmp.EngineInfo, got {got}"
    raise CmpError(msg)


def _as_dict(value: object) -> object:
    """Let every mapping be a dict, read-only ones too; anything else is a wrong type."""
    if isinstance(value, Mapping):
        return dict(value)
    msg = f"EngineInfo: expected text, numbers, tuples and dicts, got {type(value).__name__}"
    raise CmpError(msg)


def told(error: BaseException) -> str:
    """Return what an exception says, in one line; its text is the plugin's code too."""
    try:
        text = plain(str(error), 500) or "no message"
    except BaseException:
        text = "its message cannot be read"
    return text if isinstance(error, CmpError) else f"{plain(type(error).__name__, 80)}: {text}"


def main(arguments: list[str]) -> None:
    """Answer, and end at once: what the plugin left running or registered for the end has no say."""
    for kind, most in _LIMITS:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    answer = describe(arguments[1])
    written = os.pwrite(int(arguments[0]), answer, 0)
    os._exit(0 if written == len(answer) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
