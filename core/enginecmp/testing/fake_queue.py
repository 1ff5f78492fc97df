"""The fake engine without batching of its own: `CMP_PLUGINS=enginecmp.testing.fake_queue`, name `fake_queue`.

Requests in flight at once wait for each other in front of it. Options and faults are those of `fake_engine`.
"""

import msgspec

from enginecmp.hookspecs import hookimpl
from enginecmp.testing import fake_engine
from enginecmp.testing.fake_engine import (
    cmp_decode,
    cmp_load,
    cmp_metrics,
    cmp_prefill,
    cmp_probe,
    cmp_reset,
    cmp_score,
    cmp_unload,
    cmp_version,
)
from enginecmp.types import EngineInfo

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
    "cmp_version",
]


@hookimpl
def cmp_engine() -> EngineInfo:
    """State the facts of the fake engine, but one request at a time."""
    return msgspec.structs.replace(fake_engine.cmp_engine(), name="fake_queue", max_concurrency=1, operations=())
