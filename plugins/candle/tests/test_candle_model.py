"""What only this engine does with a file: types, pieces, metadata; the rest is in `../../rust_shim/tests`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginecmp import ModelInfo, UnsupportedModel, read_gguf
from enginecmp.gate.divergence import divergence
from enginecmp.testing import float64
from enginecmp.testing.tiny_models import TOKEN_IDS, Fields, changed_model
from enginecmp_candle import cmp_engine, cmp_metrics, cmp_score

Tiny = Callable[..., ModelInfo]
EXACT = 1e-8


def test_the_version_is_the_one_that_is_compiled_in() -> None:
    lock = tomllib.loads((Path(__file__).parents[2] / "Cargo.lock").read_text())
    versions = {package["name"]: package["version"] for package in lock["package"]}
    assert cmp_engine().version == versions["candle-core"] == versions["candle-nn"]


# A piece of 1 is what decoding does: one token at a time, no mask, keys from the cache.
@pytest.mark.parametrize("chunk", ["1", "7"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_a_prompt_in_pieces_has_the_distribution_of_float64(
    architecture: str, chunk: str, tiny: Tiny, load: Any
) -> None:
    model = tiny(architecture)
    logits = cmp_score(load(model, extra={"prompt_chunk": chunk}), TOKEN_IDS)
    assert logits.dtype == np.float32
    assert divergence(float64.logits(model.path, TOKEN_IDS), logits).mean_kl < EXACT


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_matrices_of_16_bits_lose_nothing(kind: str, tiny: Tiny, load: Any) -> None:
    model = tiny("llama", kind)
    assert divergence(float64.logits(model.path, TOKEN_IDS), cmp_score(load(model), TOKEN_IDS)).mean_kl < EXACT


@pytest.mark.parametrize(("kind", "widened"), [("F32", False), ("Q8_0", False), ("F16", True)])
def test_weights_bytes_are_what_lies_in_memory(kind: str, widened: bool, tiny: Tiny, load: Any) -> None:
    model = tiny("llama", kind)
    wanted = sum(
        4 * tensor.shape[0] * tensor.shape[1] if widened and len(tensor.shape) == 2 else tensor.nbytes
        for tensor in read_gguf(model.path).tensors.values()
    )
    assert cmp_metrics(load(model))["weights_bytes"] == wanted


@pytest.mark.parametrize(
    ("fields", "without", "message"),
    [
        ({"llama.expert_count": ("UINT32", 8)}, "", r"got llama\.expert_count = U32\(8\)"),
        ({"llama.rope.scaling.type": ("STRING", "yarn")}, "", "got 'yarn'"),
        ({"llama.attention.head_count_kv": ("UINT32", 3)}, "", "heads to be a multiple of kv heads, got 4 and 3"),
        ({}, "blk.1.attn_q.weight", r"a tensor blk\.1\.attn_q\.weight, got none"),
        ({"llama.embedding_length": ("UINT32", 128)}, "", r"token_embd.weight of shape \[\d+, 128\]"),
    ],
)
def test_a_file_that_asks_for_more_than_is_implemented_is_refused(
    fields: Fields, without: str, message: str, tiny: Tiny, load: Any
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load(changed_model(tiny(), fields, without=[without]))
