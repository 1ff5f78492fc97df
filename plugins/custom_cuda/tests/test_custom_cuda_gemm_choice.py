"""What multiplies prompts: the user's word, or the library where it is there, works and fits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from custom_cuda_cublaslt import stand_in_library

from enginecmp import EngineError, LoadOptions
from enginecmp_custom_cuda import cmp_load, cmp_metrics
from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.engine.prefill import cublaslt_library, gemm_choice
from enginecmp_custom_cuda.engine.prefill.gemm_choice import Choice, choose_gemm, library_bytes
from enginecmp_custom_cuda.options import Settings

NOT_SUPPORTED = 15
"""CUBLAS_STATUS_NOT_SUPPORTED, cublas_api.h."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> cublaslt_library.Library:
    return stand_in_library(tmp_path_factory.mktemp("cublaslt"))


@pytest.fixture
def stand_in(library: cublaslt_library.Library, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The stand-in as what is installed, and the emulated device as one that it is for."""
    monkeypatch.setattr(cublaslt_library, "open_library", lambda: library)
    monkeypatch.setattr(gemm_choice, "_unsuited", lambda device: "")
    control = ctypes.CDLL(library.path)
    yield control
    control.stub_find_none(0)
    control.stub_refuse(0)


@pytest.fixture
def model(tiny: Any, load: Any) -> Any:
    """A model on the emulated device."""
    return load(tiny("llama", "Q8_0"), numerics="default").model


def chosen(device: Device, model: Any, needed: int = 0, **settings: Any) -> Choice:
    return choose_gemm(device, model, Settings(**settings), needed)


def test_the_library_multiplies_where_it_is_there_works_and_fits(
    emulated: Device, model: Any, stand_in: ctypes.CDLL
) -> None:
    before = emulated.allocated_bytes
    products = stand_in.stub_products()
    choice = chosen(emulated, model)
    assert choice.gemm == "cublaslt"
    assert "cuBLASLt 130401" in choice.reason
    assert stand_in.stub_products() == products + 1
    assert emulated.allocated_bytes == before


def test_what_is_asked_for_is_not_tried(emulated: Device, model: Any, stand_in: ctypes.CDLL) -> None:
    products = stand_in.stub_products()
    assert chosen(emulated, model, gemm="own") == Choice("own")
    assert chosen(emulated, model, gemm="cublaslt") == Choice("cublaslt")
    assert stand_in.stub_products() == products


def test_a_library_that_is_missing_or_broken_leaves_the_own_kernels(
    emulated: Device, model: Any, stand_in: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.stub_refuse(NOT_SUPPORTED)
    assert chosen(emulated, model) == Choice(
        "own",
        f"expected cublasLtMatmul to succeed, got CUBLAS_STATUS_NOT_SUPPORTED ({stand_in._name}); "
        "pass -o custom_cuda.gemm=own",
    )
    stand_in.stub_refuse(0)
    stand_in.stub_find_none(1)
    assert "expected an algorithm of cuBLASLt for 64 x 64 x 16 in bf16, got 0" in chosen(emulated, model).reason
    monkeypatch.undo()
    monkeypatch.setattr(gemm_choice, "_unsuited", lambda device: "")
    import cuda.pathfinder

    for error in (
        cuda.pathfinder.DynamicLibNotFoundError("none found"),
        OSError("libcublasLt.so.13: wrong ELF class"),
        AttributeError("undefined symbol: cublasLtMatmul"),
    ):

        def refuse(name: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(cuda.pathfinder, "load_nvidia_dynamic_lib", refuse)
        choice = chosen(emulated, model)
        assert choice.gemm == "own"
        assert f"got: {error}; pip install 'nvidia-cublas" in choice.reason


def test_a_copy_that_does_not_fit_leaves_the_own_kernels(emulated: Device, model: Any, stand_in: ctypes.CDLL) -> None:
    layers = model.layers
    matrices = [each for layer in layers for each in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    takes = library_bytes(model, 512)
    assert takes > sum(2 * each.rows * each.columns for each in matrices) + 4 * 512 * layers[0].gate_up.rows
    room = emulated.free_bytes() - takes
    assert chosen(emulated, model, room).gemm == "cublaslt"
    choice = chosen(emulated, model, room + 1)
    assert choice.gemm == "own"
    assert "cuBLASLt's copy of the weights would need" in choice.reason


def test_where_the_library_is_not_for(emulated: Device, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(emulated, model) == Choice("own", "the device is emulated")
    with pytest.raises(EngineError, match="gemm=own on emulated, got cublaslt"):
        chosen(emulated, model, gemm="cublaslt")
    monkeypatch.setattr(emulated, "kind", "cuda")
    monkeypatch.setattr(emulated, "capability", (8, 9))
    assert chosen(emulated, model) == Choice("own", "the device has compute capability 8.9")
    monkeypatch.setattr(emulated, "capability", (9, 0))
    assert chosen(emulated, model, precise=True) == Choice("own", "activations are float32")


def test_float32_weights_stay_with_the_own_kernels(emulated: Device, tiny: Any, load: Any, stand_in: Any) -> None:
    assert chosen(emulated, load(tiny("llama", "F32")).model) == Choice("own", "activations are float32")


def test_prompts_by_the_library_are_near_the_exact_ones(
    tiny: Any, load: Any, token_ids: list[int], stand_in: ctypes.CDLL
) -> None:
    """A whole session: what is chosen multiplies, is told, and computes the same model."""
    options: dict[str, Any] = {"device": "emulated", "context_tokens": 64}
    model = tiny("llama", "Q8_0")
    ids = token_ids[:40]
    exact = load(model, numerics="exact").score(ids)
    products = stand_in.stub_products()
    session = cmp_load(model, LoadOptions(**options))
    try:
        assert session.settings.gemm == "cublaslt"
        found = session.score(ids)
        assert stand_in.stub_products() > products + 4 * session.config.layers
        assert cmp_metrics(session)["library_weights_bytes"] == sum(
            2 * each.rows * each.columns
            for layer in session.model.layers
            for each in (layer.qkv, layer.output, layer.gate_up, layer.down)
        )
    finally:
        session.close()
    own = cmp_load(model, LoadOptions(**options, extra={"gemm": "own"}))
    try:
        assert cmp_metrics(own)["library_weights_bytes"] == 0
        eight_bits = own.score(ids)
    finally:
        own.close()
    prompt = slice(0, 20)  # the rest went through the steps
    off = np.abs(found - exact)[prompt].mean()
    assert 0 < off < np.abs(eight_bits - exact)[prompt].mean()


def test_the_librarys_products_are_timed_by_the_names_of_matrices(
    tiny: Any, stand_in: ctypes.CDLL, emulated: Device
) -> None:
    """bench_gpu's rows of kernels: what the library adds by itself has no launch behind it that tells its rows."""
    from enginecmp_custom_cuda.bench.kernels import grouped

    session = cmp_load(tiny("llama", "Q8_0"), LoadOptions(device="emulated", context_tokens=64))
    try:
        layers = session.config.layers
        found = grouped(session.prefiller.program(16, False), session.model)
    finally:
        session.close()
    counts = {name: (len(launches), products) for name, (launches, products, _) in found.items() if products}
    finished, added = (2 * layers, layers), (layers, layers)
    assert counts == {"qkv": finished, "output": added, "gate_up": finished, "down": added}
