"""Synthesized models: the same bytes from the same seed, llama.cpp loads them, and every part shows in the logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp.errors import UsageError
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.info import shape_of
from enginecmp.models.synth import write_synth
from enginecmp.models.synth_shapes import LLAMA32_ROPE, SHAPES, tensors_of

TINY = [name for name, shape in SHAPES.items() if shape.tiny]
PROMPT = [int(token) for token in np.random.default_rng(3).integers(0, 300, 48)]


@pytest.fixture(scope="module", autouse=True)
def llama_backend() -> None:
    llama_cpp.llama_backend_init()


def llama_logits(path: str, prompt: list[int]) -> NDArray[np.float32]:
    """Return llama.cpp's logits at every position, shape (T, vocabulary), with a float32 KV cache."""
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    assert model, f"llama.cpp refused {path}"
    parameters: Any = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = 128, 1, 1
    parameters.type_k = parameters.type_v = 0
    parameters.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, parameters)
    batch = llama_cpp.llama_batch_init(128, 0, 1)
    try:
        batch.n_tokens = len(prompt)
        for index, token in enumerate(prompt):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.logits[index] = 1, 1
            batch.seq_id[index][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, index), (vocabulary,)).copy()
            for index in range(len(prompt))
        ]
        return np.array(rows)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
@pytest.mark.parametrize("like", TINY)
def test_llama_cpp_loads_it_and_its_logits_are_neither_flat_nor_certain(
    like: str, quantization: str, tmp_path: Path
) -> None:
    model = write_synth(tmp_path / "model.gguf", like, quantization, seed=0)
    logits = llama_logits(model.path, PROMPT)
    assert logits.shape == (len(PROMPT), model.vocabulary)
    assert np.isfinite(logits).all()
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    assert 1 < entropy.mean() < math.log(model.vocabulary) - 1
    assert len(set(logits.argmax(axis=1))) > len(PROMPT) / 3
    repeats = (logits.argmax(axis=1) == PROMPT).mean()
    assert repeats < 0.5, "the model mostly repeats its input"


@pytest.mark.parametrize("like", TINY)
def test_the_first_token_shows_in_the_last_logits(like: str, tmp_path: Path) -> None:
    model = write_synth(tmp_path / "model.gguf", like)
    last = llama_logits(model.path, PROMPT)[-1]
    other = llama_logits(model.path, [PROMPT[0] + 1, *PROMPT[1:]])[-1]
    assert np.abs(last - other).max() > 1e-2  # otherwise a broken attention would pass every comparison


@pytest.mark.parametrize("like", TINY)
def test_tiny_models_are_under_a_megabyte(like: str, tmp_path: Path) -> None:
    assert write_synth(tmp_path / "model.gguf", like).bytes < 1_000_000


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path: Path) -> None:
    first = write_synth(tmp_path / "a.gguf", "tiny-llama", seed=5)
    again = write_synth(tmp_path / "b.gguf", "tiny-llama", seed=5)
    other = write_synth(tmp_path / "c.gguf", "tiny-llama", seed=6)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert first.sha256 == again.sha256 != other.sha256


def test_layers_can_be_chosen(tmp_path: Path) -> None:
    model = write_synth(tmp_path / "model.gguf", "tiny-qwen2", layers=3)
    shape = shape_of(read_gguf(model.path))
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (3, 4, 2, 16)


def test_gguf_py_reads_the_whole_file(tmp_path: Path) -> None:
    write_synth(tmp_path / "model.gguf", "tiny-gpt2", "Q8_0")
    reader = gguf.GGUFReader(str(tmp_path / "model.gguf"))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_qkv.weight"] == "Q8_0"
    assert types["position_embd.weight"] == "F32"
    assert types["blk.0.attn_qkv.bias"] == "F32"


# Weights of the published models (their own model cards or configurations), rounded as published.
PUBLISHED_PARAMETERS = {
    "llama-3.2-1b": 1.236e9,
    "llama-3.2-3b": 3.213e9,
    "qwen2.5-0.5b": 0.494e9,
    "phi-3-mini": 3.821e9,
    "gpt-2-small": 0.1244e9,
    "mistral-7b": 7.24e9,  # v0.2: 32000 tokens, no sliding window
}


@pytest.mark.parametrize("like", PUBLISHED_PARAMETERS)
def test_large_shapes_have_the_published_number_of_parameters(like: str) -> None:
    count = sum(math.prod(tensor.shape) for tensor in tensors_of(SHAPES[like]))
    assert count == pytest.approx(PUBLISHED_PARAMETERS[like], rel=2e-3)


def test_llama3_rope_factors_follow_the_published_rule() -> None:
    """Wavelengths under 8192/4 keep their frequency, over 8192 are divided by 32, the rest lie between."""
    shape = SHAPES["llama-3.2-1b"]
    factors = LLAMA32_ROPE.factors(shape.rope_base, shape.head_dim)
    assert len(factors) == 32
    wavelengths = [2 * math.pi * 500_000 ** (2 * index / 64) for index in range(32)]
    for wavelength, factor in zip(wavelengths, factors, strict=True):
        if wavelength < 2048:
            assert factor == 1
        elif wavelength > 8192:
            assert factor == 32
        else:
            assert 1 < factor < 32
    assert factors == sorted(factors)
    # What transformers 5.24.0 divides by (modeling_rope_utils, "llama3"), given Llama 3.2's configuration.
    assert factors[15:18] == pytest.approx([1.65133, 3.29226, 9.66673], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"like": "tiny-lama"}, "did you mean 'tiny-llama'"),
        ({"like": "tiny-llama", "quantization": "q8"}, "expected a known quantization, got 'Q8'"),
        ({"like": "tiny-llama", "layers": 0}, "layers >= 1"),
        ({"like": "tiny-llama", "seed": -1}, "seed >= 0"),
    ],
)
def test_wrong_arguments_are_usage_errors_and_write_nothing(
    arguments: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=fault):
        write_synth(tmp_path / "model.gguf", **arguments)
    assert not list(tmp_path.iterdir())
