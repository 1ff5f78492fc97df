"""What a gate asks: against which reference, on which files and text, within which limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.plugins.plugin import Plugin
from enginecmp.types import ModelInfo
from enginecmp.wire.deadlines import Deadlines

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
        mask_id: of a diffusion model: half of the text is masked, and asked is what stands there; None for a model that
            predicts the next token at every position.
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
    mask_id: int | None = None
    loaded: Callable[[str, Mapping[str, Any]], None] | None = None

    @property
    def masked(self) -> list[int]:
        """Positions that are masked, of every text of this length the same; none of a model that predicts the next."""
        if self.mask_id is None:
            return []
        import numpy as np

        positions = np.random.default_rng(0).permutation(len(self.token_ids))
        return sorted(positions[: len(self.token_ids) // 2].tolist())

    @property
    def asked_ids(self) -> Sequence[int]:
        """The text as engines get it, masks among it."""
        if self.mask_id is None:
            return self.token_ids
        masked = set(self.masked)
        return [self.mask_id if at in masked else token for at, token in enumerate(self.token_ids)]

    @property
    def positions(self) -> int:
        """How many positions are compared."""
        return len(self.token_ids) if self.mask_id is None else len(self.token_ids) // 2

    def compared(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rows that are compared, (positions, vocabulary), of logits at every position.

        A matrix of another length, which is wrong, stays as it is.
        """
        return logits if self.mask_id is None or len(logits) != len(self.token_ids) else logits[self.masked]

    @property
    def told_ids(self) -> Sequence[int]:
        """The ids that the compared rows are about: row t is the distribution of the one at t + 1."""
        if self.mask_id is None:
            return self.token_ids
        return [self.mask_id, *(self.token_ids[at] for at in self.masked)]
