"""enginecmp: which LLM inference engine is faster here, by how much, how sure, and is it computing the same thing?

The names below are what an engine plugin needs; everything else is the host's own. They load lazily, because
`cmp --help` and every worker process import this package first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "enginecmp.hookspecs": ("Session", "hookimpl"),
    "enginecmp.types": (
        "ENDED",
        "GREEDY",
        "NO_ID",
        "Decoding",
        "EngineInfo",
        "Given",
        "Judge",
        "LoadOptions",
        "ModelInfo",
        "Preset",
        "Probe",
        "Request",
        "Sensor",
    ),
    "enginecmp.errors": (
        "CmpError",
        "ContextOverflow",
        "EngineError",
        "ModelError",
        "RequestFailed",
        "RoundTripError",
        "SensorAbsent",
        "UnknownOption",
        "UnsupportedModel",
        "did_you_mean",
    ),
    "enginecmp.format.measures": ("Measure", "MeasuredMetric"),
    "enginecmp.format.text": ("plain",),
    "enginecmp.models.end_tokens": ("end_tokens",),
    "enginecmp.models.gguf_file": ("GGUFFile", "TensorInfo", "read_gguf"),
    "enginecmp.models.gguf_keys": ("GGUFKeys",),
    "enginecmp.models.tokenizer": ("load_tokenizer",),
    "enginecmp.operands": ("layer_shapes", "layer_tensor", "matrices", "vectors"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from enginecmp.errors import (
        CmpError,
        ContextOverflow,
        EngineError,
        ModelError,
        RequestFailed,
        RoundTripError,
        SensorAbsent,
        UnknownOption,
        UnsupportedModel,
        did_you_mean,
    )
    from enginecmp.format.measures import Measure, MeasuredMetric
    from enginecmp.format.text import plain
    from enginecmp.hookspecs import Session, hookimpl
    from enginecmp.models.end_tokens import end_tokens
    from enginecmp.models.gguf_file import GGUFFile, TensorInfo, read_gguf
    from enginecmp.models.gguf_keys import GGUFKeys
    from enginecmp.models.tokenizer import load_tokenizer
    from enginecmp.operands import layer_shapes, layer_tensor, matrices, vectors
    from enginecmp.types import (
        ENDED,
        GREEDY,
        NO_ID,
        Decoding,
        EngineInfo,
        Given,
        Judge,
        LoadOptions,
        ModelInfo,
        Preset,
        Probe,
        Request,
        Sensor,
    )

__all__ = [
    "ENDED",
    "GREEDY",
    "NO_ID",
    "CmpError",
    "ContextOverflow",
    "Decoding",
    "EngineError",
    "EngineInfo",
    "GGUFFile",
    "GGUFKeys",
    "Given",
    "Judge",
    "LoadOptions",
    "Measure",
    "MeasuredMetric",
    "ModelError",
    "ModelInfo",
    "Preset",
    "Probe",
    "Request",
    "RequestFailed",
    "RoundTripError",
    "Sensor",
    "SensorAbsent",
    "Session",
    "TensorInfo",
    "UnknownOption",
    "UnsupportedModel",
    "__version__",
    "did_you_mean",
    "end_tokens",
    "hookimpl",
    "layer_shapes",
    "layer_tensor",
    "load_tokenizer",
    "matrices",
    "plain",
    "read_gguf",
    "vectors",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOME_OF:
        msg = f"module 'enginecmp' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
