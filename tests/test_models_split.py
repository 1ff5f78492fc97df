"""Models in several files, written here as llama.cpp's gguf-split writes them; llama.cpp itself is the oracle."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import CommandLine
from helpers import only_run

from enginecmp.errors import ModelError
from enginecmp.format.readers import read_manifest
from enginecmp.launch.model_file import file_for
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.gguf_split import part_names
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.quantize import quantize
from enginecmp.models.store import merged, resolve
from enginecmp.models.synth import write_synth
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import ModelInfo

WHOLE = "whole.gguf"
PARTS = tuple(part_names("part-00001-of-00003.gguf"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kind_of(key: str, value: int) -> str:
    """Return the type that llama.cpp insists on, or one that holds a number that it would not take."""
    return "INT32" if key == "split.tensors.count" else "UINT16" if value < 2**16 else "UINT32"


def split(
    source: Path, folder: Path, changed: Callable[[int, dict[str, int]], object] = lambda number, keys: None
) -> Path:
    """Write a model as three parts and return the first: metadata in the first, tensors in all."""
    file = read_gguf(source)
    content = source.read_bytes()
    names = list(file.tensors)
    for number, name in enumerate(PARTS):
        keys = {"split.no": number, "split.count": 3, "split.tensors.count": len(names)}
        changed(number, keys)
        mine = names[number::3]
        write_gguf(
            folder / name,
            [content[start:end] for start, end in file.spans.values() if number == 0]
            + [field(key, kind_of(key, value), value) for key, value in keys.items()],
            [TensorPlan(name=n, shape=file.tensors[n].shape, type=file.tensors[n].type) for n in mine],
            lambda plan: [file.raw(plan.name).tobytes()],
        )
    return folder / PARTS[0]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    write_synth(tmp_path / WHOLE, "tiny-llama", "F32", seed=4)
    return split(tmp_path / WHOLE, tmp_path)


def test_parts_are_read_as_the_whole_file(first: Path, tmp_path: Path) -> None:
    ours, whole = resolve(str(first)), resolve(str(tmp_path / WHOLE))
    assert ours.parts == tuple(str(tmp_path / name) for name in PARTS)
    assert ours.path == str(first)
    assert (ours.parameters, ours.architecture, ours.vocabulary) == (whole.parameters, "llama", whole.vocabulary)
    assert ours.bytes == sum(Path(part).stat().st_size for part in ours.parts)
    joined = b"".join(Path(part).read_bytes() for part in ours.parts)
    assert ours.sha256 == hashlib.sha256(joined).hexdigest()
    parts, expected = read_gguf(first), read_gguf(tmp_path / WHOLE)
    assert sorted(parts.tensors) == sorted(expected.tensors)
    for name in expected.tensors:
        np.testing.assert_array_equal(parts.float32(name), expected.float32(name))


def test_change_of_a_later_part_is_noticed(first: Path) -> None:
    before = resolve(str(first))
    last = Path(before.parts[2])
    last.write_bytes(last.read_bytes()[:-4] + b"\1\2\3\4")
    assert resolve(str(first)).sha256 != before.sha256


def test_quantized_and_merged_files_are_those_of_the_whole_file(first: Path, tmp_path: Path) -> None:
    for source, target in ((first, "a.gguf"), (tmp_path / WHOLE, "b.gguf")):
        quantize(source, tmp_path / target, "Q8_0", name="same")
    ours, theirs = read_gguf(tmp_path / "a.gguf"), read_gguf(tmp_path / "b.gguf")
    assert not [key for key in ours.metadata if key.startswith("split.")]
    assert {name: ours.raw(name).tobytes() for name in ours.tensors} == {
        name: theirs.raw(name).tobytes() for name in theirs.tensors
    }
    one = merged(resolve(str(first)))
    assert one.parts == ()
    assert one.parameters == resolve(str(tmp_path / WHOLE)).parameters
    assert ours.metadata["general.architecture"] == read_gguf(one.path).metadata["general.architecture"]


def test_merged_file_is_made_once_for_engines_that_read_no_parts(first: Path, fake: Plugin) -> None:
    model = resolve(str(first))
    assert fake.info is not None
    reads = msgspec.structs.replace(fake.info, reads_split_models=True)
    said: list[str] = []
    file = file_for(fake, model, said.append)
    assert file == file_for(fake, model, said.append)
    assert (file.name, file.parts, len(said)) == (model.name, (), 1)
    assert msgspec.structs.replace(fake, info=reads).info is reads
    assert file_for(msgspec.structs.replace(fake, info=reads), model) is model


def test_run_gives_the_engine_a_file_that_it_reads_and_records_it(
    first: Path, cmp: CommandLine, tmp_path: Path
) -> None:
    few = ("--scenario", "single", "--profile", "quick", "--blocks", "1", "--requests", "1")
    done = cmp("run", "--engines", "fake", *few, "--no-gate", "--no-sensors", "--model", first)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("merging the 3 parts") == 1
    manifest = read_manifest(only_run(tmp_path / "results"))
    model = resolve(str(first))
    assert (manifest.model.sha256, manifest.model.bytes) == (model.sha256, model.bytes)
    assert manifest.engines[0].options["merged_file_sha256"] == merged(model).sha256


def test_llama_cpp_reads_the_parts_as_we_do(first: Path) -> None:
    import llama_cpp

    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(str(first).encode(), llama_cpp.llama_model_default_params())
    assert loaded, "llama.cpp refuses what the test took for a split model"
    try:
        assert llama_cpp.llama_model_n_params(loaded) == resolve(str(first)).parameters
    finally:
        llama_cpp.llama_model_free(loaded)


def remove(number: int) -> Callable[[Path], Path]:
    def change(first: Path) -> Path:
        (first.parent / PARTS[number]).unlink()
        return first

    return change


def renamed(first: Path) -> Path:
    return first.rename(first.with_name("mine.gguf"))


def mixed(first: Path) -> Path:
    write_synth(first.with_name("other.gguf"), "tiny-llama", "F32", seed=5, layers=1)
    folder = first.parent / "other"
    folder.mkdir()
    split(first.with_name("other.gguf"), folder)
    shutil.copy(folder / PARTS[1], first.with_name(PARTS[1]))
    return first


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda first: first.with_name(PARTS[1]),
            f"part 2 of 3 of a split one; name its first part: .*{PARTS[0]}",
        ),
        (remove(1), f"all 3 parts of the split model beside it, {PARTS[1]} missing"),
        (renamed, "first of 3 parts to be named NAME-00001-of-00003.gguf"),
        (mixed, "the parts are of different models"),
        (
            lambda first: shutil.copy(first, first.with_name(PARTS[2])) and first,
            "expected part 3 of 3, got part 1 of 3",
        ),
    ],
)
def test_sets_that_are_not_whole_are_named(change: Callable[[Path], Path], fault: str, first: Path) -> None:
    with pytest.raises(ModelError, match=fault) as caught:
        resolve(str(change(first)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keys", [{"split.count": 70_000}, {"split.no": 3}, {"split.no": 9, "split.count": 4}])
def test_impossible_numbers_of_parts_are_refused(keys: dict[str, int], tmp_path: Path) -> None:
    write_synth(tmp_path / WHOLE, "tiny-llama")
    path = split(tmp_path / WHOLE, tmp_path, lambda number, own: own.update(keys))
    with pytest.raises(ModelError, match=r"got (split\.no|part 10 of 4)"):
        resolve(str(path))


def test_file_that_was_once_split_is_a_whole_one(tmp_path: Path) -> None:
    """`gguf-split --merge` leaves a count of 0."""
    write_synth(tmp_path / WHOLE, "tiny-llama")
    file, content = read_gguf(tmp_path / WHOLE), (tmp_path / WHOLE).read_bytes()
    fields = [content[start:end] for start, end in file.spans.values()] + [field("split.count", "UINT32", 0)]
    plans = [TensorPlan(name=t.name, shape=t.shape, type=t.type) for t in file.tensors.values()]
    write_gguf(tmp_path / "m.gguf", fields, plans, lambda plan: [file.raw(plan.name).tobytes()])
    info: ModelInfo = resolve(str(tmp_path / "m.gguf"))
    assert info.parts == ()


def companion(path: Path, fields: dict[str, str], tensors: dict[str, tuple[int, ...]]) -> Path:
    plans = [TensorPlan(name=name, shape=shape, type="F32") for name, shape in tensors.items()]
    write_gguf(
        path,
        [field(key, "STRING", value) for key, value in fields.items()],
        plans,
        lambda plan: [bytes(plan.nbytes())],
    )
    return path


@pytest.mark.parametrize(
    ("fields", "tensors", "name"),
    [
        ({"general.type": "imatrix"}, {"blk.0.attn_q.weight.in_sum2": (1, 32)}, "an importance matrix"),
        ({"x": "y"}, {"blk.0.attn_q.weight.in_sum2": (1, 32)}, "an importance matrix"),
        (
            {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
            {"blk.0.attn_q.weight.lora_a": (4, 32), "blk.0.attn_q.weight.lora_b": (32, 4)},
            "a LoRA adapter",
        ),
        ({"general.architecture": "llama"}, {"blk.0.attn_q.weight.lora_a": (4, 32)}, "a LoRA adapter"),
        (
            {"general.architecture": "clip", "general.type": "mmproj"},
            {"mm.0.weight": (4, 32)},
            "a multimodal projector",
        ),
        ({"general.architecture": "clip"}, {"v.patch_embd.weight": (4, 32)}, "a multimodal projector"),
        ({"general.architecture": "controlvector"}, {"direction.1": (32,)}, "a control vector"),
        ({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}, {}, "a file without weights .a vocabulary"),
    ],
)
def test_what_goes_with_a_model_is_named(
    fields: dict[str, str], tensors: dict[str, tuple[int, ...]], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"expected a model, got {name}.*; name the model that it goes with"):
        resolve(str(companion(tmp_path / "x.gguf", fields, tensors)))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.* 'git lfs pull'"),
        (b"PK\x03\x04" + bytes(40), "a zip archive"),
        (b"\x1f\x8b" + bytes(40), "a gzip archive"),
        (b"<!DOCTYPE html><html>please log in</html>", "a web page"),
        (b"tjgg" + bytes(40), "a GGML file from before GGUF"),
        ((40).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}' + bytes(40), "a safetensors file"),
    ],
)
def test_other_formats_are_named(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=name):
        resolve(str(tmp_path / "x.gguf"))
