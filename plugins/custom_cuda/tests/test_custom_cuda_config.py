"""What is read from a file, and what is refused: with one line that says what would fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginecmp import UnsupportedModel, read_gguf
from enginecmp.models.decoder import RopeConfig
from enginecmp.testing.tiny_models import changed_model, tiny_model
from enginecmp_custom_cuda.config import ModelConfig, read_config
from enginecmp_custom_cuda.weights.kinds import encode
from enginecmp_custom_cuda.weights.plan import ModelPlan, plan_model

Fields = Mapping[str, tuple[str, Any]]

HEADS_OF_16: Fields = {
    "llama.attention.key_length": ("UINT32", 16),
    "llama.attention.value_length": ("UINT32", 16),
}


def read(
    folder: Path,
    architecture: str = "llama",
    fields: Mapping[str, tuple[str, Any]] = {},
    tensors: Mapping[str, Any] = {},
    without: Collection[str] = (),
    context_tokens: int = 64,
) -> tuple[ModelConfig, ModelPlan]:
    """Read a changed tiny model as far as loading does before it allocates."""
    file = read_gguf(changed_model(tiny_model(folder, architecture), fields, tensors, without).path)
    config = read_config(file, context_tokens)
    return config, plan_model(file, config, context_tokens)


def rope(base: float, dimensions: int, interleaved: bool, position_scale: float, magnitude: float = 1.0) -> RopeConfig:
    """The configuration of a file without factors."""
    return RopeConfig(
        base=base,
        dimensions=dimensions,
        interleaved=interleaved,
        position_scale=position_scale,
        magnitude=magnitude,
        factors=None,
    )


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def in_kind(kind: str, *shape: int) -> Any:
    return kind, shape, encode(zeros(*shape), kind).tobytes()


@pytest.mark.parametrize(("architecture", "interleaved"), [("llama", True), ("qwen2", False), ("phi3", False)])
def test_shape_and_constants_are_read(architecture: str, interleaved: bool, tmp_path: Path) -> None:
    found, _ = read(tmp_path, architecture)
    assert found == ModelConfig(
        architecture=architecture,
        layers=2,
        width=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        feed_forward=128,
        vocabulary=314,
        epsilon=float(np.float32(1e-5)),
        context_length=512,
        sliding_window=0,
        rope=rope(10000.0, 16, interleaved, 1.0),
    )


def test_keys_that_change_the_arithmetic_are_read(tmp_path: Path) -> None:
    fields: Fields = {
        "llama.rope.freq_base": ("FLOAT32", 500.0),
        "llama.rope.dimension_count": ("UINT32", 8),
        "llama.rope.scaling.type": ("STRING", "linear"),
        "llama.rope.scaling.factor": ("FLOAT32", 4.0),
        "llama.rope.scaling.attn_factor": ("FLOAT32", 1.5),
        "llama.attention.sliding_window": ("UINT32", 64),
        "llama.attention.head_count_kv": ("UINT32", [2, 2]),
        "llama.expert_count": ("UINT32", 0),
    }
    found, _ = read(tmp_path, fields=fields)
    assert found.rope == rope(500.0, 8, True, 0.25, magnitude=1.5)
    assert (found.sliding_window, found.kv_heads) == (64, 2)


def test_linear_scaling_is_not_applied_where_scaling_is_none(tmp_path: Path) -> None:
    fields: Fields = {
        "llama.rope.scaling.type": ("STRING", "none"),
        "llama.rope.scaling.factor": ("FLOAT32", 4.0),
    }
    assert read(tmp_path, fields=fields)[0].rope.position_scale == 1.0
    assert read(tmp_path, fields={"llama.rope.scale_linear": ("FLOAT32", 8.0)})[0].rope.position_scale == 0.125


@pytest.mark.parametrize(("context_tokens", "which"), [(256, "short"), (257, "long")])
def test_the_context_chooses_the_factors_of_long_rope(context_tokens: int, which: str, tmp_path: Path) -> None:
    fields: Fields = {"phi3.rope.scaling.original_context_length": ("UINT32", 256)}
    tensors = {"rope_factors_long.weight": zeros(8) + 2, "rope_factors_short.weight": zeros(8) + 1}
    found, _ = read(tmp_path, "phi3", fields, tensors, context_tokens=context_tokens)
    assert found.rope.factors == f"rope_factors_{which}.weight"


def test_matrices_of_one_layer_may_differ_in_kind(tmp_path: Path) -> None:
    tensors = {"blk.1.ffn_down.weight": in_kind("Q8_0", 64, 128), "output.weight": in_kind("F16", 314, 64)}
    _, plan = read(tmp_path, tensors=tensors)
    assert [layer.down.kind for layer in plan.layers] == ["F32", "Q8_0"]
    assert (plan.embedding.kind, plan.head.kind) == ("F32", "F16")


def refused(line: str, folder: Path, *arguments: Any, **options: Any) -> None:
    with pytest.raises(UnsupportedModel, match=rf"^custom_cuda: expected {line}") as caught:
        read(folder, *arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ", got " in message
    assert len(message.split("; ")[-1].split()) > 2  # the next step


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("only metadata that is implemented here, got llama.expert_count = 8", {"llama.expert_count": ("UINT32", 8)}),
        ("causal attention", {"llama.attention.causal": ("BOOL", False)}),
        ("attention.value_length to equal", {"llama.attention.value_length": ("UINT32", 32)}),
        (
            "rope.scaling.type none, linear or longrope, got 'yarn'",
            {"llama.rope.scaling.type": ("STRING", "yarn")},
        ),
        ("both tensors rope_factors_long", {"llama.rope.scaling.type": ("STRING", "longrope")}),
        (
            "heads of length 16, 32, 64, 96, 128, got 24",
            {key: ("UINT32", 24) for key in HEADS_OF_16},
        ),
        ("heads to be a multiple of kv heads, got 4 and 3", {"llama.attention.head_count_kv": ("UINT32", 3)}),
        ("a hidden state whose length is a multiple of 32, got 80", {"llama.embedding_length": ("UINT32", 80)}),
        ("a feed-forward network whose length is a multiple of 32", {"llama.feed_forward_length": ("UINT32", 120)}),
        (
            "query heads of together a multiple of 32, got 3 of 16",
            {"llama.attention.head_count": ("UINT32", 3), "llama.attention.head_count_kv": ("UINT32", 1)},
        ),
        ("an even rope.dimension_count up to 16, got 18", {"llama.rope.dimension_count": ("UINT32", 18)}),
        ("an even rope.dimension_count up to 16, got 7", {"llama.rope.dimension_count": ("UINT32", 7)}),
        ("a positive whole number in llama.block_count, got 0", {"llama.block_count": ("UINT32", 0)}),
        ("a number above 0 in llama.rope.freq_base, got 'ten'", {"llama.rope.freq_base": ("STRING", "ten")}),
        ("one llama.attention.head_count_kv for all", {"llama.attention.head_count_kv": ("UINT32", [2, 4])}),
    ],
)
def test_metadata_that_is_not_computed_is_refused(line: str, fields: Fields, tmp_path: Path) -> None:
    refused(line, tmp_path, fields={**HEADS_OF_16, **fields})


def test_an_architecture_that_is_not_computed_is_refused(tmp_path: Path) -> None:
    refused("an architecture among llama, qwen2, phi3, got 'gpt2'", tmp_path, "gpt2")


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    refused("metadata llama.feed_forward_length, got none", tmp_path, without=["llama.feed_forward_length"])


def test_a_window_shorter_than_the_context_is_refused_and_a_longer_one_is_not(tmp_path: Path) -> None:
    fields: Fields = {"llama.attention.sliding_window": ("UINT32", 128)}
    assert read(tmp_path, fields=fields, context_tokens=128)[0].sliding_window == 128
    line = "a model that attends to all of 129 tokens, got a sliding window of 128; choose .* at most 128 tokens"
    refused(line, tmp_path, fields=fields, context_tokens=129)


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0"])
def test_kinds_that_no_kernel_reads_are_refused(kind: str, tmp_path: Path) -> None:
    import gguf

    content = gguf.quantize(zeros(64, 128), gguf.GGMLQuantizationType[kind]).tobytes()
    line = rf"blk.1.ffn_down.weight as one of F32, F16, BF16, Q8_0, Q4_0, got {kind}; quantize the model to one of"
    refused(line, tmp_path, tensors={"blk.1.ffn_down.weight": (kind, (64, 128), content)})


def test_a_norm_in_another_kind_is_refused(tmp_path: Path) -> None:
    norm = ("BF16", (64,), bytes(128))
    refused("output_norm.weight as one of F32, F16, got BF16", tmp_path, tensors={"output_norm.weight": norm})


def test_a_fused_matrix_of_several_kinds_is_refused(tmp_path: Path) -> None:
    line = r"one kind for matrices that are fused, got blk.0.attn_q.weight F32, .*k.weight Q8_0, .*v.weight F32"
    refused(line, tmp_path, tensors={"blk.0.attn_k.weight": in_kind("Q8_0", 32, 64)})
    refused("one kind for matrices that are fused", tmp_path, tensors={"blk.1.ffn_up.weight": in_kind("F16", 128, 64)})


@pytest.mark.parametrize(
    ("line", "tensors"),
    [
        ("the tensors of a dense llama model, got also blk.0.attn_output.bias", {"blk.0.attn_output.bias": zeros(64)}),
        ("the tensors of a dense llama model, got also blk.2.x.weight", {"blk.2.x.weight": zeros(4)}),
        (r"blk.0.attn_q.weight of shape \(64, 64\)", {"blk.0.attn_q.weight": zeros(32, 64)}),
        (r"blk.0.attn_q.bias of shape \(64,\)", {"blk.0.attn_q.bias": zeros(32)}),
        (r"rope_freqs.weight of shape \(8,\), got \(4,\)", {"rope_freqs.weight": zeros(4)}),
        ("both tensors .* got only rope_factors_long", {"rope_factors_long.weight": zeros(8)}),
    ],
)
def test_tensors_that_do_not_fit_the_metadata_are_refused(
    line: str, tensors: Mapping[str, Any], tmp_path: Path
) -> None:
    refused(line, tmp_path, tensors=tensors)


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight", "blk.0.attn_v.weight"])
def test_a_missing_tensor_is_refused(name: str, tmp_path: Path) -> None:
    refused(f"a tensor {name} in a dense llama model, got none", tmp_path, without=[name])


def test_a_model_without_an_embedding_is_refused(tmp_path: Path) -> None:
    refused("a matrix token_embd.weight, got none", tmp_path, without=["token_embd.weight"])


def test_factors_that_an_architecture_does_not_have_are_refused(tmp_path: Path) -> None:
    tensors = {"rope_factors_long.weight": zeros(8) + 1, "rope_factors_short.weight": zeros(8) + 1}
    refused("the tensors of a dense qwen2 model, got also rope_factors", tmp_path, "qwen2", tensors=tensors)
