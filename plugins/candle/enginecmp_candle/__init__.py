"""Candle as an engine of enginecmp, through a Rust extension of its own (`_shim`).

The hooks. What the engine is and whether it runs here is in `facts`; the model and its requests are in Rust, under
`src/`. Importing this package imports nothing native: `_shim` is imported by `cmp_probe` and `cmp_load`, after the
processor has been checked for the instructions that it is compiled to.
"""

from __future__ import annotations

from enginecmp import EngineError, LoadOptions, ModelInfo, hookimpl
from enginecmp.plugin_tools.engine_options import check_thread_variables
from enginecmp.plugin_tools.rust_plugin import (
    RustSession,
    cmp_decode,
    cmp_metrics,
    cmp_prefill,
    cmp_reset,
    cmp_score,
    cmp_unload,
)

from .facts import cmp_engine, cmp_probe
from .options import THREAD_VARIABLES, read_settings

__all__ = [
    "cmp_decode",
    "cmp_engine",
    "cmp_load",
    "cmp_metrics",
    "cmp_prefill",
    "cmp_probe",
    "cmp_reset",
    "cmp_score",
    "cmp_unload",
]


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> RustSession:
    """Load the weights and make room for the keys and values of `options.context_tokens` positions.

    Raises:
        UnsupportedModel: architecture, tensor type or metadata that is not implemented.
        UnknownOption: a key in `options.extra` that does not exist.
        EngineError: the extension does not run here, or the environment says other threads than `options`.
    """
    settings = read_settings(options)
    probe = cmp_probe(options)
    if not probe.ok:
        msg = f"candle: {probe.reason}; {probe.fix}"
        raise EngineError(msg)
    check_thread_variables("candle", THREAD_VARIABLES, options.threads)
    from . import _shim

    return _shim.load(model.path, options.device, options.context_tokens, settings.prompt_chunk)
