"""What a gate asks: against which reference, on which files and text, within which limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.plugins.plugin import Plugin
from enginecmp.types import ModelInfo
from enginecmp.wire.deadlines import Deadlines


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What every engine of a run is held against.

    Attributes:
        reference: plugin of the reference engine, run in float32 on `exact`.
        timed: the file being timed.
        exact: its float32 sibling; may be the same file.
        token_ids: the text to score, T >= 2 ids.
        logs: folder for the launches' logs.
        deadlines: of the launches.
        max_kl: largest mean KL, in nats, that passes on the timed file.
        max_nll_increase: largest mean increase of the negative log-likelihood, in nats, that passes on the timed
            file; None promises nothing.
        timed_only: ask only the second question, of settings of one engine; those that differ in nothing but threads
            are asked once, since threads change the order of sums and no more.
        loaded: told the label and the answer of every engine that was loaded; what it raises is that engine's failure.
    """

    reference: Plugin
    timed: ModelInfo
    exact: ModelInfo
    token_ids: Sequence[int]
    logs: Path
    deadlines: Deadlines
    max_kl: float
    max_nll_increase: float | None = None
    timed_only: bool = False
    loaded: Callable[[str, Mapping[str, Any]], None] | None = None
