"""What a user may set with `-o custom_cuda.KEY=VALUE`, and what the engine decides where nobody does."""

from __future__ import annotations

import msgspec

from enginecmp import EngineError, LoadOptions, UnknownOption, did_you_mean

SWITCH = ("0", "1")
CACHE_TYPES = ("f16", "f32")
DECODERS = ("graph", "persistent", "launches")
GEMMS = ("auto", "own", "cublaslt")
MOST_AHEAD = 1024
MOST_PREFILL_CHUNK = 8192
MAX_SEQUENCES = 64
"""Most requests in flight: the largest bucket of a step."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a session that is not in `LoadOptions` itself.

    Attributes:
        precise: multiply weights by float32 activations, never by activations rounded to 8 bits.
        kv: type of keys and values in the cache, one of `CACHE_TYPES`.
        overlap: start a kernel while the one before it ends (programmatic dependent launch), so that it can fetch
            weights meanwhile.
        ahead: decoding steps that are queued on the device before the first of their ids is read; with the resident
            kernel steps of a launch, and two launches are queued.
        decoder: "graph" launches a step as one CUDA graph, "launches" kernel by kernel; "persistent" is one resident
            kernel that computes many steps of a sequence alone.
        prefill_chunk: most prompt tokens that are computed at once.
        gemm: what multiplies prompts where activations are not float32: "own" kernels, "cublaslt", or "auto": the
            library from Hopper on where it is installed, works and fits. A session's own settings say which it became.
    """

    precise: bool = False
    kv: str = "f16"
    overlap: bool = True
    ahead: int = 8
    decoder: str = "graph"
    prefill_chunk: int = 512
    gemm: str = "auto"


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    Numerics "exact" decide `precise` and `kv` whatever the user chose: the gate asks whether the model is computed
    right, not what rounding costs.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed, or more sequences than a step can carry.
    """
    extra = options.extra
    for key in extra:
        if key not in Settings.__struct_fields__:
            msg = f"custom_cuda: unknown option '{key}'{did_you_mean(key, Settings.__struct_fields__)}"
            raise UnknownOption(msg)
    if not 1 <= options.max_sequences <= MAX_SEQUENCES:
        msg = (
            f"custom_cuda: expected 1 to {MAX_SEQUENCES} sequences at once, came {options.max_sequences}; "
            f"pass --concurrency {MAX_SEQUENCES} or less"
        )
        raise EngineError(msg)
    exact = options.numerics == "exact"
    precise = _one_of(extra.get("precise", "0"), "precise", SWITCH) == "1"
    kv = _one_of(extra.get("kv", "f16"), "kv", CACHE_TYPES)
    return Settings(
        precise=exact or precise,
        kv="f32" if exact else kv,
        overlap=_one_of(extra.get("overlap", "1"), "overlap", SWITCH) == "1",
        ahead=_whole(extra.get("ahead", "8"), "ahead", MOST_AHEAD),
        decoder=_one_of(extra.get("decoder", "graph"), "decoder", DECODERS),
        prefill_chunk=_whole(extra.get("prefill_chunk", "512"), "prefill_chunk", MOST_PREFILL_CHUNK),
        gemm=_one_of(extra.get("gemm", "auto"), "gemm", GEMMS),
    )


def _whole(text: str, key: str, most: int) -> int:
    """Return a whole number from 1 to `most`."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 1 <= number <= most:
        default = getattr(Settings(), key)
        msg = (
            f"custom_cuda: option {key} expects a whole number from 1 to {most}, came '{text}'; "
            f"leave it out for {default}"
        )
        raise EngineError(msg)
    return number


def _one_of(text: str, key: str, allowed: tuple[str, ...]) -> str:
    """Return the value if it is allowed."""
    if text not in allowed:
        default = getattr(Settings(), key)
        msg = (
            f"custom_cuda: option {key} expects one of {', '.join(allowed)}, came '{text}'; "
            f"leave it out for {int(default) if isinstance(default, bool) else default}"
        )
        raise EngineError(msg)
    return text
