"""What a user may set with `-o burn.KEY=VALUE`, and what must be set before Python starts."""

from __future__ import annotations

import msgspec

from enginecmp import LoadOptions
from enginecmp.plugin_tools.engine_options import EngineOptions

THREAD_VARIABLES = ("RAYON_NUM_THREADS",)
ATTENTION = ("fused", "plain")


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
    given = EngineOptions("burn", options, Settings.__struct_fields__)
    return Settings(
        prompt_chunk=given.whole("prompt_chunk", 512),
        # On a GPU Burn's attention chooses among kernels that have not been tried with shared key heads.
        attention=given.choice("attention", ATTENTION, "fused" if options.device == "cpu" else "plain"),
    )
