"""Rotary position embedding as a config.json and as a GGUF file say it.

Linear: Chen et al. 2023, arXiv:2306.15595. Llama 3: factors by wavelength. LongRoPE: Ding et al. 2024,
arXiv:2402.13753.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.models.gguf_file import GGUFFile
from enginecmp.models.gguf_keys import GGUFKeys
from enginecmp.models.gguf_write import field

if TYPE_CHECKING:
    from enginecmp.models.huggingface.config_keys import ConfigKeys

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_ORIGINALS = (8192, 4096, 2048, 1024, 16_384, 32_768, 65_536)
"""Original contexts that are tried for a file that holds only what followed from one."""


class Llama3(msgspec.Struct, frozen=True):
    """Llama 3's scaling, under the names of the published configuration."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def factors(self, base: float, dimensions: int) -> list[float]:
        """Return what each rotary frequency is divided by, dimensions / 2 numbers.

        Source: transformers, modeling_rope_utils.py, _compute_llama3_parameters: frequencies between the two
        wavelengths are blended.
        """
        found = []
        for index in range(dimensions // 2):
            wavelength = 2 * math.pi * base ** (2 * index / dimensions)
            turns = self.original_max_position_embeddings / wavelength
            if turns > self.high_freq_factor:
                found.append(1.0)
            elif turns < self.low_freq_factor:
                found.append(self.factor)
            else:
                smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
                found.append(1 / ((1 - smooth) / self.factor + smooth))
        return found


class LongRope(msgspec.Struct, frozen=True):
    """LongRoPE: factors up to the original context and beyond it, and what cosine and sine are multiplied by."""

    short_factor: list[float]
    long_factor: list[float]
    attention_factor: float


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """One model's rotary embedding.

    Attributes:
        base: theta of dimension 0.
        dimensions: leading dimensions of a head that turn.
        head_dim: of a head.
        linear: positions are divided by this.
        llama3: scaling by wavelength, or None.
        longrope: two sets of factors, or None.
        original: context before it was stretched; 0 where it was not.
    """

    base: float
    dimensions: int
    head_dim: int
    linear: float = 1.0
    llama3: Llama3 | None = None
    longrope: LongRope | None = None
    original: int = 0

    def gguf_fields(self, arch: str) -> list[bytes]:
        """Return it as GGUF metadata; the factors are tensors: `gguf_tensors`."""
        fields = [
            field(f"{arch}.rope.dimension_count", "UINT32", self.dimensions),
            field(f"{arch}.rope.freq_base", "FLOAT32", self.base),
        ]
        if self.linear != 1:
            fields.append(field(f"{arch}.rope.scaling.type", "STRING", "linear"))
            fields.append(field(f"{arch}.rope.scaling.factor", "FLOAT32", self.linear))
        if self.original:
            fields.append(field(f"{arch}.rope.scaling.original_context_length", "UINT32", self.original))
        if self.longrope is not None:
            fields.append(field(f"{arch}.rope.scaling.attn_factor", "FLOAT32", self.longrope.attention_factor))
        return fields

    def gguf_tensors(self) -> dict[str, list[float]]:
        """Return the factors that GGUF keeps as tensors, by name."""
        if self.longrope is not None:
            return {LONG: self.longrope.long_factor, SHORT: self.longrope.short_factor}
        return {} if self.llama3 is None else {FREQS: self.llama3.factors(self.base, self.dimensions)}

    def config_json(self, kind: str) -> dict[str, Any]:
        """Return it as keys of a config.json, in the form that every version of transformers reads."""
        scaling: dict[str, Any] | None = None
        if self.longrope is not None:
            scaling = {"rope_type": "longrope", "type": "longrope", **msgspec.structs.asdict(self.longrope)}
        elif self.llama3 is not None:
            scaling = {"rope_type": "llama3", **msgspec.structs.asdict(self.llama3)}
        elif self.linear != 1:
            scaling = {"rope_type": "linear", "type": "linear", "factor": rounded(self.linear)}
        keys: dict[str, Any] = {"rope_theta": rounded(self.base), "rope_scaling": scaling}
        if kind == "phi3":
            keys["original_max_position_embeddings"] = self.original
            keys["partial_rotary_factor"] = self.dimensions / self.head_dim
        return keys


def rope_of_config(keys: ConfigKeys, kind: str, head_dim: int, context: int) -> Rope:
    """Read the rotary embedding of a config.json, old keys (`rope_scaling`) or new ones (`rope_parameters`).

    Raises:
        UnsupportedModel: a kind that is not implemented here.
    """
    scaling = keys.inner("rope_scaling", "rope_parameters")
    newer = keys.inner("rope_parameters")
    base = newer.number("rope_theta", default=keys.number("rope_theta", default=10_000.0))
    part = newer.number("partial_rotary_factor", default=keys.number("partial_rotary_factor", default=1.0))
    dimensions = round(head_dim * part)
    if dimensions % 2 or not 2 <= dimensions <= head_dim or (dimensions != head_dim and kind != "phi3"):
        keys.refuse("a rotary embedding of whole heads", f"partial_rotary_factor {part:g}")
    name = scaling.get("rope_type") or scaling.get("type") or "default"
    original = 0
    if kind == "phi3":
        inside = scaling.integer("original_max_position_embeddings", default=context)
        original = keys.integer("original_max_position_embeddings", default=inside)
    rope = Rope(base=base, dimensions=dimensions, head_dim=head_dim, original=original)
    if name == "default":
        return rope
    if name == "linear" and kind != "phi3":
        return msgspec.structs.replace(rope, linear=scaling.number("factor"))
    if name == "llama3" and kind != "phi3":
        llama3 = Llama3(
            scaling.number("factor"),
            scaling.number("low_freq_factor"),
            scaling.number("high_freq_factor"),
            scaling.integer("original_max_position_embeddings"),
        )
        if llama3.high_freq_factor <= llama3.low_freq_factor:
            keys.refuse("high_freq_factor above low_freq_factor", f"{llama3.high_freq_factor:g}")
        return msgspec.structs.replace(rope, llama3=llama3)
    if name in ("longrope", "su") and kind == "phi3":
        stretch = context / original
        # LongRoPE's own choice, as transformers makes it (_compute_longrope_parameters).
        magnitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 < original else 1.0
        longrope = LongRope(
            scaling.numbers("short_factor", dimensions // 2),
            scaling.numbers("long_factor", dimensions // 2),
            scaling.number("attention_factor", default=magnitude),
        )
        return msgspec.structs.replace(rope, longrope=longrope)
    keys.refuse("rope_type default, linear, llama3, or longrope of phi3", repr(name)[:60])


def rope_of_gguf(file: GGUFFile, keys: GGUFKeys, head_dim: int, context: int) -> Rope:
    """Read the rotary embedding of a GGUF file.

    Raises:
        UnsupportedModel: a kind that no config.json of its class can say.
    """
    phi3 = keys.architecture == "phi3"
    dimensions = keys.integer("rope.dimension_count", head_dim)
    if dimensions % 2 or dimensions > head_dim or (dimensions != head_dim and not phi3):
        keys.refuse("a rotary embedding of whole heads", f"rope.dimension_count {dimensions}")
    name = keys.text("rope.scaling.type", "linear")
    stretch = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    base = keys.number("rope.freq_base", 10_000.0, above=0)
    original = keys.integer("rope.scaling.original_context_length", context) if phi3 else 0
    rope = Rope(base=base, dimensions=dimensions, head_dim=head_dim, original=original)
    for tensor in (FREQS, LONG, SHORT):
        if tensor in file.tensors and file.tensors[tensor].shape != (dimensions // 2,):
            keys.refuse(f"{tensor} of shape ({dimensions // 2},)", f"{file.tensors[tensor].shape}")
    long_rope = [tensor in file.tensors for tensor in (LONG, SHORT)]
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    if all(long_rope) and phi3 and name in ("linear", "longrope") and stretch == 1:
        short, long = (file.float32(tensor).tolist() for tensor in (SHORT, LONG))
        return msgspec.structs.replace(rope, longrope=LongRope(short, long, magnitude))
    if any(long_rope) or name not in ("none", "linear") or magnitude != 1 or (phi3 and stretch != 1):
        keys.refuse("rotary embeddings as transformers has them for this model", f"rope.scaling.type '{name}'")
    linear = stretch if name == "linear" else 1.0
    if FREQS not in file.tensors:
        return msgspec.structs.replace(rope, linear=linear)
    factors = file.float32(FREQS).tolist()
    for candidate in _ORIGINALS:
        llama3 = Llama3(max(factors), 1.0, 4.0, candidate)
        found = llama3.factors(base, dimensions)
        if linear == 1 and all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(found, factors, strict=True)):
            return msgspec.structs.replace(rope, llama3=llama3)
    keys.refuse(f"{FREQS} that follows from Llama 3's scaling", "other factors")


def rounded(value: float) -> float:
    """Return the shortest number that is the same in float32: GGUF keeps 1e-05 as 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
