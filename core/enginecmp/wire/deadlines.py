"""How long an engine may be silent before it counts as hung."""

from __future__ import annotations

import msgspec


class Deadlines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Longest time that each phase may take before the engine counts as hung, in seconds."""

    load_seconds: float = 300.0
    prefill_seconds: float = 120.0
    decode_seconds: float = 300.0
    score_seconds: float = 600.0
