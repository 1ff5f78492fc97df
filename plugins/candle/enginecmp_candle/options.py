"""What a user may set with `-o candle.KEY=VALUE`, and what must be set before Python starts."""

from __future__ import annotations

import os

import msgspec

from enginecmp import EngineError, LoadOptions, UnknownOption, did_you_mean

THREAD_VARIABLES = ("CANDLE_NUM_THREADS", "RAYON_NUM_THREADS")
LARGEST = 2**31 - 1


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a session that is not in `LoadOptions` itself.

    Attributes:
        prompt_chunk: most prompt tokens that are computed at once. Attention scores take heads x chunk x context
            float32 values.
    """

    prompt_chunk: int = 512


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed.
    """
    for key in options.extra:
        if key not in Settings.__struct_fields__:
            msg = f"candle: unknown option '{key}'{did_you_mean(key, Settings.__struct_fields__)}"
            raise UnknownOption(msg)
    if "prompt_chunk" not in options.extra:
        return Settings()
    text = options.extra["prompt_chunk"]
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST:
        msg = f"candle: option prompt_chunk expects a whole number >= 1, got '{text}'; leave it out for 512"
        raise EngineError(msg)
    return Settings(prompt_chunk=int(text))


def check_threads(threads: int) -> None:
    """Refuse to load when the environment, which Candle reads once, says another number of threads.

    Raises:
        EngineError: with the line that mends it.
    """
    wrong = [name for name in THREAD_VARIABLES if os.environ.get(name) != str(threads)]
    if wrong:
        found = ", ".join(f"{name}={os.environ.get(name, '(unset)')}" for name in wrong)
        wanted = " ".join(f"{name}={threads}" for name in THREAD_VARIABLES)
        msg = f"candle: expected an environment for {threads} threads, got {found}; start Python with {wanted}"
        raise EngineError(msg)
