"""What a variant of the measurement may say in a scenario file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

DENOISE, AUTOREGRESSIVE = "denoise", "autoregressive"


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a text is made.

    Attributes:
        decoding: "denoise", or "autoregressive": the same weights with a causal mask, one token after the other.
        steps: forward passes that denoise the whole output; 0 with "autoregressive", which has one for each token.
        block_tokens: positions that are denoised together, from left to right; 0 is the whole output.
        batch: texts that are made together.
    """

    decoding: Literal["denoise", "autoregressive"] = "denoise"
    steps: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 0
    block_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 0
    batch: Annotated[int, msgspec.Meta(ge=1, le=1 << 10)] = 1

    def __post_init__(self) -> None:
        """Refuse what nothing can mean.

        Raises:
            ValueError: no steps to denoise in, or some of what one token after the other does not have.
        """
        if self.decoding == DENOISE and self.steps < 1:
            msg = f'expected steps >= 1 with decoding = "denoise", got {self.steps}'
            raise ValueError(msg)
        if self.decoding == AUTOREGRESSIVE and (self.steps or self.block_tokens or self.batch != 1):
            msg = (
                'expected no steps, block_tokens or batch with decoding = "autoregressive", got '
                f"{self.steps}, {self.block_tokens} and {self.batch}; one text at a time has a forward pass a token"
            )
            raise ValueError(msg)


def variant_of(table: Mapping[str, Any]) -> Variant:
    """Return a variant of the scenario.

    Raises:
        ValueError: an unknown key, another type or a number that cannot be.
    """
    return msgspec.convert(dict(table), Variant)
