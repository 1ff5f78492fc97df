"""What only this engine does with a file: types, attention, metadata; the rest is in `../../rust_shim/tests`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import EngineError, GGUFFile, LoadOptions, ModelError, ModelInfo, UnsupportedModel, read_gguf
from enginecmp.gate.divergence import divergence
from enginecmp.testing import float64
from enginecmp.testing.tiny_models import QUANTIZATIONS, TOKEN_IDS, Fields, changed_model
from enginecmp_burn import cmp_engine, cmp_metrics, cmp_score
from enginecmp_burn.options import read_settings

Tiny = Callable[..., ModelInfo]
EXACT = 1e-8


def test_the_version_is_the_one_that_is_compiled_in() -> None:
    lock = tomllib.loads((Path(__file__).parents[2] / "Cargo.lock").read_text())
    versions = {package["name"]: package["version"] for package in lock["package"]}
    assert cmp_engine().version == versions["burn"] == versions["burn-flex"]


def test_attention_is_fused_where_that_was_tried() -> None:
    assert read_settings(LoadOptions()).attention == "fused"
    assert read_settings(LoadOptions(device="cuda")).attention == "plain"
    assert read_settings(LoadOptions(device="cuda", extra={"attention": "fused"})).attention == "fused"
    with pytest.raises(
        EngineError, match=r"attention expects one of fused, plain, got 'fussed'; did you mean 'fused'\?"
    ):
        read_settings(LoadOptions(extra={"attention": "fussed"}))


# A piece of 1 is what decoding does: one token at a time, no mask, keys from the cache.
@pytest.mark.parametrize("chunk", ["1", "7", "512"])
@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_a_prompt_in_pieces_has_the_distribution_of_float64(
    architecture: str, attention: str, chunk: str, tiny: Tiny, load: Any
) -> None:
    model = tiny(architecture)
    logits = cmp_score(load(model, extra={"attention": attention, "prompt_chunk": chunk}), TOKEN_IDS)
    assert logits.dtype == np.float32
    assert divergence(float64.logits(model.path, TOKEN_IDS), logits).mean_kl < EXACT


def test_prompts_beyond_the_size_where_burn_changes_its_attention_stay_exact(tiny: Tiny, load: Any) -> None:
    # Above 256 K scores a head Burn goes over the keys in tiles.
    prompt = (TOKEN_IDS * 14)[:800]
    wanted = float64.logits(tiny().path, prompt)
    for attention in ("fused", "plain"):
        session = load(tiny(), context_tokens=800, extra={"attention": attention, "prompt_chunk": "800"})
        assert divergence(wanted, cmp_score(session, prompt)).mean_kl < EXACT


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_every_type_is_computed_with_its_own_values(kind: str, tiny: Tiny, load: Any) -> None:
    model = tiny("llama", kind)
    assert divergence(float64.logits(model.path, TOKEN_IDS), cmp_score(load(model), TOKEN_IDS)).mean_kl < EXACT


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "F16"])
def test_weights_bytes_are_those_of_float32(kind: str, tiny: Tiny, load: Any) -> None:
    model = tiny("llama", kind)
    wanted = sum(4 * math.prod(tensor.shape) for tensor in read_gguf(model.path).tensors.values())
    assert cmp_metrics(load(model))["weights_bytes"] == wanted


@pytest.mark.parametrize(
    ("fields", "without", "message"),
    [
        ({"llama.expert_count": ("UINT32", 8)}, "", r"got llama\.expert_count = 8"),
        ({"llama.rope.scaling.type": ("STRING", "yarn")}, "", "got 'yarn'"),
        ({"llama.attention.head_count_kv": ("UINT32", 3)}, "", "heads to be a multiple of kv heads, got 4 and 3"),
        ({}, "blk.1.attn_q.weight", r"a tensor blk\.1\.attn_q\.weight, got none"),
        ({"llama.embedding_length": ("UINT32", 128)}, "", r"token_embd.weight of shape \[\d+, 128\]"),
        ({"llama.attention.value_length": ("UINT32", 8)}, "", "value_length to equal key_length, got 8 and 16"),
        ({"llama.rope.dimension_count": ("UINT32", 18)}, "", "an even rope.dimension_count up to 16, got 18"),
        ({"llama.attention.causal": ("BOOL", False)}, "", r"causal attention, got llama\.attention\.causal = false"),
        ({"llama.block_count": ("UINT32", 1)}, "", r"only tensors that are implemented here, got blk\.1\.attn_k"),
    ],
)
def test_a_file_that_asks_for_more_than_is_implemented_is_refused(
    fields: Fields, without: str, message: str, tiny: Tiny, load: Any
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load(changed_model(tiny(), fields, without=[without]))


def test_what_reading_a_tensor_raises_is_what_the_caller_sees(
    tiny: Tiny, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(self: GGUFFile, name: str) -> NDArray[np.float32]:
        msg = f"{name} is on a broken disk"
        raise ModelError(msg)

    monkeypatch.setattr(GGUFFile, "float32", unreadable)
    with pytest.raises(ModelError, match=r"token_embd.weight is on a broken disk"):
        load(tiny())


def test_a_panic_in_burn_is_an_error_of_one_line(tiny: Tiny, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GGUFFile, "float32", lambda self, name: np.zeros(3, np.float32))
    with pytest.raises(EngineError, match=r"burn: panicked while .* for input of size 3") as raised:
        load(tiny())
    assert "\n" not in str(raised.value)
