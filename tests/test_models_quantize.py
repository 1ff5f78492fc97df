"""Derived files: what gguf-py computes, metadata byte for byte, the same bytes twice, nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from enginecmp.errors import ModelError, UsageError
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.gguf_write import TensorPlan, encode_weights, field, whole_file, write_gguf
from enginecmp.models.quantize import FILE_TYPES, quantize
from enginecmp.models.store import resolve
from enginecmp.models.synth import write_synth


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "source.gguf"
    write_synth(path, "tiny-llama", "F32", seed=2)
    return path


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_every_matrix_is_what_gguf_py_makes_of_it(kind: str, source: Path, tmp_path: Path) -> None:
    info, notes = quantize(source, tmp_path / "out.gguf", kind.lower())
    assert notes == []
    assert info.quantization == kind
    wanted = gguf.GGMLQuantizationType[kind]
    original = {tensor.name: tensor for tensor in gguf.GGUFReader(str(source)).tensors}
    for tensor in gguf.GGUFReader(str(tmp_path / "out.gguf")).tensors:
        weights = original[tensor.name].data
        if len(tensor.shape) == 1:
            assert tensor.tensor_type.name == "F32"
            np.testing.assert_array_equal(tensor.data, weights)
        else:
            assert tensor.tensor_type == wanted
            expected = gguf.quantize(np.ascontiguousarray(weights), wanted)
            np.testing.assert_array_equal(tensor.data.view(np.uint8), expected.view(np.uint8))


def test_metadata_is_copied_byte_for_byte_but_for_the_file_type(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out.gguf", "Q8_0")
    before, after = read_gguf(source), read_gguf(tmp_path / "out.gguf")
    old, new = source.read_bytes(), (tmp_path / "out.gguf").read_bytes()
    assert list(before.spans) == list(after.spans)
    for key, (start, end) in before.spans.items():
        if key != "general.file_type":
            first, last = after.spans[key]
            assert old[start:end] == new[first:last], key
    assert after.metadata["general.file_type"] == 7  # llama.cpp: LLAMA_FTYPE_MOSTLY_Q8_0


def test_same_source_same_bytes(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "a.gguf", "Q4_0")
    quantize(source, tmp_path / "b.gguf", "Q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_dequantizing_to_f32_and_back_loses_nothing(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "q8.gguf", "Q8_0")
    quantize(tmp_path / "q8.gguf", tmp_path / "f32.gguf", "F32")
    q8, f32 = read_gguf(tmp_path / "q8.gguf"), read_gguf(tmp_path / "f32.gguf")
    assert {tensor.type for tensor in f32.tensors.values()} == {"F32"}
    for name in q8.tensors:
        np.testing.assert_array_equal(q8.float32(name), f32.float32(name))


def write_matrix(path: Path, weights: np.ndarray[Any, np.dtype[np.float32]], kind: str = "F32") -> None:
    """Write a file with one matrix; there is just enough metadata to describe it."""
    fields = [
        field("general.architecture", "STRING", "llama"),
        field("llama.context_length", "UINT32", 8),
        field("tokenizer.ggml.tokens", "STRING", ["a"]),
    ]
    plan = TensorPlan(name="w.weight", shape=weights.shape, type=kind)
    write_gguf(path, fields, [plan], lambda plan: [encode_weights(weights, plan.type)])


def test_rows_that_are_no_whole_blocks_fall_back_to_f16_with_a_note(tmp_path: Path) -> None:
    write_matrix(tmp_path / "odd.gguf", np.ones((4, 33), np.float32))
    _, notes = quantize(tmp_path / "odd.gguf", tmp_path / "out.gguf", "Q8_0")
    assert notes == ["1 tensors did not become Q8_0: w.weight"]
    assert read_gguf(tmp_path / "out.gguf").tensors["w.weight"].type == "F16"


def test_weights_that_f16_cannot_hold_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    write_matrix(tmp_path / "large.gguf", np.full((4, 32), 1e6, np.float32))
    with pytest.raises(ModelError, match="above 65504"):
        quantize(tmp_path / "large.gguf", tmp_path / "out.gguf", "F16")
    assert [path.name for path in tmp_path.iterdir()] == ["large.gguf"]


def test_large_matrix_is_converted_in_pieces_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.random.default_rng(0).standard_normal((37, 64), dtype=np.float32)
    write_matrix(tmp_path / "m.gguf", weights)
    quantize(tmp_path / "m.gguf", tmp_path / "whole.gguf", "Q8_0")
    monkeypatch.setattr("enginecmp.models.quantize.CHUNK_WEIGHTS", 300)
    quantize(tmp_path / "m.gguf", tmp_path / "pieces.gguf", "Q8_0")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_unknown_type_and_writing_onto_itself_are_usage_errors(source: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'Q8_0'"):
        quantize(source, source.with_name("x.gguf"), "Q8_O")
    before = source.read_bytes()
    with pytest.raises(UsageError, match=r"the source .* itself"):
        quantize(source, source, "Q8_0")
    assert source.read_bytes() == before


def test_type_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "int.gguf"
    fields = [field("general.architecture", "STRING", "llama")]
    write_gguf(path, fields, [TensorPlan(name="i", shape=(2, 8), type="I32")], lambda plan: [bytes(64)])
    with pytest.raises(ModelError, match="tensor 'i' in a type that can be dequantized, got I32"):
        quantize(path, tmp_path / "out.gguf", "F32")
    assert not (tmp_path / "out.gguf").exists()


def test_too_little_disk_is_told_before_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bytes free on the disk"), whole_file(tmp_path / "big.gguf", 2**60):
        pytest.fail("the file was opened")
    assert not list(tmp_path.iterdir())


def test_disk_that_fills_up_midway_is_one_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse a write in the middle of the file, as a full disk does."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from enginecmp.models.quantize import quantize; from enginecmp.errors import ModelError\n"
        "try: quantize(sys.argv[1], sys.argv[2], 'F32')\n"
        "except ModelError as error: print(error)"
    )
    target = tmp_path / "out.gguf"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, source, target], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{target}: expected to write the file, got: File too large"]
    assert not list(tmp_path.iterdir())


def greedy(path: str, prompt: list[int], n_tokens: int) -> list[int]:
    """Return llama.cpp's greedy continuation."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    assert model, f"llama.cpp refused {path}"
    parameters: Any = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = 64, 1, 1
    context = llama_cpp.llama_init_from_model(model, parameters)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    found, pending = [], prompt
    try:
        for _ in range(n_tokens):
            array = (llama_cpp.llama_token * len(pending))(*pending)
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(pending))) == 0
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (vocabulary,))
            pending = [int(logits.argmax())]
            found += pending
        return found
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


@pytest.mark.model
@pytest.mark.parametrize("quantization", ["q8_0", "f32"])
def test_derived_files_of_the_embedded_model_still_speak_english(quantization: str) -> None:
    from enginecmp.models.tokenizer import load_tokenizer

    model = resolve(f"smollm2-135m-instruct:{quantization}", fetch=True)
    tokenizer = load_tokenizer(model.path)
    answer = tokenizer.decode(greedy(model.path, tokenizer.encode("The capital of France is"), 8))
    assert answer.startswith(" Paris")
