"""Burn, as this plugin drives it, against transformer forwards written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import LoadOptions, ModelInfo, read_gguf
from enginecmp.models.ggml_types import GGML_TYPE_NUMBERS, GGML_TYPES
from enginecmp.models.quantize import FILE_TYPES
from enginecmp.models.synth import write_synth
from enginecmp.models.synth_shapes import SHAPES
from enginecmp_burn import cmp_score

ARCHITECTURES = ("llama", "qwen2", "phi3")
Array = NDArray[np.float64]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def logits_in_float64(path: str, token_ids: list[int]) -> Array:
    """Touvron et al. 2023 with grouped-query attention; rotary pairs as Su et al. 2021 (llama) or GPT-NeoX."""
    file = read_gguf(path)
    architecture = file.metadata["general.architecture"]

    def weight(name: str) -> Array:
        return file.float32(name).astype(np.float64)

    def number(key: str) -> Any:
        return file.metadata[f"{architecture}.{key}"]

    def linear(x: Array, name: str) -> Array:
        bias = weight(f"{name}.bias") if f"{name}.bias" in file.tensors else 0.0
        return np.asarray(x @ weight(f"{name}.weight").T + bias)

    def rms_norm(x: Array, name: str) -> Array:
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + number("attention.layer_norm_rms_epsilon"))
        return np.asarray(x / scale * weight(f"{name}.weight"))

    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    width = number("embedding_length") // heads
    length = len(token_ids)
    frequency = number("rope.freq_base") ** (-np.arange(0, width, 2) / width)  # (width / 2,)
    if "rope_freqs.weight" in file.tensors:
        frequency = frequency / weight("rope_freqs.weight")
    turn = np.exp(1j * np.outer(np.arange(length), frequency))[:, None, :]  # (T, 1, width / 2)

    def rope(x: Array) -> Array:  # (T, heads, width)
        if architecture == "llama":
            turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
            return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
        turned = (x[..., : width // 2] + 1j * x[..., width // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    x = weight("token_embd.weight")[token_ids]  # (T, hidden)
    causal = np.triu(np.full((length, length), -np.inf), 1)
    split = (heads * width, (heads + kv_heads) * width)
    for layer in range(number("block_count")):
        block = f"blk.{layer}."
        h = rms_norm(x, block + "attn_norm")
        if architecture == "phi3":
            q, k, v = np.split(linear(h, block + "attn_qkv"), split, axis=-1)
        else:
            q, k, v = (linear(h, f"{block}attn_{each}") for each in "qkv")
        q, k = rope(q.reshape(length, heads, width)), rope(k.reshape(length, kv_heads, width))
        k, v = (np.repeat(a, heads // kv_heads, axis=1) for a in (k, v.reshape(length, kv_heads, width)))
        attention = softmax(np.einsum("qhw,khw->hqk", q, k) / np.sqrt(width) + causal)
        x = x + linear(np.einsum("hqk,khw->qhw", attention, v).reshape(length, -1), block + "attn_output")
        h = rms_norm(x, block + "ffn_norm")
        if architecture == "phi3":
            gate, up = np.split(linear(h, block + "ffn_up"), 2, axis=-1)
        else:
            gate, up = linear(h, block + "ffn_gate"), linear(h, block + "ffn_up")
        x = x + linear(gate / (1 + np.exp(-gate)) * up, block + "ffn_down")
    head = "output" if "output.weight" in file.tensors else "token_embd"
    return linear(rms_norm(x, "output_norm"), head)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_every_position_has_the_distribution_of_float64(
    architecture: str, attention: str, tiny: Callable[..., ModelInfo], load: Any, token_ids: list[int], mean_kl: Any
) -> None:
    model = tiny(architecture)
    reference = logits_in_float64(model.path, token_ids)
    logits = cmp_score(load(model, extra={"attention": attention}), token_ids)
    assert logits.shape == reference.shape == (60, model.vocabulary)
    assert logits.dtype == np.float32
    assert mean_kl(reference, logits) < 1e-8
    np.testing.assert_allclose(logits, reference, atol=1e-4, rtol=0)


def test_the_frequency_factors_of_llama_3_are_applied(
    load: Any, token_ids: list[int], mean_kl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = msgspec.structs.replace(SHAPES["tiny-llama"], llama3_rope=True)
    monkeypatch.setitem(SHAPES, "tiny-llama3", shape)
    model = write_synth(tmp_path / "llama3.gguf", like="tiny-llama3")
    assert "rope_freqs.weight" in read_gguf(model.path).tensors
    reference = logits_in_float64(model.path, token_ids)
    assert mean_kl(reference, cmp_score(load(model), token_ids)) < 1e-8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("chunk", ["1", "7"])
def test_prefill_and_steps_agree(
    architecture: str, attention: str, chunk: str, tiny: Callable[..., ModelInfo], load: Any, token_ids: list[int]
) -> None:
    whole = cmp_score(load(tiny(architecture), extra={"attention": attention}), token_ids)
    # A chunk of 1 is what decoding does: one token at a time, no mask, keys from the cache.
    extra = {"attention": attention, "prompt_chunk": chunk}
    steps = cmp_score(load(tiny(architecture), extra=extra), token_ids)
    np.testing.assert_allclose(steps, whole, atol=1e-4, rtol=0)


@pytest.mark.model
def test_a_trained_model_has_the_distribution_of_the_reference_at_once_and_step_by_step(
    load: Any, mean_kl: Any
) -> None:
    reference_engine = pytest.importorskip("enginecmp_pytorch_baseline")
    from enginecmp.models.store import resolve

    model = resolve("smollm2-135m-instruct:f32", fetch=True)
    prompt = [504, 3575, 282, 4649, 314, 7042, 30, 216]
    options = LoadOptions(threads=1, context_tokens=16, numerics="exact")
    session = reference_engine.cmp_load(model=model, options=options)
    reference = reference_engine.cmp_score(session, prompt)
    reference_engine.cmp_unload(session)
    whole = cmp_score(load(model), prompt)
    steps = cmp_score(load(model, extra={"prompt_chunk": "1"}), prompt)
    assert mean_kl(reference, whole) < 1e-8
    assert mean_kl(reference, steps) < 1e-8
    np.testing.assert_allclose(steps, whole, atol=1e-4, rtol=0)


def test_prompts_beyond_the_size_where_burn_changes_its_attention_stay_exact(
    tiny: Callable[..., ModelInfo], load: Any, token_ids: list[int], mean_kl: Any
) -> None:
    # Above 256 K scores a head Burn goes over the keys in tiles.
    prompt = (token_ids * 14)[:800]
    scores = {}
    for attention in ("fused", "plain"):
        session = load(tiny(), context_tokens=800, extra={"attention": attention, "prompt_chunk": "800"})
        scores[attention] = cmp_score(session, prompt)
    assert mean_kl(scores["plain"], scores["fused"]) < 1e-8
    np.testing.assert_allclose(scores["fused"], scores["plain"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("quantization", [name for name in FILE_TYPES if name != "F32"])
def test_every_type_that_can_be_derived_computes_with_its_own_values(
    quantization: str, tiny: Callable[..., ModelInfo], load: Any, token_ids: list[int], mean_kl: Any
) -> None:
    model = tiny("llama", quantization)
    reference = logits_in_float64(model.path, token_ids)
    assert mean_kl(reference, cmp_score(load(model), token_ids)) < 1e-8


# Where a block has its float16 scales, and the factor of the second that centres random weights on zero: half of the
# largest quant (ggml's block layouts).
K_QUANTS = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
}


def random_blocks(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> bytes:
    """Return random weights of a K-quant with a standard deviation of 1 / sqrt(row length)."""
    import gguf

    number = GGML_TYPE_NUMBERS[kind]
    _, block, block_bytes = GGML_TYPES[number]
    at, minimum_at, centre = K_QUANTS[kind]
    rows = random.integers(0, 256, (shape[0], shape[1] // block, block_bytes), np.uint8)

    def scaled(scale: float) -> NDArray[np.uint8]:
        for offset, value in ((at, scale), (minimum_at, scale * centre)):
            if offset is not None:
                rows[..., offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        return rows.reshape(shape[0], -1)

    spread = gguf.dequantize(scaled(1e-3), gguf.GGMLQuantizationType(number)).std()
    return scaled(1e-3 / float(spread) / float(np.sqrt(shape[1]))).tobytes()


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_compute_with_their_own_values(
    kind: str,
    load: Any,
    rewrite: Any,
    token_ids: list[int],
    mean_kl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A block has 256 weights, so rows must be as long.
    wide = msgspec.structs.replace(SHAPES["tiny-llama"], hidden=256, head_dim=64, feed_forward=512)
    monkeypatch.setitem(SHAPES, "tiny-wide", wide)
    model = write_synth(tmp_path / "wide.gguf", like="tiny-wide")
    random = np.random.default_rng(0)
    tensors = {
        name: (kind, random_blocks(kind, each.shape, random))
        for name, each in read_gguf(model.path).tensors.items()
        if len(each.shape) == 2
    }
    model = rewrite(model, tensors=tensors)
    assert {each.type for each in read_gguf(model.path).tensors.values()} == {"F32", kind}
    reference = logits_in_float64(model.path, token_ids)
    assert reference.std() > 0.3
    assert mean_kl(reference, cmp_score(load(model), token_ids)) < 1e-8
