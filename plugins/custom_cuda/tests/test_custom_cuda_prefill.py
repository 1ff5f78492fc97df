"""The whole prefill, against the oracle, for tiny models of every architecture."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_cuda_oracle import dp4a, reference
from numpy.typing import NDArray

from enginecmp import EngineError, GGUFFile, read_gguf
from enginecmp.models.synth import write_synth
from enginecmp_custom_cuda.compiling.sources import KERNELS
from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.engine.decode.step import DecodeSettings, DecodeStep
from enginecmp_custom_cuda.engine.memory import params
from enginecmp_custom_cuda.engine.memory.pages import Cache
from enginecmp_custom_cuda.engine.prefill import gemm
from enginecmp_custom_cuda.engine.prefill import params as prefill_params
from enginecmp_custom_cuda.engine.prefill.prefill import Prefill
from enginecmp_custom_cuda.engine.prefill.tokens import STAGED, bucket, buckets
from enginecmp_custom_cuda.weights.kinds import decode, encode
from enginecmp_custom_cuda.weights.model import load_model

ARCHITECTURES = ("llama", "qwen2", "phi3")
CONTEXT = 200

Model = Callable[..., GGUFFile]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return tiny models, one an architecture and quantization."""
    folder = tmp_path_factory.mktemp("models")

    def make(architecture: str = "llama", quantization: str = "F32") -> GGUFFile:
        path = folder / f"{architecture}-{quantization}.gguf"
        if not path.is_file():
            write_synth(path, like=f"tiny-{architecture}", quantization=quantization, seed=1)
        return read_gguf(path)

    return make


@contextmanager
def prefill(
    device: Device, file: GGUFFile, *, precise: bool = False, kv: str = "f16", max_tokens: int = 96, slots: int = 3
) -> Iterator[tuple[Prefill, Cache]]:
    """Give a prefill with room for sequences of CONTEXT tokens."""
    loaded = load_model(device, file, CONTEXT)
    cache = Cache(device, loaded.config, kv, CONTEXT, slots)
    made = Prefill(device, loaded, cache, precise=precise, max_tokens=max_tokens)
    for slot in reversed(range(slots)):
        assert cache.pages.promise(slot, CONTEXT)
        cache.grow(slot, CONTEXT)
    try:
        yield made, cache
    finally:
        for each in (made, cache, loaded):
            each.close()


def ids_of(file: GGUFFile, tokens: int, seed: int = 0) -> NDArray[np.int32]:
    vocabulary = file.tensors["token_embd.weight"].shape[0]
    return np.random.default_rng(seed).integers(0, vocabulary, tokens).astype(np.int32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_prefill_is_the_reference(device: Device, model: Model, architecture: str) -> None:
    file = model(architecture)
    ids = ids_of(file, 150)
    with prefill(device, file, precise=True, kv="f32") as (it, _):
        found = it.score(ids)
        hidden = device.download(it.hidden, (150 - 96, it._model.config.width), np.float32)
    expected = reference.forward(file, ids, CONTEXT)
    np.testing.assert_allclose(found, expected.logits, rtol=0, atol=1e-5 * np.abs(expected.logits).max())
    last = expected.hidden[-1]
    np.testing.assert_allclose(hidden, last[96:], rtol=0, atol=1e-5 * np.abs(last).max())


def rounded(kind: str) -> reference.Linear:
    """Return a product of activations and weights of 16 bits."""

    def linear(x: reference.Array, raw: NDArray[np.uint8], weight_kind: str) -> reference.Array:
        flat = x.reshape(-1, x.shape[-1]).astype(np.float32)
        return reference.linear(decode(encode(flat, kind), kind).reshape(x.shape), decode(raw, weight_kind))

    return linear


# Not every kind with every cache: each pair costs compilations.
@pytest.mark.parametrize("quantization", ["Q8_0", "BF16"])
def test_prefill_on_tensor_cores_is_the_reference_with_rounded_activations(
    device: Device, model: Model, quantization: str
) -> None:
    file = model("qwen2", quantization)
    ids = ids_of(file, 70)
    with prefill(device, file, kv="f32") as (it, _):
        found = it.score(ids)
    expected, noise = with_rounded_activations(file, ids, quantization)
    # A last bit in float32 tips an activation to the next int8 or bf16 now and then, and that travels on to later
    # tokens; the others agree.
    distances = np.abs(found - expected).mean(axis=1)  # (T,)
    assert distances.min() < 1e-3 * noise
    assert distances.mean() < 0.25 * noise


@pytest.mark.parametrize("quantization", ["Q4_0", "F16"])
def test_halves_in_attention_add_less_noise_than_rounded_activations(
    device: Device, model: Model, quantization: str
) -> None:
    file = model("qwen2", quantization)
    ids = ids_of(file, 70)
    with prefill(device, file) as (it, _):
        found = it.score(ids)
    _, noise = with_rounded_activations(file, ids, quantization)
    exact = reference.logits(file, ids, CONTEXT)
    assert np.abs(found - exact).mean() < 1.25 * noise + 1e-4 * np.abs(exact).max()


def with_rounded_activations(
    file: GGUFFile, ids: NDArray[np.int32], quantization: str
) -> tuple[reference.Array, float]:
    """Return the oracle's logits with activations as the GEMMs round them, and their mean distance from exact ones."""
    linear = dp4a.linear if quantization.startswith("Q") else rounded(quantization)
    logits = reference.forward(file, ids, CONTEXT, linear).logits
    return logits, float(np.abs(logits - reference.logits(file, ids, CONTEXT)).mean())


@pytest.mark.parametrize("precise", [True, False])
def test_chunks_of_any_length_give_one_prefill(device: Device, model: Model, precise: bool) -> None:
    file = model("llama", "Q8_0")
    ids = ids_of(file, 131)
    with prefill(device, file, precise=precise, kv="f32" if precise else "f16") as (it, cache):
        logits = it.score(ids[:96])
        with_chunks = []
        for first, last in ((0, 1), (1, 8), (8, 24), (24, 57), (57, 96), (96, 131)):
            with_chunks.append(it.score(ids[first:last], slot=1, start=first))
    assert cache.token_bytes > 0
    found = np.concatenate(with_chunks)[:96]
    # The same sums in another order; int8 activations may tip.
    tolerance = 1e-5 if precise else 3e-2
    np.testing.assert_allclose(found, logits, rtol=0, atol=tolerance * np.abs(logits).max())


def test_sequences_share_a_call_and_do_not_see_each_other(device: Device, model: Model) -> None:
    file = model("phi3")
    first, second, third = ids_of(file, 70, 1), ids_of(file, 66, 2), ids_of(file, 9, 3)
    with prefill(device, file, precise=True, kv="f32") as (it, _):
        hidden = it._model.config.width
        it.enqueue(first[:69], np.arange(69), np.zeros(69))
        it.enqueue(second[:65], np.arange(65), np.full(65, 2))
        # One token of each of the first two and a whole prompt of the third, with an empty token between.
        position = [69, 65, -1, *range(9)]
        it.enqueue([first[69], second[65], 7, *third], position, [0, 2, 0, *[1] * 9])
        mixed = device.download(it.hidden, (12, hidden), np.float32)
        # The same as one token each, numbers read on the device.
        numbers = device.allocate(3 * 2 * 4)
        device.upload(numbers.address, np.array([[first[69], second[65]], [69, 65], [0, 2]], np.int32))
        it.enqueue(numbers.address, numbers.address + 8, numbers.address + 16, tokens=2)
        single = device.download(it.hidden, (2, hidden), np.float32)
        numbers.free()
    expected = [reference.forward(file, ids, CONTEXT).hidden[-1] for ids in (first, second, third)]
    scale = max(np.abs(each).max() for each in expected)
    np.testing.assert_allclose(mixed[0], expected[0][-1], rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(mixed[1], expected[1][-1], rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(mixed[3:], expected[2], rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(single, mixed[:2], rtol=0, atol=1e-5 * scale)


def test_splits_of_the_columns_change_nothing(device: Device, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "LEAST_STEPS", 1)
    splits = []
    choose = gemm.choose_splits

    def noted(*arguments: Any) -> int:
        splits.append(choose(*arguments))
        return splits[-1]

    monkeypatch.setattr(gemm, "choose_splits", noted)
    file = model("qwen2")  # with biases
    ids = ids_of(file, 20)
    with prefill(device, file, precise=True, kv="f32") as (it, _):
        splits.clear()
        found = it.score(ids)
    assert splits.count(1) < len(splits) / 2
    expected = reference.logits(file, ids, CONTEXT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prefill_and_decode_agree(device: Device, model: Model, architecture: str) -> None:
    file = model(architecture)
    ids = ids_of(file, 68)
    with prefill(device, file, precise=True, kv="f32") as (it, cache):
        whole = it.score(ids)
        settings = DecodeSettings(positions=CONTEXT, kv="f32", exact=True, logits=True)
        step = DecodeStep(device, it._model, 1, settings, cache)
        # From the prompt's keys and values on, then the same positions from nothing but decoding.
        for first, last in ((62, 68), (0, 3)):
            found = []
            for position in range(first, last):
                step.bind(0, position, int(ids[position]))
                step.enqueue()
                found.append(device.download(step.buffers.logits, (whole.shape[1],), np.float32))
            np.testing.assert_allclose(found, whole[first:last], rtol=0, atol=1e-5 * np.abs(whole).max())
        step.close()


def test_the_cache_holds_what_the_reference_says_and_nothing_of_empty_tokens(device: Device, model: Model) -> None:
    file = model("llama")
    ids = ids_of(file, 70)
    with prefill(device, file, precise=True, kv="f32", slots=1) as (it, cache):
        config = it._model.config
        pages = cache.pages.count
        device.fill(cache.layer_address(0), config.layers * pages * cache.page_bytes, 0xFF)
        it.enqueue(np.append(ids, 5), np.append(np.arange(70), -1), np.zeros(71))
        shape = (config.layers, pages, config.kv_heads, 2, 64, config.head_dim)
        memory = device.download(cache.layer_address(0), shape, np.float32)
        table = cache.pages.table[0]
    expected = reference.forward(file, ids, CONTEXT)
    for layer in range(config.layers):
        for which, wanted in enumerate((expected.keys[layer], expected.values[layer])):
            rows = np.concatenate([memory[layer, page, :, which].swapaxes(0, 1) for page in table])
            np.testing.assert_allclose(rows[:70], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
            assert np.isnan(rows[70:]).all()


def test_prefill_repeats_to_the_bit_in_any_order_of_threads(emulated: Device, model: Model) -> None:
    from custom_cuda_controls import set_order

    file = model("llama", "Q8_0")
    ids = ids_of(file, 40)
    with prefill(emulated, file) as (it, _):
        first = it.score(ids)
        try:
            for order in ("forward", "reverse", 7):
                set_order(order)
                np.testing.assert_array_equal(it.score(ids), first)
        finally:
            set_order("forward")


def test_chunks_follow_one_another_without_a_wait(
    device: Device, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host is chunks ahead, and a chunk's tokens stay what they were until they are copied."""
    file = model("llama")
    ids = ids_of(file, 16 * (2 * STAGED + 1))

    def refuse(*_: Any) -> None:
        pytest.fail("waited for the device")

    with prefill(device, file, precise=True, kv="f32", max_tokens=16) as (it, _):
        it.program(16, False)
        device.synchronize()
        with monkeypatch.context() as patch:
            patch.setattr(device, "synchronize", refuse)
            for first in range(0, len(ids), 16):
                it.enqueue(ids[first : first + 16], np.arange(first, first + 16), np.zeros(16))
        hidden = device.download(it.hidden, (16, it._model.config.width), np.float32)
    expected = reference.forward(file, ids, CONTEXT).hidden[-1][-16:]
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_calls_are_refused_that_do_not_fit(device: Device, model: Model) -> None:
    with prefill(device, model()) as (it, _):
        with pytest.raises(EngineError, match="expected 1 to 96 tokens at once, got 97"):
            it.enqueue(np.zeros(97), np.arange(97), np.zeros(97))
        with pytest.raises(EngineError, match="got 0"):
            it.enqueue([], [], [])
        with pytest.raises(EngineError, match="as many positions and slots as ids, got 2, 3, 2"):
            it.enqueue([1, 2], [0, 1, 2], [0, 0])


def test_few_numbers_of_tokens_are_prepared() -> None:
    assert [bucket(tokens, 512) for tokens in (1, 16, 17, 64, 65, 500, 512)] == [16, 16, 32, 64, 128, 512, 512]
    assert bucket(97, 100) == 100
    assert len(buckets(512)) == 11


def header_structs(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Return every struct of a header: its fields' names with "pointer", "int", "float" or the name of a struct."""
    text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
    found = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.DOTALL):
        fields = []
        for kind, star, field in re.findall(r"([\w ]+?) (\*?)(\w+);", body):
            fields.append((field, "pointer" if star else kind.strip()))
        found[name] = fields
    return found


def test_params_mirror_the_header() -> None:
    mirrored = {
        "EmbedParams": prefill_params.Embed,
        "RowsParams": prefill_params.Rows,
        "Finish": prefill_params.Finish,
        "GemmParams": prefill_params.Gemm,
        "ReduceParams": prefill_params.Reduce,
        "FlashParams": prefill_params.Flash,
        "SplitParams": prefill_params.Split,
    }
    kinds = {
        ctypes.c_uint64: "pointer",
        ctypes.c_int32: "int",
        ctypes.c_float: "float",
        params.Matrix: "Matrix",
        params.Cache: "Cache",
        prefill_params.Finish: "Finish",
    }
    header = header_structs(KERNELS / "prefill_params.h")
    assert header.keys() == mirrored.keys()
    for name, struct in mirrored.items():
        assert [(field, kinds[kind]) for field, kind in struct._fields_] == header[name], name
    text = (KERNELS / "prefill_params.h").read_text(encoding="utf-8")
    kinds_there = dict(re.findall(r"FINISH_(\w+) = (\d)", text))
    assert kinds_there == {kind.name: str(kind.value) for kind in prefill_params.FinishKind}
