"""The float64 reference against what others have computed: PyTorch, SciPy, published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest
import scipy.special
from custom_cuda_oracle import dp4a, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginecmp import LoadOptions, ModelInfo, read_gguf
from enginecmp.gate.divergence import divergence
from enginecmp.launch.launch import Launch
from enginecmp.models.decoder import RopeConfig
from enginecmp.plugins.discovery import discover, find
from enginecmp.testing.tiny_models import changed_model, tiny_model
from enginecmp_custom_cuda.config import ARCHITECTURES
from enginecmp_custom_cuda.weights import order
from enginecmp_custom_cuda.weights.kinds import encode
from enginecmp_custom_cuda.weights.rope import rope_table

IDS = [(i * i * 7 + i * 13 + 3) % 251 for i in range(48)]
RNG = np.random.default_rng(3)


def rope_config(**changes: Any) -> RopeConfig:
    plain = RopeConfig(base=10000.0, dimensions=16, interleaved=True, position_scale=1.0, magnitude=1.0, factors=None)
    return msgspec.structs.replace(plain, **changes)


def with_everything(folder: Path, architecture: str) -> ModelInfo:
    """A model in which every part that an architecture may have changes the logits."""
    model = tiny_model(folder, architecture)
    short, long = np.linspace(1, 2, 8, dtype=np.float32), np.linspace(1.5, 9, 8, dtype=np.float32)
    match architecture:
        case "llama":
            fields: dict[str, tuple[str, Any]] = {
                "llama.rope.scaling.type": ("STRING", "linear"),
                "llama.rope.scaling.factor": ("FLOAT32", 2.0),
                "llama.rope.dimension_count": ("UINT32", 12),
                "llama.attention.layer_norm_rms_epsilon": ("FLOAT32", 0.01),
            }
            return changed_model(model, fields, {"rope_freqs.weight": short[:6]})
        case "qwen2":
            return changed_model(model, {"qwen2.rope.freq_base": ("FLOAT32", 500.0)})
        case _:
            fields = {
                "phi3.rope.scaling.original_context_length": ("UINT32", 32),
                "phi3.rope.scaling.attn_factor": ("FLOAT32", 1.19),
                "phi3.attention.sliding_window": ("UINT32", 128),
            }
            return changed_model(model, fields, {"rope_factors_short.weight": short, "rope_factors_long.weight": long})


Score = Callable[[ModelInfo], NDArray[np.float32]]


@pytest.fixture(scope="module")
def reference_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Score]:
    """Return what scores `IDS` with the reference engine: one process for all models, PyTorch is slow to import."""
    pytest.importorskip("torch", reason="needs PyTorch; pip install torch")
    options = LoadOptions(threads=1, context_tokens=64, numerics="exact")
    plugin = find("pytorch_baseline", discover())
    with Launch("reference", plugin, log=tmp_path_factory.mktemp("log") / "log", options=options) as launch:

        def score(model: ModelInfo) -> NDArray[np.float32]:
            launch.load(model, 300)
            answer = launch.call("score", 300, token_ids=IDS)
            launch.call("unload", 60)
            return np.frombuffer(answer["data"], np.float32).reshape(answer["shape"])

        yield score


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_the_reference_engine(architecture: str, reference_engine: Score, tmp_path: Path) -> None:
    model = with_everything(tmp_path, architecture)
    theirs = reference_engine(model)
    ours = reference.logits(read_gguf(model.path), IDS, context_tokens=64)
    assert ours.shape == theirs.shape == (len(IDS), model.vocabulary)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(ours).max()
    assert divergence(theirs, ours.astype(np.float32)).mean_kl < 1e-10


@pytest.mark.parametrize(("context_tokens", "which"), [(32, "short"), (33, "long")])
def test_the_context_chooses_between_long_and_short_factors(context_tokens: int, which: str, tmp_path: Path) -> None:
    model = with_everything(tmp_path, "phi3")
    file = read_gguf(model.path)
    factors = file.float32(f"rope_factors_{which}.weight")
    same = {f"rope_factors_{each}.weight": factors for each in ("short", "long")}
    only = read_gguf(changed_model(model, tensors=same).path)
    ours = reference.logits(file, IDS[:20], context_tokens)
    assert (ours == reference.logits(only, IDS[:20], 32)).all()
    assert np.abs(ours - reference.logits(file, IDS[:20], 65 - context_tokens)).max() > 0.01


def test_a_longer_prompt_does_not_change_earlier_positions(tmp_path: Path) -> None:
    file = read_gguf(tiny_model(tmp_path, "llama").path)
    long, short = reference.forward(file, IDS), reference.forward(file, IDS[:20])
    np.testing.assert_allclose(long.logits[:20], short.logits, atol=1e-12, rtol=0)
    assert [each.shape for each in long.hidden] == [(48, 64)] * 3
    assert [each.shape for each in long.keys] == [each.shape for each in long.values] == [(48, 2, 16)] * 2


def test_the_norm_divides_by_the_root_of_the_mean_square() -> None:
    x = [[3.0, -4.0, 12.0, 0.0]]  # mean square 42.25 = 6.5 squared
    found = reference.rms_norm(x, [1.0, 2.0, 1.0, 1.0], 0.0)
    np.testing.assert_allclose(found, [[3 / 6.5, -8 / 6.5, 12 / 6.5, 0]], rtol=1e-15)
    assert reference.rms_norm([[0.0] * 4], [1.0] * 4, 1e-5).tolist() == [[0.0] * 4]
    np.testing.assert_allclose(reference.rms_norm(x, [1.0] * 4, 6.75)[0, 0], 3 / 7, rtol=1e-15)


def test_swiglu_is_scipys_sigmoid_times_its_argument() -> None:
    gate, up = np.array([-800.0, -3.0, 0.0, 2.0, 800.0]), np.array([2.0, 3.0, 4.0, -5.0, 6.0])
    np.testing.assert_allclose(reference.swiglu(gate, up), gate * scipy.special.expit(gate) * up, rtol=1e-14)


def test_rotation_turns_a_pair_by_its_angle() -> None:
    # Position 2, base 100, pair 1 of 2: 2 * 100 ** (-2 / 4) = 0.2 radian.
    table = reference.rope_table(rope_config(base=100.0, dimensions=4), None, 3)
    x = np.zeros((1, 1, 6))
    x[0, 0, 2], x[0, 0, 5] = 1.0, 7.0
    found = reference.rotate_interleaved(x, table[2:])
    np.testing.assert_allclose(found[0, 0], [0, 0, math.cos(0.2), math.sin(0.2), 0, 7], atol=1e-15)
    halves = np.zeros((1, 1, 6))
    halves[0, 0, 1], halves[0, 0, 5] = 1.0, 7.0
    found = reference.rotate_halves(halves, table[2:])
    np.testing.assert_allclose(found[0, 0], [0, math.cos(0.2), 0, math.sin(0.2), 0, 7], atol=1e-15)


@given(st.integers(1, 8), st.integers(0, 8), st.integers(1, 3), st.integers(0, 2**31))
@settings(deadline=None)
def test_halves_turn_as_neighbours_do_after_the_rows_are_permuted(half: int, rest: int, heads: int, seed: int) -> None:
    head_dim = 2 * half + rest
    x = np.random.default_rng(seed).standard_normal((5, heads, head_dim))
    table = reference.rope_table(rope_config(dimensions=2 * half), None, 5)
    pairs = order.rope_pairs(heads, head_dim, 2 * half, interleaved=False)
    permuted = x.reshape(5, -1)[:, pairs].reshape(x.shape)
    turned = reference.rotate_interleaved(permuted, table).reshape(5, -1)[:, order.inverse(pairs)]
    np.testing.assert_allclose(turned.reshape(x.shape), reference.rotate_halves(x, table), atol=1e-14)


def test_the_devices_rope_table_is_the_references_rounded_once() -> None:
    config = rope_config(base=500000.0, dimensions=64, position_scale=0.25, magnitude=1.19)
    factors = np.linspace(1, 32, 32, dtype=np.float32)
    exact = reference.rope_table(config, factors, 9000)
    found = np.concatenate([rope_table(config, factors, first, first + 4500) for first in (0, 4500)])
    assert found.shape == (9000, 32, 2)
    # Half a unit in the last place of a number up to 1.19, and what 64-bit angles of up to 2250 are off.
    assert np.abs(found - exact).max() < 2**-24 + 1e-12


def test_attention_is_scaled_causal_and_shares_heads_in_groups() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch; pip install torch")
    q, k, v = (RNG.standard_normal(shape) for shape in ((3, 4, 8), (7, 2, 8), (7, 2, 8)))
    visible = np.tri(7, dtype=bool)[-3:]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(np.repeat(each, 4 // each.shape[1], axis=1)).transpose(0, 1) for each in (q, k, v)),
        attn_mask=torch.from_numpy(visible),
    )
    np.testing.assert_allclose(reference.attention(q, k, v), theirs.transpose(0, 1).numpy(), atol=1e-14)


def test_a_linear_layer_multiplies_with_rows() -> None:
    assert reference.linear([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], [0.5, 0, 0]).tolist() == [
        [11.5, 17, 23]
    ]


def test_half_precision_rounds_to_nearest_even() -> None:
    assert reference.as_float16(np.array([1 + 2**-11, 1 + 3 * 2**-11, 2.0**-25])).tolist() == [1.0, 1 + 2**-9, 0.0]


@given(st.integers(0, 2**31), st.integers(-30, 30), st.integers(0, 64))
@settings(deadline=None)
def test_quantized_activations_are_the_nearest_steps(seed: int, exponent: int, zeros: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 64), np.float32) * np.float32(10.0**exponent)
    x[:, :zeros] = 0
    found = dp4a.quantize(x)
    steps = np.repeat(found.scales, 32, axis=-1).astype(np.float64)
    assert found.values.dtype == np.int8
    assert (np.abs(found.values.astype(int)) <= 127).all()
    largest = np.abs(x.reshape(2, 2, 32)).max(axis=-1)
    assert (found.scales == largest / np.float32(127)).all()
    # Half a step, and float32's rounding of the quotient and of the product.
    assert (np.abs(found.values * steps - x) <= steps * (0.5 + 127 * 3 * 2**-24)).all()


def test_quantization_of_activations_by_hand() -> None:
    x = np.zeros(64, np.float32)
    x[:5] = [127, -63.5, 0.5, 1.5, -2.5]  # one step is 1; ties go to the even number
    found = dp4a.quantize(x)
    assert found.scales.tolist() == [1.0, 0.0]
    assert found.values[:6].tolist() == [127, -64, 0, 2, -2, 0]
    assert not found.values[5:].any()


def test_quantized_activations_are_those_of_gguf_py_but_for_its_scales() -> None:
    """GGML's Q8_0 rounds half away from zero and its scale to float16; the whole numbers are otherwise the same."""
    x = RNG.standard_normal((3, 256), np.float32)
    blocks = gguf.quantize(x, gguf.GGMLQuantizationType.Q8_0).reshape(3, 8, 34)
    assert (dp4a.quantize(x).values.reshape(3, 8, 32) == blocks[..., 2:].view(np.int8)).all()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantized_dots_are_whole_and_their_sums_those_of_the_numbers_meant(kind: str) -> None:
    raw = encode(RNG.standard_normal((5, 96), np.float32), kind)
    activations = dp4a.quantize(RNG.standard_normal((2, 96), np.float32))
    found = dp4a.multiply(activations, raw, kind)
    assert found.dots.shape == (2, 5, 3)
    weights = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float64)
    meant = activations.values * np.repeat(activations.scales, 32, axis=-1).astype(np.float64)
    np.testing.assert_allclose(found.sums, meant @ weights.T, rtol=0, atol=1e-5)
    # One by one, in Python's own whole numbers.
    block = raw.reshape(5, 3, -1)[4, 2]
    if kind == "Q8_0":
        whole = block[2:].view(np.int8).tolist()
    else:
        whole = [int(b & 15) - 8 for b in block[2:]] + [int(b >> 4) - 8 for b in block[2:]]
    dot = sum(w * a for w, a in zip(whole, activations.values[1, 64:].tolist(), strict=True))
    assert found.dots[1, 4, 2] == dot
    scale = block[:2].view(np.float16).astype(np.float32)[0] * activations.scales[1, 2]
    assert found.terms[1, 4, 2] == np.float32(dot) * scale


def test_dots_of_the_largest_numbers_do_not_overflow() -> None:
    raw = np.concatenate((np.float16(1).reshape(1).view(np.uint8), np.full(32, 128, np.uint8)))[None]
    found = dp4a.multiply(dp4a.quantize(np.full((1, 32), -5.0)), raw, "Q8_0")
    assert found.dots.tolist() == [[[127 * 128 * 32]]]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_model_with_quantized_activations_stays_close_to_its_own_weights(kind: str, tmp_path: Path) -> None:
    file = read_gguf(tiny_model(tmp_path, "llama", kind).path)
    exact = reference.forward(file, IDS).logits
    quantized = reference.forward(file, IDS, linear=dp4a.linear, stored=reference.as_float16).logits
    distance = divergence(exact.astype(np.float32), quantized.astype(np.float32)).mean_kl
    assert 1e-7 < distance < 5e-3
