"""What a user may set with `-o burn.KEY=VALUE`, and what must be set before Python starts."""

from __future__ import annotations

import os

import msgspec

from enginecmp import EngineError, LoadOptions, UnknownOption, did_you_mean

THREAD_VARIABLE = "RAYON_NUM_THREADS"
ATTENTION = ("fused", "plain")
LARGEST = 2**31 - 1


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a session that is not in `LoadOptions` itself.

    Attributes:
        prompt_chunk: most prompt tokens that are computed at once.
        attention: of prompts: "fused" is Burn's own operation, "plain" is product, mask, softmax and product, with a
            matrix of scores of heads x chunk x context float32 values.
    """

    prompt_chunk: int
    attention: str


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed.
    """
    for key in options.extra:
        if key not in Settings.__struct_fields__:
            msg = f"burn: unknown option '{key}'{did_you_mean(key, Settings.__struct_fields__)}"
            raise UnknownOption(msg)
    chunk = options.extra.get("prompt_chunk", "512")
    if not chunk.isdecimal() or not 1 <= int(chunk) <= LARGEST:
        msg = f"burn: option prompt_chunk expects a whole number >= 1, got '{chunk}'; leave it out for 512"
        raise EngineError(msg)
    # On a GPU Burn's attention chooses among kernels that have not been tried with shared key heads.
    attention = options.extra.get("attention", "fused" if options.device == "cpu" else "plain")
    if attention not in ATTENTION:
        near = did_you_mean(attention, ATTENTION)
        msg = f"burn: option attention expects {' or '.join(ATTENTION)}, got '{attention}'{near}"
        raise EngineError(msg)
    return Settings(prompt_chunk=int(chunk), attention=attention)


def check_threads(threads: int) -> None:
    """Refuse to load when the environment, which Burn's thread pool reads once, says another number of threads.

    Raises:
        EngineError: with the line that mends it.
    """
    found = os.environ.get(THREAD_VARIABLE)
    if found != str(threads):
        msg = (
            f"burn: expected an environment for {threads} threads, got {THREAD_VARIABLE}={found or '(unset)'}; "
            f"start Python with {THREAD_VARIABLE}={threads}"
        )
        raise EngineError(msg)
