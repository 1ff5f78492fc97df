"""What a user set with `-o ENGINE.KEY=VALUE`, typed, for plugins: each value in its range, or a refusal."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from enginecmp.errors import EngineError, UnknownOption, did_you_mean
from enginecmp.types import LoadOptions

LARGEST = 2**31 - 1
"""Most libraries take sizes as 32-bit integers."""

MOST_SECONDS = 1e6


class EngineOptions:
    """The keys of `LoadOptions.extra`.

    Args:
        engine: its name, for errors.
        options: what the host asks for.
        known: every key that the engine has.

    Raises:
        UnknownOption: another key is set.
    """

    def __init__(self, engine: str, options: LoadOptions, known: Collection[str]) -> None:
        self._engine = engine
        self._extra = options.extra
        for key in self._extra:
            if key not in known:
                msg = f"{engine}: unknown option '{key}'{did_you_mean(key, known)}"
                raise UnknownOption(msg)

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        """Return one of the allowed values; the first of them where neither the user nor `default` says another.

        Raises:
            UnknownOption: the value is not allowed.
        """
        default = allowed[0] if default is None else default
        value = self._extra.get(key, default)
        if value not in allowed:
            expected = f"one of {', '.join(allowed)}"
            step = nearest(value, allowed) or f"; without it: {default}"
            msg = f"{self._engine}: option {key} expects {expected}, got '{value}'{step}"
            raise UnknownOption(msg)
        return value

    def switch(self, key: str, default: bool) -> bool:
        """Return a switch written as 0 or 1.

        Raises:
            UnknownOption: it is neither.
        """
        return self.choice(key, ("0", "1"), "1" if default else "0") == "1"

    def whole(self, key: str, default: int, least: int = 1, most: int = LARGEST) -> int:
        """Return a whole number from `least` to `most`.

        Raises:
            EngineError: it is none.
        """
        text = self._extra.get(key, str(default))
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            expected = f">= {least}" if most == LARGEST else f"from {least} to {most}"
            msg = f"{self._engine}: option {key} expects a whole number {expected}, got '{text}'; without it: {default}"
            raise EngineError(msg)
        return number

    def seconds(self, key: str, default: float) -> float:
        """Return a time above 0.

        Raises:
            EngineError: it is none.
        """
        text = self._extra.get(key, str(default))
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number < MOST_SECONDS:
            msg = f"{self._engine}: option {key} expects seconds above 0, got '{text}'; without it: {default:g}"
            raise EngineError(msg)
        return number


def nearest(value: str, allowed: Collection[str]) -> str:
    """Return a hint at the allowed value that was probably meant; empty where none is near."""
    hint = did_you_mean(value, allowed)
    return hint if hint.startswith("; did") else ""


def check_thread_variables(engine: str, names: Sequence[str], threads: int) -> None:
    """Refuse to load when the environment, which native libraries read once, says another number of threads.

    Args:
        engine: its name, for errors.
        names: the variables that the library reads.
        threads: what they must say.

    Raises:
        EngineError: with the line that fixes it.
    """
    wrong = [name for name in names if os.environ.get(name) != str(threads)]
    if wrong:
        found = ", ".join(f"{name}={os.environ.get(name, '(unset)')}" for name in wrong)
        wanted = " ".join(f"{name}={threads}" for name in names)
        msg = f"{engine}: expected an environment for {threads} threads, got {found}; start Python with {wanted}"
        raise EngineError(msg)
