"""What a variant of an operation may say in a scenario file, one struct an operation."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Layer = Literal["attn_q", "attn_kv", "attn_output", "ffn_up", "ffn_down", "lm_head"]
Method = Literal["naive", "parallel", "library"]
Function = Literal["add", "silu_mul", "rms_norm", "softmax", "rope"]

_MOST_VALUES = 1 << 28


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

    temperature: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
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
    rows: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1


class Elementwise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the small functions between the products, in float32, row by row.

    Attributes:
        function: "add": a + b; "silu_mul": silu(a) * b; "rms_norm": a over its root mean square, times the first row of
            b; "softmax": of each row of a; "rope": the heads of a turned by their row's position.
        rows: tokens in the batch, or rows of scores.
        length: values of a row.
        head_dim: values of a head; rope only.
        start: position of the first row; rope only.
        rope_base: theta of a head's first pair; pairs are (i, i + head_dim / 2).
        epsilon: added to the mean square; rms_norm only.
    """

    function: Function
    length: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    rows: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1
    head_dim: Annotated[int, msgspec.Meta(ge=2, le=1 << 16, multiple_of=2)] = 128
    start: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 512
    rope_base: Annotated[float, msgspec.Meta(gt=1, le=1e9)] = 10_000.0
    epsilon: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1e-5

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other.

        Raises:
            ValueError: more values than a machine holds, or no whole number of heads to turn.
        """
        if self.rows * self.length > _MOST_VALUES:
            msg = f"expected rows * length up to {_MOST_VALUES}, got {self.rows} * {self.length}"
            raise ValueError(msg)
        if self.function == "rope" and self.length % self.head_dim:
            msg = f"expected a length of whole heads of {self.head_dim}, got {self.length}"
            raise ValueError(msg)


class TransformerLayer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer of llama's shape in float32: norm, attention with rotary embedding, norm, gated feed-forward network.

    Attributes:
        rows: tokens in the batch, neighbours of one sequence.
        past: positions that the cache holds before them.
        width: of the hidden states.
        heads: of the queries.
        kv_heads: of keys and values.
        head_dim: values of a head.
        feed_forward: width between the matrices of the feed-forward network.
        rope_base: theta of a head's first pair; pairs are (i, i + head_dim / 2).
        epsilon: added to the mean square in both norms.
    """

    rows: Annotated[int, msgspec.Meta(ge=1, le=1 << 14)] = 1
    past: Annotated[int, msgspec.Meta(ge=0, le=1 << 17)] = 0
    width: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 5120
    heads: Annotated[int, msgspec.Meta(ge=1, le=1 << 10)] = 40
    kv_heads: Annotated[int, msgspec.Meta(ge=1, le=1 << 10)] = 8
    head_dim: Annotated[int, msgspec.Meta(ge=2, le=1 << 10, multiple_of=2)] = 128
    feed_forward: Annotated[int, msgspec.Meta(ge=1, le=1 << 18)] = 8192
    rope_base: Annotated[float, msgspec.Meta(gt=1, le=1e9)] = 10_000.0
    epsilon: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1e-5

    def __post_init__(self) -> None:
        """Refuse heads that do not fit each other.

        Raises:
            ValueError: the queries' heads are no multiple of the keys'.
        """
        if self.heads % self.kv_heads:
            msg = f"expected heads to be a multiple of kv_heads, got {self.heads} and {self.kv_heads}"
            raise ValueError(msg)


VARIANTS: dict[str, type[msgspec.Struct]] = {
    "tokenize": Tokenize,
    "sampling": Sampling,
    "matmul": Matmul,
    "elementwise": Elementwise,
    "layer": TransformerLayer,
}
