"""What a user may set with `-o candle.KEY=VALUE`, and what must be set before Python starts."""

from __future__ import annotations

import msgspec

from enginecmp import LoadOptions
from enginecmp.plugin_tools.engine_options import EngineOptions

THREAD_VARIABLES = ("CANDLE_NUM_THREADS", "RAYON_NUM_THREADS")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a session that is not in `LoadOptions` itself.

    Attributes:
        prompt_chunk: most prompt tokens that are computed at once. Attention scores take heads x chunk x context
            float32 values.
    """

    prompt_chunk: int


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed.
    """
    given = EngineOptions("candle", options, Settings.__struct_fields__)
    return Settings(prompt_chunk=given.whole("prompt_chunk", 512))
