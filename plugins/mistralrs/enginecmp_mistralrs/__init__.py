"""enginecmp engine `mistralrs`: mistral.rs through its Python wheel.

The hooks, one module a concern: `facts` (what the engine is, whether it runs here), `loading` (a session),
`generation` (one request), `scoring` (teacher-forced distributions). `panics` turns native failures into errors.
Importing this package imports nothing native; `mistralrs` is imported by `cmp_load`.
"""

from .facts import cmp_engine, cmp_probe
from .generation import cmp_decode, cmp_metrics, cmp_prefill, cmp_prepare, cmp_reset
from .loading import cmp_load, cmp_unload
from .operations import cmp_operation
from .scoring import cmp_score

__all__ = [
    "cmp_decode",
    "cmp_engine",
    "cmp_load",
    "cmp_metrics",
    "cmp_operation",
    "cmp_prefill",
    "cmp_prepare",
    "cmp_probe",
    "cmp_reset",
    "cmp_score",
    "cmp_unload",
]
