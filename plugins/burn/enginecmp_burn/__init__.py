"""Burn as an engine of enginecmp, through a Rust extension of its own (`_shim`).

The hooks. What the engine is and whether it runs here is in `facts`; what a file asks for is read by the host's
`read_decoder`; the model and its requests are in Rust, under `src/`. Importing this package imports nothing native:
`_shim` is imported by `cmp_probe` and `cmp_load`, after the processor has been checked for the instructions that it
is compiled to.
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

from .facts import ARCHITECTURES, cmp_engine, cmp_probe
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
    """Widen the weights to float32, one tensor at a time, and make room for `options.context_tokens` positions.

    Raises:
        UnsupportedModel: architecture, tensors or metadata that are not implemented.
        UnknownOption: a key in `options.extra` that does not exist.
        EngineError: the extension does not run here, or the environment says other threads than `options`.
    """
    settings = read_settings(options)
    probe = cmp_probe(options)
    if not probe.ok:
        msg = f"burn: {probe.reason}; {probe.fix}"
        raise EngineError(msg)
    check_thread_variables("burn", THREAD_VARIABLES, options.threads)
    from enginecmp import read_gguf
    from enginecmp.models.decoder import read_decoder

    from . import _shim

    file = read_gguf(model.path)
    config = read_decoder("burn", file, ARCHITECTURES, options.context_tokens)
    context_tokens, limit = config.position_limit(options.context_tokens)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    return _shim.load(
        config,
        config.rope.frequencies(file),
        shapes,
        file.float32,
        options.device,
        context_tokens,
        limit,
        settings.prompt_chunk,
        settings.attention == "fused",
    )
