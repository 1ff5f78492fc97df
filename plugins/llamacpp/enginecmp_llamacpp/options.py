"""What a user may set with `-o llamacpp.KEY=VALUE`, and what the plugin decides where nobody does."""

from __future__ import annotations

from pathlib import Path

import msgspec

from enginecmp import EngineError, LoadOptions
from enginecmp.plugin_tools.engine_options import EngineOptions

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
FLASH_ATTENTION = ("auto", "on", "off")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a context that is not in `LoadOptions` itself.

    Attributes:
        n_batch: most tokens in one llama_decode call.
        n_ubatch: most tokens computed at once.
        kv_type: type of keys and values in the cache, one of `KV_TYPES`.
        flash_attn: one of `FLASH_ATTENTION`.
        n_gpu_layers: layers on the GPU; -1 is all of them.
        kv_unified: with several sequences, one cache for all of them instead of one each.
        repack: let ggml store weights in the order that this CPU's kernels want.
        draft: path of a smaller GGUF model with the same vocabulary that guesses ahead; empty for none.
        lookup: guess ahead what followed the last time that the last so many tokens were there; 0 for off.
        draft_tokens: most guesses that are checked at once.
        verbose: pass llama.cpp's whole log on to stderr, not only warnings and errors.
    """

    n_batch: int = 2048
    n_ubatch: int = 512
    kv_type: str = "f16"
    flash_attn: str = "auto"
    n_gpu_layers: int = 0
    kv_unified: bool = True
    repack: bool = True
    draft: str = ""
    lookup: int = 0
    draft_tokens: int = 4
    verbose: bool = False


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    Numerics "exact" decide KV type and flash attention whatever the user chose: the gate asks whether the model
    is computed right, not how much a smaller cache costs.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed, or two that exclude each other.
    """
    given = EngineOptions("llamacpp", options, Settings.__struct_fields__)
    cuda = options.device == "cuda"
    exact = options.numerics == "exact"
    n_batch = given.whole("n_batch", 2048)
    n_ubatch = given.whole("n_ubatch", min(512, n_batch))
    kv_type, flash_attn = given.choice("kv_type", KV_TYPES, "f16"), given.choice("flash_attn", FLASH_ATTENTION)
    settings = Settings(
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        kv_type="f32" if exact else kv_type,
        flash_attn="off" if exact else flash_attn,
        n_gpu_layers=given.whole("n_gpu_layers", -1 if cuda else 0, least=-1),
        kv_unified=given.switch("kv_unified", True),
        repack=given.switch("repack", True),
        draft=options.extra.get("draft", ""),
        lookup=given.whole("lookup", 0, least=0, most=64),
        draft_tokens=given.whole("draft_tokens", 4, most=64),
        verbose=given.switch("verbose", False),
    )
    if settings.n_ubatch > settings.n_batch:
        msg = f"llamacpp: expected n_ubatch <= n_batch ({n_batch}), got {n_ubatch}; lower it or raise n_batch"
        raise EngineError(msg)
    if settings.kv_type not in ("f32", "f16", "bf16") and settings.flash_attn == "off":
        msg = f"llamacpp: kv_type={settings.kv_type} needs flash attention; leave out flash_attn=off"
        raise EngineError(msg)
    if settings.n_gpu_layers != 0 and not cuda:
        msg = (
            f"llamacpp: n_gpu_layers={settings.n_gpu_layers} needs a GPU, the device is {options.device}; "
            "pass --device cuda"
        )
        raise EngineError(msg)
    if settings.draft and settings.lookup:
        msg = "llamacpp: options draft and lookup are two ways to guess the same tokens, got both; leave out one"
        raise EngineError(msg)
    if settings.draft and not Path(settings.draft).is_file():
        msg = f"llamacpp: option draft expects a GGUF file, got '{settings.draft}', which is none; name a path"
        raise EngineError(msg)
    if options.max_sequences > n_batch:
        msg = (
            f"llamacpp: {options.max_sequences} sequences need a batch of as many tokens, n_batch is {n_batch}; "
            f"pass -o llamacpp.n_batch={options.max_sequences} or more"
        )
        raise EngineError(msg)
    return settings
