"""What a user may set with `-o llamacpp.KEY=VALUE`, and what the plugin decides where nobody does."""

from __future__ import annotations

import msgspec

from enginecmp import EngineError, LoadOptions, UnknownOption, did_you_mean

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
FLASH_ATTENTION = ("auto", "on", "off")
SWITCH = ("0", "1")
LARGEST = 2**31 - 1


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
        verbose: pass llama.cpp's whole log on to stderr, not only warnings and errors.
    """

    n_batch: int = 2048
    n_ubatch: int = 512
    kv_type: str = "f16"
    flash_attn: str = "auto"
    n_gpu_layers: int = 0
    kv_unified: bool = True
    repack: bool = True
    verbose: bool = False


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    Numerics "exact" decide KV type and flash attention whatever the user chose: the gate asks whether the model
    is computed right, not how much a smaller cache costs.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed, or two that exclude each other.
    """
    extra = options.extra
    for key in extra:
        if key not in Settings.__struct_fields__:
            msg = f"llamacpp: unknown option '{key}'{did_you_mean(key, Settings.__struct_fields__)}"
            raise UnknownOption(msg)
    cuda = options.device == "cuda"
    exact = options.numerics == "exact"
    n_batch = _whole(extra.get("n_batch", "2048"), "n_batch", 1)
    n_ubatch = _whole(extra["n_ubatch"], "n_ubatch", 1) if "n_ubatch" in extra else min(512, n_batch)
    kv_type = _one_of(extra.get("kv_type", "f16"), "kv_type", KV_TYPES)
    flash_attn = _one_of(extra.get("flash_attn", "auto"), "flash_attn", FLASH_ATTENTION)
    settings = Settings(
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        kv_type="f32" if exact else kv_type,
        flash_attn="off" if exact else flash_attn,
        n_gpu_layers=_whole(extra.get("n_gpu_layers", "-1" if cuda else "0"), "n_gpu_layers", -1),
        kv_unified=_one_of(extra.get("kv_unified", "1"), "kv_unified", SWITCH) == "1",
        repack=_one_of(extra.get("repack", "1"), "repack", SWITCH) == "1",
        verbose=_one_of(extra.get("verbose", "0"), "verbose", SWITCH) == "1",
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
    if options.max_sequences > n_batch:
        msg = (
            f"llamacpp: {options.max_sequences} sequences need a batch of as many tokens, n_batch is {n_batch}; "
            f"pass -o llamacpp.n_batch={options.max_sequences} or more"
        )
        raise EngineError(msg)
    return settings


def _whole(text: str, key: str, least: int) -> int:
    """Return a whole number of at least `least`."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= LARGEST:
        msg = f"llamacpp: option {key} expects a whole number >= {least}, got '{text}'"
        raise EngineError(msg)
    return number


def _one_of(text: str, key: str, allowed: tuple[str, ...]) -> str:
    """Return the value if it is allowed."""
    if text not in allowed:
        msg = f"llamacpp: option {key} expects one of {', '.join(allowed)}, got '{text}'"
        raise EngineError(msg)
    return text
