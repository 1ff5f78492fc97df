"""ONNX Runtime GenAI as an engine: models of its own builder, run by its own generator.

Only the hooks live at this level; importing them costs no native library (onnxruntime_genai is imported by `cmp_load`).
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

from .hooks import cmp_engine, cmp_load, cmp_probe

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
