"""What a user may set with `-o custom_cuda.KEY=VALUE`, and what the engine decides where nobody does."""

from __future__ import annotations

import msgspec

from enginecmp import EngineError, LoadOptions
from enginecmp.plugin_tools.engine_options import EngineOptions

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
        ahead: decoding steps that are queued on the device before the first of their ids is read; with the persistent
            kernel steps of a launch, and two launches are queued.
        decoder: "graph" launches a step as one CUDA graph, "launches" kernel by kernel; "persistent" is one
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
    given = EngineOptions("custom_cuda", options, Settings.__struct_fields__)
    if not 1 <= options.max_sequences <= MAX_SEQUENCES:
        msg = (
            f"custom_cuda: expected 1 to {MAX_SEQUENCES} sequences at once, got {options.max_sequences}; "
            f"choose a scenario with a concurrency of {MAX_SEQUENCES} or less"
        )
        raise EngineError(msg)
    exact = options.numerics == "exact"
    precise, kv = given.switch("precise", False), given.choice("kv", CACHE_TYPES)
    return Settings(
        precise=exact or precise,
        kv="f32" if exact else kv,
        overlap=given.switch("overlap", True),
        ahead=given.whole("ahead", 8, most=MOST_AHEAD),
        decoder=given.choice("decoder", DECODERS),
        prefill_chunk=given.whole("prefill_chunk", 512, most=MOST_PREFILL_CHUNK),
        gemm=given.choice("gemm", GEMMS),
    )
