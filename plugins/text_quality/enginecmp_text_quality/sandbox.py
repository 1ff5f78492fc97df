"""Run code that a model wrote, locked up: `passes` is the door, `enginecmp_text_quality.jail` the room."""

from __future__ import annotations

import functools
import secrets
import subprocess
import sys
import tempfile

from enginecmp.errors import CmpError

WALL_SECONDS = 10.0
"""Until it must be over, its imports included."""

_STARTED = "jailed"


def passes(program: str, tests: str) -> bool:
    """Return whether a program and the tests behind it run to their end.

    It runs in a process of its own: no network, no file but what Python loaded before, no new process, 2 s of processor
    time, 512 MiB, nothing written, 10 s in all. A program that ends early, `sys.exit(0)` say, does not pass.

    Args:
        program: Python that a model wrote, its prompt in front.
        tests: Python that raises where the program is wrong.

    Raises:
        CmpError: this machine gives a process no network and no root of its own; nothing was run.
    """
    _require_jail()
    word = secrets.token_hex(16)
    return _run(f"{program}\n\n{tests}\n", word).split() == [_STARTED, word]


@functools.cache
def _require_jail() -> None:
    """Refuse machines without user namespaces before any foreign code runs.

    Raises:
        CmpError: with what allows them.
    """
    word = secrets.token_hex(16)
    said = _run("", word)
    if said.split() != [_STARTED, word]:
        why = said.strip()[:200] or "no answer"
        msg = (
            f"pass@1: expected a process without network, files and rights to run generated code in, got: {why}; allow "
            "user namespaces (sysctl kernel.unprivileged_userns_clone=1, or another container profile), or choose "
            "--tasks text"
        )
        raise CmpError(msg)


def _run(program: str, word: str) -> str:
    """Run a program in the jail and return what the jail said; the program's own prints go nowhere."""
    with tempfile.TemporaryDirectory(prefix="cmp-jail-") as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-m", "enginecmp_text_quality.jail", word, empty],
                input=program.encode("utf-8", "replace"),
                capture_output=True,
                timeout=WALL_SECONDS,
                env={"PATH": "", "LANG": "C.UTF-8"},
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _STARTED
    return done.stdout[-4096:].decode("utf-8", "replace")
