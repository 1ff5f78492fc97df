"""What a variant of an operation may say in a scenario file, one struct an operation."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Layer = Literal["attn_q", "attn_kv", "attn_output", "ffn_up", "ffn_down", "lm_head"]
Method = Literal["naive", "parallel", "library"]


class Tokenize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Text to ids, or ids to text.

    Attributes:
        direction: "encode" or "decode".
    """

    direction: Literal["encode", "decode"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One id drawn from a distribution.

    Attributes:
        temperature: 0 is greedy.
        top_k: only that many of the most likely ids; 0 is off.
        top_p: only the most likely ids that together have this probability; 1 is off.
    """

    temperature: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


class Matmul(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The product of a batch of tokens with one of the model's weight matrices, in float32.

    Attributes:
        layer: which matrix's shape.
        method: "naive": the plainest loop; "library": the best routine on one thread; "parallel": with all threads.
        rows: tokens in the batch.
    """

    layer: Layer
    method: Method
    rows: Annotated[int, msgspec.Meta(ge=1)] = 1


VARIANTS: dict[str, type[msgspec.Struct]] = {"tokenize": Tokenize, "sampling": Sampling, "matmul": Matmul}
