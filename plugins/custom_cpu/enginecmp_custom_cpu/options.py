"""What a user may set with `-o custom_cpu.KEY=VALUE`, and what the plugin decides where nobody does."""

from __future__ import annotations

from pathlib import Path

import msgspec

from enginecmp import EngineError, LoadOptions
from enginecmp.plugin_tools.engine_options import EngineOptions

MAX_SEQUENCES = 256
"""Most requests in flight."""

KV_TYPES = ("f16", "q8_0", "f32")
SWITCH = ("off", "on")
PACKING = ("load", "first_use")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a session that is not in `LoadOptions` itself.

    Attributes:
        prompt_chunk: most prompt tokens that are computed at once; half as many beside requests that generate.
        kv_type: type of keys and values in the cache, one of `KV_TYPES`.
        sliding_window: positions that a token may look back on, itself included; 0 leaves it to the model. Where both
            have one, the smaller counts.
        context_shift: a full context forgets its older half and goes on.
        prefix_cache: prompts that begin alike share what they have in common, over requests and resets.
        draft: path of a smaller GGUF model with the same vocabulary that guesses ahead; empty for none.
        lookup: guess ahead what followed the last time that the last so many tokens were there; 0 for off.
        draft_tokens: most guesses that are checked at once.
        packing: when matrices are brought into the kernels' order: while loading, or each when it is first used.
    """

    prompt_chunk: int
    kv_type: str
    sliding_window: int
    context_shift: bool
    prefix_cache: bool
    draft: str
    lookup: int
    draft_tokens: int
    packing: str


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    Numerics "exact" decide the KV type whatever the user chose: the gate asks whether the model is computed right, not
    what a smaller cache costs.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed, or two that exclude each other.
    """
    given = EngineOptions("custom_cpu", options, Settings.__struct_fields__)
    kv_type = given.choice("kv_type", KV_TYPES)
    settings = Settings(
        prompt_chunk=given.whole("prompt_chunk", 512),
        kv_type="f32" if options.numerics == "exact" else kv_type,
        sliding_window=given.whole("sliding_window", 0, least=0),
        context_shift=given.choice("context_shift", SWITCH) == "on",
        prefix_cache=given.choice("prefix_cache", SWITCH) == "on",
        draft=options.extra.get("draft", ""),
        lookup=given.whole("lookup", 0, least=0, most=64),
        draft_tokens=given.whole("draft_tokens", 4, most=64),
        packing=given.choice("packing", PACKING),
    )
    if settings.draft and settings.lookup:
        msg = "custom_cpu: options draft and lookup are two ways to guess the same tokens, got both; leave out one"
        raise EngineError(msg)
    if settings.draft and not Path(settings.draft).is_file():
        msg = f"custom_cpu: option draft expects a GGUF file, got '{settings.draft}', which is none; name a path"
        raise EngineError(msg)
    if options.max_sequences > MAX_SEQUENCES:
        msg = (
            f"custom_cpu: expected at most {MAX_SEQUENCES} sequences at once, got {options.max_sequences}; "
            f"choose a scenario with a concurrency of {MAX_SEQUENCES} or less"
        )
        raise EngineError(msg)
    return settings
