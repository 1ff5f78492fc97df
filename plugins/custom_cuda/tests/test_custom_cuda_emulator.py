"""Every operation that the emulator knows, against what CUDA's documents say of it, computed in another way."""

from __future__ import annotations

import numpy as np
import pytest
from custom_cuda_emulator import DATA, Bench, Meanings
from custom_cuda_gates import ARCHITECTURES
from numpy.typing import NDArray

from enginecmp_custom_cuda.compiling import compile_cubin
from enginecmp_custom_cuda.device import Device

LANES = np.arange(32)
ALL = 0xFFFFFFFF


@pytest.fixture(scope="module")
def bench(device: Device) -> Bench:
    return Bench(device, "emulator_meanings.cu", Meanings)


@pytest.fixture(scope="module")
def cpu_bench(emulated: Device) -> Bench:
    return Bench(emulated, "emulator_meanings.cu", Meanings)


@pytest.fixture(scope="module", params=["bench", "written out"])
def halves(request: pytest.FixtureRequest) -> Bench:
    """As `bench`, and the conversions for processors without instructions for them."""
    if request.param == "bench":
        return request.getfixturevalue("cpu_bench")  # type: ignore[no-any-return]
    device = request.getfixturevalue("emulated")
    return Bench(device, "emulator_meanings.cu", Meanings, {"SIMT_SOFT_HALF": "1"})


# ---- warps (CUDA C++ Programming Guide, "Warp Shuffle Functions")


@pytest.mark.parametrize("amount", [0, 1, 3, 5, 16, 31])
def test_shuffles_follow_the_guide(bench: Bench, amount: int) -> None:
    rows = bench.run("shuffles", np.zeros((8, 32), np.int32), n=amount) - 100
    for index, width in enumerate((32, 16, 8, 4)):
        first = LANES // width * width
        xor = LANES ^ amount
        assert rows[2 * index].tolist() == (first + amount % width).tolist()
        # A lane of an earlier segment may be read, one of a later segment not.
        assert rows[2 * index + 1].tolist() == np.where(xor < first + width, xor, LANES).tolist()


def test_shuffles_move_eight_bytes_and_stay_in_their_mask(bench: Bench) -> None:
    raw = bench.run("wide_shuffles", np.zeros(192, np.uint32)).tobytes()
    assert np.frombuffer(raw, np.float64, 32).tolist() == ((LANES ^ 1) + 0.5).tolist()
    assert np.frombuffer(raw, np.int64, 32, 256).tolist() == ((LANES ^ 2) + (1 << 40)).tolist()
    assert np.frombuffer(raw, np.float32, 32, 512).tolist() == ((LANES ^ 4) + 0.25).tolist()
    assert np.frombuffer(raw, np.uint32, 32, 640)[1::2].tolist() == [10] * 16


def test_a_lane_outside_the_mask_gives_poison(cpu_bench: Bench) -> None:
    raw = cpu_bench.run("wide_shuffles", np.zeros(192, np.uint32))
    assert raw[160::2].tolist() == [ALL] * 16


# ---- memory


def test_atomics_of_both_widths_and_signs(bench: Bench) -> None:
    rng = np.random.default_rng(1)
    small = rng.integers(-(2**31), 2**31, 256, np.int64).astype(np.int32)
    large = rng.integers(-(2**63), 2**63 - 1, 256, np.int64)
    start = np.full(8, 5, np.uint64)
    start[:4] = np.array([5, 5] * 4, np.uint32).view(np.uint64)
    found = bench.run("atomics", start, grid=4, a=small, b=large)
    checks: list[tuple[NDArray[np.generic], NDArray[np.generic]]] = [
        (found[:2].view(np.int32), small),
        (found[2:4].view(np.uint32), small.view(np.uint32)),
        (found[4:], large.view(np.uint64)),
    ]
    for got, values in checks:
        bits, numbers = 8 * values.itemsize, [int(value) for value in values]
        total = sum(numbers)
        assert int(got[0]) == max(5, *numbers)
        assert (int(got[1]) - 5 - total) % 2**bits == 0
        # Each exchange hands its value on to the next: the last one stays, the others were added up.
        assert int(got[2]) in numbers
        assert (int(got[2]) + int(got[3]) - 5 - total - 5) % 2**bits == 0


def test_asynchronous_copies_arrive_group_by_group(cpu_bench: Bench) -> None:
    pieces = np.arange(512, dtype=np.uint32).reshape(32, 4, 4) + 1000
    rows = cpu_bench.run("async_copies", np.zeros((32, 4, 4), np.uint32), a=pieces)
    for lane in range(32):
        want = [int(value) for value in pieces[lane, :, 1]]
        want[1] = want[1] if lane % 2 == 0 else 0
        for wait, arrived in enumerate((0, 2, 3, 4)):
            assert rows[lane, wait].tolist() == want[:arrived] + [ALL] * (4 - arrived)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("chunks", [1, 4, 11])
def test_a_ring_of_bulk_copies_hands_over_every_byte(bench: Bench, chunks: int, slots: int) -> None:
    data = np.random.default_rng(chunks).integers(0, 2**32, (chunks, 4, 64), np.uint32)
    found = bench.run("ring", np.zeros(64, np.uint32), a=data, n=chunks, m=slots, shared=1024 * slots)
    expected = np.zeros(64, np.uint32)
    for row in data.reshape(-1, 64):
        expected = expected * np.uint32(3) + row
    assert found.tolist() == expected.tolist()


# ---- numbers


def test_halves_are_read_as_ieee_says(halves: Bench) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    rows = halves.run("from_half", np.zeros((2, 65536), np.float32), grid=256)
    half = bits.view(np.float16).astype(np.float32)
    assert np.array_equal(rows[0], half, equal_nan=True)
    assert np.array_equal(rows[1].view(np.uint32), bits.astype(np.uint32) << 16)


def to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the nearest bfloat16, of two equally near the even one, by trying both neighbours."""
    low = x.view(np.uint32) & 0xFFFF0000
    near, far = low.view(np.float32).astype(np.float64), (low + 0x10000).view(np.float32).astype(np.float64)
    exact = x.astype(np.float64)
    up = (np.abs(far - exact) < np.abs(exact - near)) | ((far - exact == exact - near) & (low >> 16 & 1 == 1))
    return np.where(up, (low >> 16) + 1, low >> 16).astype(np.uint16)


def test_floats_are_rounded_to_nearest_even(halves: Bench) -> None:
    rng = np.random.default_rng(2)
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = ((every[1:] + every[:-1]) / 2).astype(np.float32)
    spread = (rng.standard_normal(4000) * 10.0 ** rng.uniform(-9, 9, 4000)).astype(np.float32)
    edges = np.array([0, -0.0, np.inf, -np.inf, 65504, 65519.99, 65520, -65520, 1e-8, 2**-25, 2**-24], np.float32)
    x = np.concatenate([ties, -ties, spread, edges]).astype(np.float32)
    raw = halves.run("to_half", np.zeros((3, len(x)), np.uint32), grid=-(-len(x) // 256), a=x, n=len(x))
    half = raw[0].view(np.uint16)[: len(x)]
    bf16 = raw[0].view(np.uint16)[len(x) :]
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    assert half.tolist() == expected.tolist()
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(x)
        assert bf16[finite].tolist() == to_bf16(x[finite]).tolist()
    assert raw[1].tolist() == (np.uint32(0x3C000000) | expected).tolist()
    assert raw[2].tolist() == (bf16.astype(np.uint32) << 16 | 0x3F80).tolist()


def test_a_nan_becomes_the_one_nan_of_the_hardware(bench: Bench) -> None:
    x = np.array([0x7FC00000, 0xFFC12345, 0x7F800001], np.uint32).view(np.float32)
    raw = bench.run("to_half", np.zeros((3, 3), np.uint32), a=x, n=3)
    assert raw[0].view(np.uint16).tolist() == [0x7FFF] * 6


def test_conversions_to_integers_saturate(bench: Bench) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4, -2.6, 1e20, -1e20, np.nan, 2147483648, 4294967040], np.float32)
    rows = bench.run("to_integer", np.zeros((3, len(x)), np.int32), a=x, n=len(x))
    whole = np.nan_to_num(np.rint(x).astype(np.float64))
    assert rows[0].tolist() == np.clip(whole, -(2**31), 2**31 - 1).astype(np.int64).tolist()
    # The number wins over NaN.
    assert rows[1].view(np.float32).tolist() == np.fmin(x, np.float32(3)).tolist()
    assert rows[2].view(np.float32).tolist() == np.fmax(x, np.float32(3)).tolist()


def test_powers_of_two_and_roots(bench: Bench) -> None:
    x, y = np.linspace(-20, 20, 32, dtype=np.float32), np.geomspace(1e-6, 1e6, 32).astype(np.float32)
    powers, roots = bench.run("exponent", np.zeros((2, 32), np.float32), a=x, b=y)
    assert np.allclose(powers, np.exp2(x.astype(np.float64)), rtol=2.0**-21, atol=0)
    assert np.allclose(roots, 1 / np.sqrt(y.astype(np.float64)), rtol=2.0**-22, atol=0)


def test_bit_operations(bench: Bench) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 2**32, (2, 256), np.uint32)
    x[:4], y[:3] = [0, ALL, 1, 1 << 31], [0, ALL, 31]
    rows = bench.run("bits", np.zeros((2, 256), np.uint32), a=x, b=y)
    for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        signed = [np.frombuffer(np.uint32(value).tobytes(), np.int8).astype(int) for value in (a, b)]
        assert rows[:, i].tolist() == [32 - a.bit_length(), (5 + int(signed[0] @ signed[1])) & ALL]


# ---- tensor cores (PTX ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k32", "ldmatrix")


def place_16(lane: int, i: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return row and column of element a_i (i < 8), and of b_i (i < 4), of a lane's fragments of 16-bit elements."""
    group, inner = lane >> 2, lane % 4
    a = (group if i < 2 or 4 <= i < 6 else group + 8, inner * 2 + (i & 1) + (8 if i >= 4 else 0))
    return a, (inner * 2 + (i & 1) + (8 if i >= 2 else 0), group)


def place_8(lane: int, i: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return row and column of element a_i (i < 16), and of b_i (i < 8), of a lane's fragments of 8-bit elements."""
    group, inner = lane >> 2, lane % 4
    a = (group if i < 4 or 8 <= i < 12 else group + 8, inner * 4 + (i & 3) + (16 if i >= 8 else 0))
    return a, (inner * 4 + (i & 3) + (16 if i >= 4 else 0), group)


@pytest.mark.parametrize("kind", ["s8", "f16", "bf16"])
def test_tensor_core_products_use_the_documented_fragments(bench: Bench, kind: str) -> None:
    rng = np.random.default_rng(4)
    place = place_8 if kind == "s8" else place_16
    depth, per_lane = (32, 16) if kind == "s8" else (16, 8)
    # Small whole numbers: products and sums are exact in every type.
    a, b = rng.integers(-8, 9, (16, depth)), rng.integers(-8, 9, (depth, 8))
    if kind == "s8":
        a[0, :3], b[:3, 0] = [-128, 127, -128], [-128, -128, 127]
    c = rng.integers(-100, 100, (16, 8))

    def stored(values: NDArray[np.int64]) -> NDArray[np.generic]:
        if kind == "s8":
            return values.astype(np.int8)
        return values.astype(np.float16) if kind == "f16" else to_bf16(values.astype(np.float32))

    kept_a, kept_b = stored(a), stored(b)
    fragments_a = np.array([[kept_a[place(lane, i)[0]] for i in range(per_lane)] for lane in range(32)])
    fragments_b = np.array([[kept_b[place(lane, i)[1]] for i in range(per_lane // 2)] for lane in range(32)])
    where = [[((lane >> 2) + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)) for i in range(4)] for lane in range(32)]
    sums = np.int32 if kind == "s8" else np.float32
    fragments_c = np.array([[c[at] for at in row] for row in where], sums)
    mode = ["s8", "f16", "bf16"].index(kind)
    found = bench.run("products", np.zeros((32, 4), sums), a=fragments_a, b=fragments_b, c=fragments_c, m=mode)
    expected = a @ b + c
    assert found.tolist() == [[expected[at] for at in row] for row in where]


def test_ldmatrix_gives_each_lane_its_two_elements(bench: Bench) -> None:
    rows = np.random.default_rng(5).integers(0, 65536, (4, 8, 8), np.uint16)
    found = bench.run("matrices", np.zeros((10, 32), np.uint32), a=rows)
    for lane in range(32):
        # Lane i holds row i / 4, elements 2 (i % 4) and the next; transposed: rows and columns change places.
        line, pair = lane // 4, lane % 4 * 2
        plain = [int(m[line, pair]) | int(m[line, pair + 1]) << 16 for m in rows]
        turned = [int(m[pair, line]) | int(m[pair + 1, line]) << 16 for m in rows]
        assert found[:, lane].tolist() == [*plain, *turned, *plain[:2]]


# ---- CUDA


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_operations_compile_for_every_architecture(emulated: Device, architecture: str) -> None:
    # Beside the stand-in driver: NVRTC looks for a libcuda.so.1 in its process and asks it questions.
    assert emulated.kind == "emulated"
    image = compile_cubin(DATA / "emulator_meanings.cu", {}, architecture)
    assert image[:4] == b"\x7fELF"
    assert int.from_bytes(image[18:20], "little") == 190  # EM_CUDA
