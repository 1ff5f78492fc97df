"""This engine's logits against llama.cpp's, an implementation that shares no line with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import ModelInfo, read_gguf
from enginecmp.models.synth import write_synth
from enginecmp.testing.tiny_models import changed_model
from enginecmp_pytorch_baseline import cmp_decode, cmp_prefill, cmp_score

EXACT = 1e-8  # mean KL in nats that two float32 implementations stay below (measured: 1e-12 to 3e-11)
POSITIONS = 64


def tokens(model: ModelInfo, n: int = POSITIONS) -> list[int]:
    ids: list[int] = np.random.default_rng(7).integers(0, model.vocabulary, n).tolist()
    return ids


@pytest.fixture
def agree(load: Any, llama_cpp_logits: Any, kl: Any) -> Callable[..., NDArray[np.float32]]:
    """Hold a model's logits against llama.cpp's and return them."""

    def check(model: ModelInfo, ids: list[int] | None = None, context_tokens: int = 256) -> NDArray[np.float32]:
        ids = tokens(model) if ids is None else ids
        ours: NDArray[np.float32] = cmp_score(load(model, context_tokens=context_tokens), ids)
        theirs = llama_cpp_logits(model, ids, context_tokens)
        assert ours.shape == theirs.shape == (len(ids), model.vocabulary)
        assert ours.dtype == np.float32
        assert kl(theirs, ours).mean() < EXACT
        assert (ours.argmax(axis=-1) == theirs.argmax(axis=-1)).all()
        return ours

    return check


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_logits_are_those_of_llama_cpp(architecture: str, tiny: Any, agree: Any) -> None:
    agree(tiny(architecture))


def test_gpt2_logits_are_those_of_llama_cpp_but_for_its_half_precision_gelu(
    tiny: Any, load: Any, llama_cpp_logits: Any, kl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU llama.cpp looks GELU up in a float16 table (ggml/src/ggml-cpu/vec.h, GGML_GELU_FP16)."""
    import torch

    tiny_gpt2 = tiny("gpt2")
    ids = tokens(tiny_gpt2)
    session = load(tiny_gpt2)
    theirs = llama_cpp_logits(tiny_gpt2, ids)
    ours = cmp_score(session, ids)
    assert EXACT < kl(theirs, ours).mean() < 1e-6
    assert (ours.argmax(axis=-1) == theirs.argmax(axis=-1)).all()

    gelu = torch.nn.functional.gelu

    def table_gelu(x: Any, approximate: str) -> Any:
        return gelu(x.half().float(), approximate=approximate).half().float()

    monkeypatch.setattr(torch.nn.functional, "gelu", table_gelu)
    assert kl(theirs, cmp_score(session, ids)).mean() < EXACT


def seen(base: NDArray[np.float32], changed: NDArray[np.float32], kl: Any) -> bool:
    """Whether a variant changes the distribution at all: else agreeing on it proves nothing."""
    return bool(kl(base, changed).mean() > 1e-4)


def weights(*shape: int, seed: int = 3) -> NDArray[np.float32]:
    spread = 1 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_epsilon_and_rope_base_come_from_the_metadata(architecture: str, tiny: Any, agree: Any, kl: Any) -> None:
    fields = {
        f"{architecture}.attention.layer_norm_rms_epsilon": ("FLOAT32", 0.05),
        f"{architecture}.rope.freq_base": ("FLOAT32", 500.0),
    }
    assert seen(agree(tiny(architecture)), agree(changed_model(tiny(architecture), fields)), kl)


def test_llama3_frequency_factors_are_applied(tiny: Any, agree: Any, kl: Any) -> None:
    factors = {"rope_freqs.weight": np.array([1, 1, 1.5, 2, 4, 8, 16, 32], np.float32)}
    assert seen(agree(tiny("llama")), agree(changed_model(tiny("llama"), tensors=factors)), kl)


def test_linear_position_scaling_is_applied(tiny: Any, agree: Any, kl: Any) -> None:
    fields = {"llama.rope.scaling.type": ("STRING", "linear"), "llama.rope.scaling.factor": ("FLOAT32", 4.0)}
    assert seen(agree(tiny("llama")), agree(changed_model(tiny("llama"), fields)), kl)


def test_without_an_output_tensor_the_embedding_is_the_head(tiny: Any, agree: Any, kl: Any) -> None:
    assert seen(agree(tiny("llama")), agree(changed_model(tiny("llama"), without={"output.weight"})), kl)


def test_head_length_comes_from_the_metadata(tiny: Any, agree: Any) -> None:
    fields = {
        "llama.attention.key_length": ("UINT32", 24),
        "llama.attention.value_length": ("UINT32", 24),
        "llama.rope.dimension_count": ("UINT32", 24),
    }
    tensors = {}
    for layer in range(2):  # 4 heads, 2 for keys and values, hidden state of 64
        tensors[f"blk.{layer}.attn_q.weight"] = weights(96, 64, seed=layer)
        tensors[f"blk.{layer}.attn_k.weight"] = weights(48, 64, seed=layer + 10)
        tensors[f"blk.{layer}.attn_v.weight"] = weights(48, 64, seed=layer + 20)
        tensors[f"blk.{layer}.attn_output.weight"] = weights(64, 96, seed=layer + 30)
    agree(changed_model(tiny("llama"), fields, tensors))


def test_optional_biases_are_added(tiny: Any, agree: Any, kl: Any) -> None:
    rows = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "ffn_gate": 128, "ffn_up": 128, "ffn_down": 64}
    tensors = {f"blk.1.{name}.bias": weights(n, seed=n) for name, n in rows.items()}
    assert seen(agree(tiny("llama")), agree(changed_model(tiny("llama"), tensors=tensors)), kl)


def test_partial_rotary_turns_only_the_first_dimensions(tiny: Any, agree: Any, kl: Any) -> None:
    fields = {"phi3.rope.dimension_count": ("UINT32", 8)}
    assert seen(agree(tiny("phi3")), agree(changed_model(tiny("phi3"), fields)), kl)


def test_longrope_takes_long_factors_beyond_the_original_context(tiny: Any, agree: Any, kl: Any) -> None:
    fields = {
        "phi3.rope.scaling.original_context_length": ("UINT32", 256),
        "phi3.rope.scaling.attn_factor": ("FLOAT32", 1.19),
    }
    tensors = {
        "rope_factors_short.weight": np.linspace(1.0, 1.5, 8, dtype=np.float32),
        "rope_factors_long.weight": np.linspace(1.0, 60.0, 8, dtype=np.float32),
    }
    model = changed_model(tiny("phi3"), fields, tensors)
    short, long = agree(model, context_tokens=256), agree(model, context_tokens=512)
    assert seen(agree(tiny("phi3")), short, kl)
    assert seen(short, long, kl)


def test_a_quantized_file_computes_what_its_dequantized_weights_say(
    tmp_path: Any, load: Any, kl: Any, tiny: Any
) -> None:
    quantized = write_synth(tmp_path / "q8_0.gguf", like="tiny-llama", quantization="Q8_0")
    file = read_gguf(quantized.path)
    assert file.tensors["blk.0.ffn_down.weight"].type == "Q8_0"
    tensors = {
        name: gguf.dequantize(file.raw(name), gguf.GGMLQuantizationType[tensor.type]).reshape(tensor.shape)
        for name, tensor in file.tensors.items()
    }
    ids = tokens(quantized)
    ours = cmp_score(load(quantized), ids)
    assert (ours == cmp_score(load(changed_model(tiny("llama"), tensors=tensors)), ids)).all()
    assert kl(cmp_score(load(tiny("llama")), ids), ours).mean() > 1e-6  # and not what the F32 file says


@pytest.mark.model
def test_real_smollm2_logits_are_those_of_llama_cpp(agree: Any, load: Any) -> None:
    from enginecmp.models.store import resolve

    model = resolve("smollm2-135m-instruct:f32", fetch=True)
    # "The capital of France is", then what the model itself makes of it: text it has an opinion on.
    prompt = [504, 3575, 282, 4649, 314]
    session = load(model)
    rest = POSITIONS - len(prompt)
    ids = [*prompt, cmp_prefill(session, prompt, rest), *cmp_decode(session, rest - 1)]
    assert len(ids) == POSITIONS
    agree(model, ids)
