"""PyTorch as people first write it: an eager `nn.Module` over a GGUF file, and the reference of the equivalence gate.

Only the hooks live at this level; importing them costs no native library (torch is imported by `cmp_load`).
The README lists the decisions this engine makes.
"""

from enginecmp.plugin_tools.python_plugin import (
    cmp_decode,
    cmp_metrics,
    cmp_prefill,
    cmp_reset,
    cmp_score,
    cmp_unload,
)

from .hooks import (
    cmp_decoding,
    cmp_denoise,
    cmp_engine,
    cmp_load,
    cmp_operation,
    cmp_probe,
    cmp_profile,
)

__all__ = [
    "cmp_decode",
    "cmp_decoding",
    "cmp_denoise",
    "cmp_engine",
    "cmp_load",
    "cmp_metrics",
    "cmp_operation",
    "cmp_prefill",
    "cmp_probe",
    "cmp_profile",
    "cmp_reset",
    "cmp_score",
    "cmp_unload",
]
