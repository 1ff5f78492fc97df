"""cuBLASLt as a multiplier: descriptors against the real library, products against a stand-in with its header.

The real library makes and checks descriptors without a GPU. The stand-in computes on the memory of the emulated
device; it is compiled against the real cublasLt.h, so types, numbers and argument orders are NVIDIA's.
"""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest
from custom_cuda_cublaslt import headers, stand_in_library
from numpy.typing import NDArray

from enginecmp import EngineError
from enginecmp_custom_cuda.device import Device, build
from enginecmp_custom_cuda.engine.prefill import cublaslt_library as lt
from enginecmp_custom_cuda.engine.prefill.cublaslt import Backend, LibraryMultiplier, Product
from enginecmp_custom_cuda.engine.prefill.gemm import Activations
from enginecmp_custom_cuda.engine.prefill.params import Finish, FinishKind
from enginecmp_custom_cuda.weights.model import DeviceMatrix
from enginecmp_custom_cuda.weights.packing import pack


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> lt.Library:
    return stand_in_library(tmp_path_factory.mktemp("cublaslt"))


@pytest.fixture
def backend(emulated: Device, stand_in: lt.Library) -> Backend:
    return Backend(emulated, stand_in)


def as_bfloat16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_the_real_library_takes_our_descriptors() -> None:
    headers()
    real = lt.open_library()
    assert real.version >= 130000
    operation = real.create("cublasLtMatmulDescCreate", lt.COMPUTE_32F, lt.DATA_TYPES["f32"])
    real.set("cublasLtMatmulDescSetAttribute", operation, lt.DESC_TRANSA, ctypes.c_int32(lt.OP_T))
    layout = real.create("cublasLtMatrixLayoutCreate", lt.DATA_TYPES["bf16"], 64, 32, 64)
    preference = real.create("cublasLtMatmulPreferenceCreate")
    attribute = lt.PREFERENCE_MAX_WORKSPACE_BYTES
    real.set("cublasLtMatmulPreferenceSetAttribute", preference, attribute, ctypes.c_uint64(1 << 20))
    with pytest.raises(EngineError, match=r"expected cublasLtMatmulDescSetAttribute to succeed, got .*gemm=own"):
        real.set("cublasLtMatmulDescSetAttribute", operation, lt.DESC_TRANSA, ctypes.c_int64(lt.OP_T))
    real.call("cublasLtMatmulPreferenceDestroy", preference)
    real.call("cublasLtMatrixLayoutDestroy", layout)
    real.call("cublasLtMatmulDescDestroy", operation)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize(("rows", "columns", "tokens"), [(8, 32, 1), (40, 96, 5), (33, 64, 17)])
def test_a_product_is_weights_times_tokens(
    emulated: Device, backend: Backend, kind: str, rows: int, columns: int, tokens: int
) -> None:
    random = np.random.default_rng(rows)
    weights = random.standard_normal((rows, columns), np.float32)
    a = random.standard_normal((tokens, columns), np.float32)
    stored = [as_bfloat16(x) if kind == "bf16" else x.astype(np.float16).view(np.uint16) for x in (weights, a)]
    exact = [from_bfloat16(x) if kind == "bf16" else x.view(np.float16) for x in stored]
    stride = -(-rows // 8) * 8
    places = [emulated.allocate(x.nbytes, "a test") for x in stored]
    for place, x in zip(places, stored, strict=True):
        emulated.upload(place.address, x)
    out = emulated.allocate(tokens * stride * 4, "a test")
    product = Product(backend, places[0].address, places[1].address, out.address, (rows, columns, tokens), stride, kind)
    product.launch()
    emulated.synchronize()
    got = emulated.download(out.address, (tokens, stride), np.float32)[:, :rows]
    np.testing.assert_allclose(got, exact[1].astype(np.float64) @ exact[0].T.astype(np.float64), rtol=1e-6, atol=1e-6)
    for memory in (*places, out):
        memory.free()
    backend.close()


def test_handles_and_descriptors_are_given_back(emulated: Device, stand_in: lt.Library) -> None:
    count = ctypes.CDLL(stand_in.path).stub_descriptors
    gc.collect()
    before = count()
    backend = Backend(emulated, stand_in)
    product = Product(backend, 1 << 20, 1 << 20, 1 << 20, (8, 32, 1), 8, "bf16")
    assert count() > before
    del product
    gc.collect()
    assert count() == before
    backend.close()
    backend.close()


@pytest.mark.parametrize("how", [FinishKind.STORE, FinishKind.ADD])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_packed_weights_are_copied_and_multiplied(
    emulated: Device, backend: Backend, kind: str, how: FinishKind
) -> None:
    import gguf

    rows, columns, tokens = 48, 544, 3
    random = np.random.default_rng(1)
    values = random.standard_normal((rows, columns), np.float32)
    raw = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
    meant = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float32)
    packed = pack(raw.view(np.uint8), kind, rows, columns)
    memory = emulated.allocate(packed.nbytes, "a test")
    emulated.upload(memory.address, packed)
    reduce = build(emulated, "prefill", {"WEIGHT": "WEIGHT_Q8_0", "KV": "KV_F16", "HEAD_DIM": "64"})
    multiplier = LibraryMultiplier(backend, kind, reduce)
    a = random.standard_normal((tokens, columns), np.float32)
    half = kind == "F16"
    stored = a.astype(np.float16).view(np.uint16) if half else as_bfloat16(a)
    taken = stored.view(np.float16) if half else from_bfloat16(stored)
    weights = meant if half else from_bfloat16(as_bfloat16(meant))
    given = emulated.allocate(stored.nbytes, "a test")
    emulated.upload(given.address, stored)
    out = emulated.allocate(4 * tokens * rows, "a test")
    emulated.upload(out.address, np.full((tokens, rows), 2, np.float32))
    partial = emulated.allocate(multiplier.partial_bytes(rows, columns, tokens), "a test")
    matrix = DeviceMatrix(memory.address, rows, columns, kind, packed.nbytes)
    finish = Finish(kind=how, out=out.address)
    for step in multiplier.launches(matrix, Activations(given.address, 0, 4, tokens), finish, partial.address):
        step.launch()
    emulated.synchronize()
    got = emulated.download(out.address, (tokens, rows), np.float32)
    expected = taken.astype(np.float64) @ weights.T.astype(np.float64) + (2 if how == FinishKind.ADD else 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    assert multiplier.nbytes == 2 * rows * columns
    multiplier.close()
    for each in (memory, given, out, partial):
        each.free()
    backend.close()
