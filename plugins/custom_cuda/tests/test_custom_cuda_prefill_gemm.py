"""The prefill's GEMMs, norms and embedding, against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from custom_cuda_oracle import dp4a, reference
from custom_cuda_prefill_parts import CACHE_TYPES, Pages, bench
from numpy.typing import NDArray

from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.engine.memory.params import Cache
from enginecmp_custom_cuda.engine.prefill.gemm import (
    FLOAT_SHAPES,
    TENSOR_CORES,
    Activation,
    choose_shape,
    choose_splits,
    mma_shapes,
)
from enginecmp_custom_cuda.engine.prefill.params import Finish, FinishKind
from enginecmp_custom_cuda.weights.kinds import decode, encode

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
TENSOR_KINDS = tuple(TENSOR_CORES)
MMA_KERNELS = ("gemm_small", "gemm_medium", "gemm_large")

# Tokens, rows, columns: below, at and above the edges of tiles (16, 64, 128) and of chunks (512), and narrow last ones.
SIZES = (
    (1, 5, 32),
    (7, 64, 96),
    (16, 70, 512),
    (33, 132, 544),
    (64, 24, 1088),
    (65, 136, 576),
    (130, 40, 160),
)


def whole_weights(random: np.random.Generator, rows: int, columns: int, kind: str) -> NDArray[np.float32]:
    """Return weights that every kind holds exactly, as small whole numbers; a scaled kind's scales become 1."""
    most = 8 if kind == "Q4_0" else 127
    weights = random.integers(-most + 1, most, (rows, columns)).astype(np.float32)
    # gguf-py's scales: the largest of a block over 127; the one of largest magnitude over -8.
    weights[:, ::32] = -8 if kind == "Q4_0" else 127
    return weights


def whole_activations(random: np.random.Generator, tokens: int, columns: int) -> NDArray[np.float32]:
    """Return activations whose int8 scale is exactly 1."""
    x = random.integers(-126, 127, (tokens, columns)).astype(np.float32)
    x[:, ::32] = 127
    return x


@pytest.mark.parametrize("kernel", MMA_KERNELS)
@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_tensor_core_gemms_find_whole_numbers_to_the_bit(device: Device, kind: str, kernel: str) -> None:
    random = np.random.default_rng(len(kind) + len(kernel))
    for tokens, rows, columns in SIZES:
        x = whole_activations(random, tokens, columns)
        if kind in ("F16", "BF16"):
            x = x // 16  # sums of products stay below 2**24
        weights = whole_weights(random, rows, columns, kind)
        assert (decode(encode(weights, kind), kind) == weights).all()
        with bench(device, shape=kernel, splits=1 + tokens % 3) as it:
            found = it.multiply(x, weights, kind, TENSOR_CORES[kind])
        expected = x.astype(np.float64) @ weights.T.astype(np.float64)
        assert np.abs(expected).max() < 2**24
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_the_terms_of_int8_gemms_are_the_oracles_to_the_bit(device: Device, kind: str) -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((20, 32)).astype(np.float32)
    weights = random.standard_normal((80, 32)).astype(np.float32)
    # Scales of all sizes that a half has, the smallest without a leading bit among them.
    weights *= np.exp2(random.integers(-30, 10, (80, 1))).astype(np.float32)
    with bench(device) as it:
        found = it.multiply(x, weights, kind, "s8")
    quantized, raw = dp4a.quantize(x), encode(weights, kind)
    dots = dp4a.multiply(quantized, raw, kind).dots[..., 0].astype(np.float32)  # (T, rows)
    _, scales = dp4a.quants(raw, kind)  # (rows, 1)
    # Rounded after the row's scale and after the token's, where the oracle multiplies the two first.
    expected = dots * scales[:, 0].astype(np.float32) * quantized.scales
    assert len(np.unique(np.frexp(scales.astype(np.float32))[1])) > 20
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_whole_numbers_as_large_as_they_come_stay_exact(device: Device, kind: str) -> None:
    """The sum is taken out of the bits of a float, where only so many bits are."""
    x = np.full((3, 64), 127, np.float32)
    weights = np.full((16, 64), 127 if kind == "Q8_0" else -8, np.float32)
    weights[1] *= -1 if kind == "Q8_0" else 1
    with bench(device) as it:
        found = it.multiply(x, weights, kind, "s8")
    np.testing.assert_array_equal(found, x @ decode(encode(weights, kind), kind).T)


@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_tensor_core_gemms_follow_the_oracle_on_random_numbers(device: Device, kind: str) -> None:
    random = np.random.default_rng(4)
    for (tokens, rows, columns), kernel in zip(SIZES, (*MMA_KERNELS, *MMA_KERNELS, None), strict=True):
        x = random.standard_normal((tokens, columns)).astype(np.float32)
        weights = random.standard_normal((rows, columns)).astype(np.float32)
        raw = encode(weights, kind)
        with bench(device, shape=kernel, splits=1 + rows % 2) as it:
            found = it.multiply(x, weights, kind, TENSOR_CORES[kind])
        if TENSOR_CORES[kind] == "s8":
            product = dp4a.multiply(dp4a.quantize(x), raw, kind)
            expected, size = product.sums, np.abs(product.terms).sum(axis=-1)
        else:
            rounded = decode(encode(x, kind), kind).astype(np.float64)
            expected = rounded @ decode(raw, kind).T.astype(np.float64)
            size = np.abs(rounded) @ np.abs(decode(raw, kind)).T
        # One rounding a term of an mma and the sum's own; tensor cores cut where the emulator rounds.
        assert (np.abs(found - expected) <= (columns / 16 + 2) * 2.0**-23 * size).all()


@pytest.mark.parametrize("kernel", ["gemm_small", "gemm_medium"])
@pytest.mark.parametrize("kind", KINDS)
def test_float_gemms_follow_the_oracle(device: Device, kind: str, kernel: str) -> None:
    random = np.random.default_rng(5)
    for tokens, rows, columns in SIZES[:-1]:
        x = random.standard_normal((tokens, columns)).astype(np.float32)
        weights = random.standard_normal((rows, columns)).astype(np.float32)
        with bench(device, shape=kernel, splits=1 + tokens % 2) as it:
            found = it.multiply(x, weights, kind, "f32")
        meant = decode(encode(weights, kind), kind)
        size = np.abs(x.astype(np.float64)) @ np.abs(meant).T
        assert (np.abs(found - reference.linear(x, meant)) <= columns * 2.0**-24 * size).all()


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("kind", "activation"), [("Q8_0", "s8"), ("F32", "f32")])
@pytest.mark.parametrize("rows", [70, 96])
def test_products_are_added_and_gated(
    device: Device, kind: str, activation: Activation, rows: int, splits: int
) -> None:
    random = np.random.default_rng(6)
    x = random.standard_normal((19, 256)).astype(np.float32)
    weights = random.standard_normal((rows, 256)).astype(np.float32) / 4
    with bench(device, splits=splits) as it:
        plain = it.multiply(x, weights, kind, activation).astype(np.float64)
        added = it.multiply(x, weights, kind, activation, FinishKind.ADD)
        gated = it.multiply(x, weights, kind, activation, FinishKind.SWIGLU)
    np.testing.assert_allclose(added, plain + 1, rtol=0, atol=2e-5)
    np.testing.assert_allclose(gated, reference.swiglu(plain[:, ::2], plain[:, 1::2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(("kv", "rope_dims"), [("KV_F16", 8), ("KV_F32", 16)])
def test_queries_keys_and_values_are_biased_rotated_and_put_in_their_pages(
    device: Device, kv: str, rope_dims: int, splits: int
) -> None:
    random = np.random.default_rng(12)
    heads, kv_heads, tokens, columns = 3, 2, 21, 64
    rows = (heads + 2 * kv_heads) * 16
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    weights = random.standard_normal((rows, columns)).astype(np.float32)
    bias = random.standard_normal(rows).astype(np.float32)
    angles = random.standard_normal((100, rope_dims // 2))
    table = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    position = np.array([*range(60, 70), -1, *range(10)])
    slot = np.array([1] * 11 + [0] * 10)
    pages = Pages(2, 100, kv_heads, 16, random)
    with bench(device, kv=kv, splits=splits) as it:
        memory = it.put(pages.memory, CACHE_TYPES[kv])
        q = it.put(np.full((tokens, heads, 16), 7), np.float32)
        finish = Finish(
            out=q,
            bias=it.put(bias, np.float32),
            rope=it.put(table, np.float32),
            position=it.put(position, np.int32),
            slot=it.put(slot, np.int32),
            cache=Cache(memory, it.put(pages.table, np.int32), pages.table.shape[1], kv_heads),
            heads=heads,
            rope_dims=rope_dims,
            kind=FinishKind.QKV,
        )
        it.product(it.matrix(weights, "F32"), it.activations(x, "f32"), "f32", finish)
        queries = device.download(q, (tokens, heads, 16), np.float32)
        cached = device.download(memory, pages.memory.shape, CACHE_TYPES[kv])
    y = reference.linear(x, weights, bias).reshape(tokens, heads + 2 * kv_heads, 16)
    wanted_q, wanted_k, wanted_v = np.split(y, (heads, heads + kv_heads), axis=1)
    wanted_q, wanted_k = (reference.rotate_interleaved(each, table[position]) for each in (wanted_q, wanted_k))
    wanted_q[10] = 7  # the empty token
    np.testing.assert_allclose(queries, wanted_q, rtol=0, atol=1e-4)
    for number, start, first, last in ((1, 60, 0, 10), (0, 0, 11, 21)):
        for which, wanted in enumerate((wanted_k, wanted_v)):
            found = pages.read(cached, number, which, 100)  # (100, kv_heads, 16)
            end = start + last - first
            tolerance = {"KV_F16": 1e-2, "KV_F32": 1e-4}[kv]
            np.testing.assert_allclose(found[start:end], wanted[first:last], rtol=0, atol=tolerance)
            assert np.isnan(found[:start]).all()
            assert np.isnan(found[end:]).all()


def test_gemms_repeat_to_the_bit(device: Device) -> None:
    random = np.random.default_rng(7)
    x = random.standard_normal((33, 1088)).astype(np.float32)
    weights = random.standard_normal((72, 1088)).astype(np.float32)
    for kind, activation in (("Q8_0", "s8"), ("F32", "f32")):
        with bench(device, splits=4) as it:
            first, second = (it.multiply(x, weights, kind, activation) for _ in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("columns", [32, 96, 1056, 2080])
def test_activations_are_quantized_to_the_bit(device: Device, columns: int) -> None:
    random = np.random.default_rng(columns)
    x = random.standard_normal((5, columns)).astype(np.float32)
    x[1, :32] = 0
    x[2, 0] = 1e30
    with bench(device) as it:
        values, scales = it.rows("quantize_s8", x, np.int8)
        halves, _ = it.rows("quantize_f16", np.clip(x, -1e4, 1e4), np.float16)
        bf16, _ = it.rows("quantize_bf16", x, np.uint16)
    expected = dp4a.quantize(x)
    np.testing.assert_array_equal(values, expected.values)
    np.testing.assert_array_equal(scales, expected.scales)
    np.testing.assert_array_equal(halves, np.clip(x, -1e4, 1e4).astype(np.float16))
    np.testing.assert_array_equal(bf16, encode(x, "BF16").view(np.uint16))


@pytest.mark.parametrize("columns", [32, 576, 2080])
def test_norms_follow_the_oracle(device: Device, columns: int) -> None:
    random = np.random.default_rng(columns)
    x = 3 * random.standard_normal((4, columns)).astype(np.float32)
    weight = random.standard_normal(columns).astype(np.float32)
    expected = reference.rms_norm(x, weight, 1e-5)
    with bench(device) as it:
        exact, _ = it.rows("norm_f32", x, np.float32, weight, 1e-5)
        half, _ = it.rows("norm_f16", x, np.float16, weight, 1e-5)
        bits, _ = it.rows("norm_bf16", x, np.uint16, weight, 1e-5)
        values, scales = it.rows("norm_s8", x, np.int8, weight, 1e-5)
    np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(half, exact.astype(np.float16))
    np.testing.assert_array_equal(bits, encode(exact, "BF16").view(np.uint16))
    np.testing.assert_array_equal(values, dp4a.quantize(exact).values)
    np.testing.assert_array_equal(scales, dp4a.quantize(exact).scales)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_embeddings_are_the_tables_rows_and_zero_for_empty_tokens(device: Device, kind: str) -> None:
    random = np.random.default_rng(8)
    table = random.standard_normal((37, 544)).astype(np.float32)
    ids, position = [36, 0, 999999, 17], [0, 5, -1, 2]
    with bench(device) as it:
        found = it.embed(table, kind, ids, position)
    expected = decode(encode(table, kind), kind)[[36, 0, 0, 17]]
    expected[2] = 0
    np.testing.assert_array_equal(found, expected)


def test_shapes_and_splits_fill_the_device_without_starving_a_split() -> None:
    shapes = mma_shapes("Q8_0")
    assert [choose_shape(shapes, tokens).kernel for tokens in (1, 16, 17, 64, 65, 512)] == [
        "gemm_small", "gemm_small", "gemm_medium", "gemm_medium", "gemm_large", "gemm_large",
    ]  # fmt: skip
    large = shapes[-1]
    assert choose_splits(large, 2048, 2048, 512, 132) == 4  # 64 tiles on 264 places
    assert choose_splits(large, 16384, 2048, 512, 132) == 1  # 512 tiles
    assert choose_splits(large, 64, 64, 512, 132) == 1  # one stage of columns
    assert max(shape.shared_bytes for kind in TENSOR_KINDS for shape in mma_shapes(kind)) <= 64 << 10  # sm_75
    assert {shape.columns for shape in FLOAT_SHAPES} == {32}
