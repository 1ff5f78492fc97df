"""Hugging Face folders as models: converted both ways bit for bit, hashed, and refused in one line where they lie."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from enginecmp.errors import ModelError, UnsupportedModel, UsageError
from enginecmp.launch.launch import LaunchFailure, loadable
from enginecmp.launch.model_file import file_for, files_of
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.huggingface import safetensors_file
from enginecmp.models.huggingface.folder import HFFolder, folder_sha256, read_folder
from enginecmp.models.huggingface.proof import TEXTS, first_difference
from enginecmp.models.huggingface.stored import known_sha256, model_of_folder, with_folder
from enginecmp.models.huggingface.to_folder import write_folder_of
from enginecmp.models.huggingface.to_gguf import write_gguf_of
from enginecmp.models.info import sha256_of
from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
from enginecmp.models.known_files import known_place
from enginecmp.models.store import exact_sibling, resolve
from enginecmp.plugins.plugin import Plugin
from enginecmp.testing.tiny_models import changed_model, tiny_model
from enginecmp.types import EngineInfo, ModelInfo


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(model: ModelInfo, folder: Path) -> Path:
    write_folder_of(read_gguf(model.path), model.sha256, folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    return written(tiny_model(place, "llama", "BF16"), place / "mine")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "mine"))


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *(("llama", kind) for kind in ("F32", "F16", "BF16", "Q8_0")),
        ("qwen2", "BF16"),
        ("phi3", "F16"),
        ("gpt2", "BF16"),
    ],
)
def test_there_and_back_every_weight_and_number_is_the_same(architecture: str, kind: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, architecture, kind)
    folder = written(model, tmp_path / "hf")
    write_gguf_of(read_folder(folder), folder_sha256(folder), tmp_path / "back.gguf")
    there, back = read_gguf(model.path), read_gguf(tmp_path / "back.gguf")
    assert set(back.tensors) == set(there.tensors)
    for name, tensor in there.tensors.items():
        if tensor.type in ("F32", "F16", "BF16"):
            assert back.tensors[name] == msgspec.structs.replace(tensor, offset=back.tensors[name].offset)
            assert np.array_equal(back.raw(name), there.raw(name)), name
        assert np.array_equal(back.float32(name), there.float32(name)), name
    # What names the conversion, and what dequantizing changes.
    told = {"general.name", "general.description", "general.file_type", "enginecmp.source.sha256"}
    assert {k: v for k, v in there.metadata.items() if k not in told} == {
        k: v for k, v in back.metadata.items() if k not in told
    }
    # The file says Q8_0 and holds F32 once it was dequantized.
    assert (back.metadata["general.file_type"] == there.metadata["general.file_type"]) == (kind != "Q8_0")
    assert back.metadata["enginecmp.source.sha256"] == folder_sha256(folder)


def test_rows_lie_where_transformers_and_llama_cpp_have_them(tmp_path: Path) -> None:
    """Two heads of four: GGUF's llama holds a rotary pair side by side, transformers half a head apart."""
    model = tiny_model(tmp_path, "llama", "F32")
    gguf = read_gguf(model.path)
    hf = read_folder(written(model, tmp_path / "hf")).tensors
    q = gguf.float32("blk.0.attn_q.weight")  # (4 heads x 16, 64)
    there = hf["model.layers.0.self_attn.q_proj.weight"].raw().view(np.float32).reshape(64, 64)
    assert np.array_equal(there[16:24], q[16:32:2])
    assert np.array_equal(there[24:32], q[17:32:2])
    v = hf["model.layers.0.self_attn.v_proj.weight"].raw().view(np.float32).reshape(32, 64)
    assert np.array_equal(v, gguf.float32("blk.0.attn_v.weight"))
    gpt2 = tiny_model(tmp_path, "gpt2", "F32")
    conv = read_folder(written(gpt2, tmp_path / "gpt2")).tensors["transformer.h.0.mlp.c_fc.weight"]
    assert conv.shape == (64, 128)
    assert np.array_equal(
        conv.raw().view(np.float32).reshape(64, 128).T, read_gguf(gpt2.path).float32("blk.0.ffn_up.weight")
    )


def test_config_json_says_what_transformers_reads(tmp_path: Path) -> None:
    config = read_folder(written(tiny_model(tmp_path, "qwen2", "F16"), tmp_path / "q")).config
    expected = {
        **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "float16", "vocab_size": 314},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
        **{"rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "rope_scaling": None, "tie_word_embeddings": True},
        **{"bos_token_id": 313, "eos_token_id": 313, "pad_token_id": None},
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "fields", "tensors"),
    [
        ("llama", {"llama.attention.sliding_window": ("UINT32", 128)}, {}),
        (
            "llama",
            {"llama.rope.scaling.type": ("STRING", "linear"), "llama.rope.scaling.factor": ("FLOAT32", 4.0)},
            {},
        ),
        ("phi3", {"phi3.rope.dimension_count": ("UINT32", 12)}, {}),
        (
            "phi3",
            {
                "phi3.rope.scaling.attn_factor": ("FLOAT32", 1.25),
                "phi3.rope.scaling.original_context_length": ("UINT32", 256),
            },
            {
                "rope_factors_long.weight": np.linspace(1, 5, 8, dtype=np.float32),
                "rope_factors_short.weight": np.linspace(1, 2, 8, dtype=np.float32),
            },
        ),
    ],
    ids=["window", "linear", "partial", "longrope"],
)
def test_rotary_embeddings_and_windows_survive(
    name: str, fields: dict[str, Any], tensors: dict[str, Any], tmp_path: Path
) -> None:
    model = changed_model(tiny_model(tmp_path, name), fields, tensors)
    folder = written(model, tmp_path / "hf")
    write_gguf_of(read_folder(folder), "0" * 64, tmp_path / "back.gguf")
    back = read_gguf(tmp_path / "back.gguf")
    for key, (_, value) in fields.items():
        assert back.metadata[key] == value, key
    for tensor, values in tensors.items():
        assert np.array_equal(back.float32(tensor), values)


def test_llama3_scaling_is_told_from_its_factors(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "llama", llama3_rope=True, rope_base=500_000.0)
    folder = written(model, tmp_path / "hf")
    scaling = read_folder(folder).config["rope_scaling"]
    # The published configuration of Llama 3.2.
    assert scaling == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    write_gguf_of(read_folder(folder), "0" * 64, tmp_path / "back.gguf")
    there, back = (read_gguf(path).float32("rope_freqs.weight") for path in (model.path, tmp_path / "back.gguf"))
    assert np.allclose(there, back, rtol=1e-6)


def test_tokenizer_of_the_folder_reads_every_text_as_the_file_does(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "llama")
    folder = written(model, tmp_path / "hf")
    assert first_difference(IsolatedTokenizer(folder / "tokenizer.json"), IsolatedTokenizer(model.path)) == ""
    other = tiny_model(tmp_path, "qwen2")
    changed = changed_model(other, {"tokenizer.ggml.pre": ("STRING", "gpt-2")})
    # Qwen splits "12" into digits; the tiny vocabulary has a merge that shows elsewhere: a space before a new line.
    readers = [IsolatedTokenizer(path) for path in (other.path, changed.path)]
    found = first_difference(IsolatedTokenizer(written(other, tmp_path / "q") / "tokenizer.json"), readers[1])
    ids = [[reader.encode(text) for text in TEXTS] for reader in readers]
    assert bool(found) == (ids[0] != ids[1])


def test_sentencepiece_tokenizer_survives_with_its_begin_token(tmp_path: Path) -> None:
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁t",
        "he",
        "▁the",
        "▁",
        "t",
        "h",
        "e",
    ]
    scores = [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]
    tokens += [f"[unused{n}]" for n in range(314 - len(tokens))]
    scores += [-100.0] * (314 - len(scores))
    types = [2, 3, 3, *[6] * 256, *[1] * 55]
    model = changed_model(
        tiny_model(tmp_path, "llama"),
        {
            "tokenizer.ggml.model": ("STRING", "llama"),
            "tokenizer.ggml.tokens": ("STRING", tokens),
            "tokenizer.ggml.scores": ("FLOAT32", scores),
            "tokenizer.ggml.token_type": ("INT32", types),
            "tokenizer.ggml.bos_token_id": ("UINT32", 1),
            "tokenizer.ggml.eos_token_id": ("UINT32", 2),
            "tokenizer.ggml.add_bos_token": ("BOOL", True),
        },
        without=("tokenizer.ggml.merges",),
    )
    folder = written(model, tmp_path / "hf")
    write_gguf_of(read_folder(folder), "0" * 64, tmp_path / "back.gguf")
    there, back = IsolatedTokenizer(model.path), IsolatedTokenizer(tmp_path / "back.gguf")
    assert back.encode("the the") == there.encode("the the") == [261, 261]
    assert (there.bos_id, back.bos_id) == (1, 1)
    metadata = read_gguf(tmp_path / "back.gguf").metadata
    assert metadata["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert metadata["tokenizer.ggml.eos_token_id"] == 2


def test_folder_is_a_model_with_both_hashes(folder: Path) -> None:
    said: list[str] = []
    model = resolve(str(folder), say=said.append)
    assert (model.name, model.quantization, model.derived) == ("mine", "BF16", "gguf")
    assert model.hf_folder == str(folder)
    assert model.hf_sha256 == folder_sha256(folder)
    assert read_gguf(model.path).metadata["enginecmp.source.sha256"] == model.hf_sha256
    assert len(said) == 1
    assert resolve(str(folder), say=said.append) == model
    assert len(said) == 1  # made once
    exact = exact_sibling(model)
    assert exact.quantization == "F32"
    assert np.array_equal(
        read_gguf(exact.path).float32("blk.0.attn_q.weight"), read_gguf(model.path).float32("blk.0.attn_q.weight")
    )


def test_changed_file_changes_the_folders_hash_and_the_model(folder: Path) -> None:
    before = resolve(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 20_000.0}))
    after = resolve(str(folder))
    assert before.hf_sha256 != after.hf_sha256
    assert read_gguf(after.path).metadata["llama.rope.freq_base"] == 20_000.0
    (folder / "README.md").write_text("words")
    (folder / "enginecmp.json").write_text("{}")
    assert resolve(str(folder)).hf_sha256 == after.hf_sha256


def _plugin(**facts: Any) -> Plugin:
    info = EngineInfo(
        name="x", version="1", licence="MIT", devices=("cpu",), architectures=(), quantizations=(), **facts
    )
    return Plugin(name="x", info=info)


def test_engine_gets_the_form_that_it_reads(folder: Path, tmp_path: Path, cache: Path) -> None:
    named, gguf = resolve(str(folder)), tiny_model(tmp_path, "gpt2")
    reader = _plugin(reads_hf_folders=True)
    assert file_for(reader, named) == named
    assert files_of(named) == (str(folder / "model.safetensors"),)
    plain = file_for(_plugin(), named)
    assert (plain.hf_folder, plain.path, files_of(plain)) == ("", named.path, (named.path,))
    derived = file_for(reader, gguf)
    assert (derived.derived, derived.path, derived.sha256) == ("hf_folder", gguf.path, gguf.sha256)
    assert derived.hf_folder == str(cache / "hf" / gguf.sha256)
    assert derived.hf_sha256 == folder_sha256(Path(derived.hf_folder))
    server = file_for(_plugin(), gguf, extra={"start": "serve {hf_model} --port {port}"})
    assert server == derived


def test_sharded_folder_reads_as_the_whole(folder: Path, tmp_path: Path) -> None:
    whole = resolve(str(folder))
    shard(folder, 3)
    assert len(list(folder.glob("model-*.safetensors"))) == 3
    again = resolve(str(folder))
    assert again.hf_sha256 != whole.hf_sha256
    one, other = read_gguf(whole.path), read_gguf(again.path)
    assert all(np.array_equal(one.raw(name), other.raw(name)) for name in one.tensors)


def shard(folder: Path, count: int) -> None:
    """Cut a folder's weights into files with an index, as large models come."""
    tensors = list(read_folder(folder).tensors.values())
    names = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    for n, name in enumerate(names):
        safetensors_file.write_safetensors(
            folder / name,
            [
                safetensors_file.TensorToWrite(
                    name=t.name, dtype=t.dtype, shape=t.shape, content=lambda t=t: [t.raw().tobytes()]
                )
                for t in tensors[n::count]
            ],
            {},
        )
    index = {t.name: names[n % count] for n, t in enumerate(tensors)}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the header of a folder's weights."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


def _first(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(value for key, value in header.items() if key != "__metadata__")
    return found


def _config(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        r"a Hugging Face folder with config.json.*hf download",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "with model.safetensors, it is not there; fetch"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "expected a tokenizer.json, got none; save it with"),
    "a gguf instead": (
        lambda f: ((f / "config.json").unlink(), (f / "a.gguf").touch()),
        r"expected a model, got a folder; name one of its files: --model .*a\.gguf",
    ),
    "pickles": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "got pytorch_model.bin; save it as safetensors",
    ),
    "adapter": (
        lambda f: (
            (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
            (f / "adapter_config.json").touch(),
        ),
        "got a LoRA adapter; name the model",
    ),
    "quantized": (_config(quantization_config={"quant_method": "gptq"}), "got weights quantized with gptq; name"),
    "deep config": (lambda f: (f / "config.json").write_text('{"a":' * 100_000), "expected a JSON object"),
    "huge config": (lambda f: (f / "config.json").write_text(" " * (2**22 + 1)), "expected at most 4194304 bytes"),
    "other model": (_config(model_type="gemma"), "expected model_type llama, mistral, qwen2, phi3, gpt2, got 'gemma'"),
    "absurd layers": (_config(num_hidden_layers=10**9), "a whole number from 1 to 4096 in 'num_hidden_layers'"),
    "text for a number": (_config(hidden_size="\x1b[31m64"), r"in 'hidden_size', got '\\x1b"),
    "other rope": (_config(rope_scaling={"rope_type": "yarn", "factor": 4}), "expected rope_type default"),
    "a number that float32 cannot hold": (
        _config(rope_theta=1e300),
        "expected a number above 0 in 'rope_theta', got 1e",
    ),
    "heads": (_config(num_attention_heads=8, head_dim=None), "of shape"),
    "traversal": (
        lambda f: (shard(f, 2), _index(f, "../../etc/passwd.safetensors")),
        r"expected names of safetensors files in this folder, got '\.\./",
    ),
    "absolute": (lambda f: (shard(f, 2), _index(f, "/etc/x.safetensors")), "names of safetensors files in this folder"),
    "shard missing": (
        lambda f: (shard(f, 2), (f / "model-00002-of-00002.safetensors").unlink()),
        "with model-00002-of-00002.safetensors, it is not there",
    ),
    "index of others": (
        lambda f: (shard(f, 2), _index(f, "model-00001-of-00002.safetensors", "no.such.tensor")),
        "expected tensor 'no.such.tensor' in model-00001",
    ),
    "header too long": (
        lambda f: (f / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}" + bytes(90)),
        "expected a header within its 100 bytes",
    ),
    "no header": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 64), "expected a header within"),
    "deep header": (
        lambda f: (f / "model.safetensors").write_bytes((500_000).to_bytes(8, "little") + b'{"a":' * 100_000),
        "expected a header of tensors in JSON",
    ),
    "offsets outside": (lambda f: _header(f, lambda h: _first(h).update(data_offsets=[0, 2**40])), "inside the file"),
    "offsets turned": (lambda f: _header(f, lambda h: _first(h).update(data_offsets=[64, 0])), "inside the file"),
    "offsets negative": (lambda f: _header(f, lambda h: _first(h).update(data_offsets=[-64, 0])), "tensors in JSON"),
    "huge shape": (lambda f: _header(f, lambda h: _first(h).update(shape=[2**40, 2**40])), "inside the file"),
    "unknown type": (lambda f: _header(f, lambda h: _first(h).update(dtype="F12")), "expected a known type of tensor"),
    "other type": (lambda f: _header(f, lambda h: _first(h).update(dtype="I32")), "F32, F16, BF16, got I32"),
    "gap": (
        lambda f: _header(f, lambda h: h.pop(next(k for k in h if "norm" in k))),
        "right after the one|bytes by",
    ),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-4]),
        "inside the file",
    ),
    "more behind": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"x"),
        "it is cut short or has more",
    ),
    "pipe": (lambda f: ((f / "config.json").unlink(), __import__("os").mkfifo(f / "config.json")), "with config.json"),
    "unigram": (
        lambda f: (f / "tokenizer.json").write_text('{"model":{"type":"Unigram","vocab":{},"merges":[]}}'),
        "expected a tokenizer of kind BPE, got 'Unigram'",
    ),
    "ids outside": (
        lambda f: (f / "tokenizer.json").write_text('{"model":{"vocab":{"a":314},"merges":[]}}'),
        "expected token ids below 314, the rows of the embedding, got 314 of 'a'",
    ),
    "broken merges": (
        lambda f: (f / "tokenizer.json").write_text('{"model":{"type":"BPE","vocab":{"a":0},"merges":["x y"]}}'),
        "expected a consistent tokenizer",
    ),
}


def _index(folder: Path, file: str, tensor: str = "") -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"][tensor or next(iter(content["weight_map"]))] = file
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", HOSTILE)
def test_broken_or_hostile_folder_is_one_line_that_names_it(name: str, folder: Path) -> None:
    change, expected = HOSTILE[name]
    change(folder)
    with pytest.raises(ModelError, match=expected) as caught:
        resolve(str(folder))
    message = str(caught.value)
    assert str(folder) in message
    assert message.isprintable()
    assert len(message) < 600


def test_hub_id_lone_weights_and_missing_paths_name_the_next_step(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"download it first: hf download org/name --local-dir name, .*no hub is asked"
    ):
        resolve("org/name")
    with pytest.raises(UsageError, match=rf"got the weights alone; name their folder: --model {folder}"):
        resolve(str(folder / "model.safetensors"))
    with pytest.raises(ModelError, match="No such file"):
        resolve(str(tmp_path / "none"))


def test_hub_folder_without_a_hub_is_one_line(tmp_path: Path) -> None:
    code = (
        "from enginecmp.models.store import resolve; from enginecmp.errors import ModelError\n"
        "try: resolve('hf:owner/repo@main', fetch=True)\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("hf:owner/repo@main: expected the folder from the hub, got: ")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("architecture", "fields", "tensors", "expected"),
    [
        ("llama", {"llama.expert_count": ("UINT32", 8)}, {}, "expected only metadata that is implemented here"),
        (
            "llama",
            {"general.architecture": ("STRING", "gemma"), "gemma.context_length": ("UINT32", 512)},
            {},
            "expected an architecture among llama, qwen2",
        ),
        ("qwen2", {}, {"blk.0.extra.weight": np.zeros((2, 2), np.float32)}, "also 'blk.0.extra.weight'"),
        ("llama", {}, {"blk.0.attn_q.bias": np.zeros(64, np.float32)}, "expected biases where transformers' llama has"),
        ("llama", {}, {"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)}, "Llama 3's scaling"),
        ("llama", {"llama.attention.head_count": ("UINT32", 3)}, {}, "got|of shape"),
    ],
)
def test_file_that_no_folder_can_say_is_refused(
    architecture: str, fields: dict[str, Any], tensors: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    model = changed_model(tiny_model(tmp_path, architecture), fields, tensors)
    with pytest.raises((UnsupportedModel, ModelError), match=expected):
        write_folder_of(read_gguf(model.path), model.sha256, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    assert not list(tmp_path.glob(".hf*"))


def test_derived_folder_is_made_once_and_says_of_what(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "llama", "Q8_0")
    said: list[str] = []
    made = with_folder(model, say=said.append)
    assert with_folder(model, say=said.append) == made
    assert len(said) == 1
    derivation = json.loads((Path(made.hf_folder) / "enginecmp.json").read_text())
    assert derivation["source_sha256"] == model.sha256
    assert derivation["weights"] == "dequantized to F32 from Q8_0"


@pytest.mark.parametrize("lost", ["config.json", "the sidecar"])
def test_derived_folder_that_changed_is_made_again_and_said(lost: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "llama")
    made = with_folder(model)
    config = Path(made.hf_folder) / "config.json"
    whole = config.read_bytes()
    if lost == "config.json":
        config.write_bytes(whole.replace(b"rope_theta", b"rope_thetb"))
        known_sha256(Path(made.hf_folder))  # as where the folder is named as a model of its own
    else:
        known_place(Path(made.hf_folder), ".made.json").unlink()
    said: list[str] = []
    assert with_folder(model, say=said.append) == made
    assert config.read_bytes() == whole
    assert "is not what was made" in said[0]


@pytest.mark.parametrize("lost", ["a byte", "the sidecar"])
def test_derived_file_that_changed_is_made_again_and_said(lost: str, folder: Path) -> None:
    made = model_of_folder(folder)
    if lost == "a byte":
        content = bytearray(Path(made.path).read_bytes())
        content[-1] ^= 1
        Path(made.path).write_bytes(content)
    else:
        Path(f"{made.path}.json").unlink()
    said: list[str] = []
    assert model_of_folder(folder, say=said.append) == made
    assert "is not what was made" in said[0]
    assert sha256_of(Path(made.path)) == made.sha256


def test_command_converts_both_ways_and_tells_both_hashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from enginecmp.cli.model import convert_command

    model = tiny_model(tmp_path, "qwen2", "F16")
    monkeypatch.chdir(tmp_path)
    convert_command.main([model.path, "folder"], standalone_mode=False)
    converted: list[Path] = []

    def write(folder: HFFolder, sha256: str, target: Path) -> str:
        converted.append(target)
        return write_gguf_of(folder, sha256, target)

    monkeypatch.setattr("enginecmp.models.huggingface.to_gguf.write_gguf_of", write)
    convert_command.main(["./folder", "back.gguf"], standalone_mode=False)
    assert len(converted) == 1
    first, second = capsys.readouterr().out.splitlines()
    sha256 = folder_sha256(tmp_path / "folder")
    assert f"folder  sha256:{sha256}  made from {model.path}  sha256:{model.sha256}" in first
    assert second.startswith("back.gguf  sha256:")
    assert second.endswith(f"sha256:{sha256}")
    with pytest.raises(UsageError, match="expected a folder OUTPUT, without"):
        convert_command.main([model.path, "x.gguf"], standalone_mode=False)
    with pytest.raises(UsageError, match="got one that is there"):
        convert_command.main([model.path, "folder"], standalone_mode=False)


def test_file_that_has_no_folder_costs_its_reader_alone(tmp_path: Path) -> None:
    model = changed_model(tiny_model(tmp_path, "llama"), {"llama.expert_count": ("UINT32", 8)})
    with pytest.raises(LaunchFailure, match=r"^mine: .*expected only metadata that is implemented here") as failure:
        loadable("mine", _plugin(reads_hf_folders=True), model, {})
    assert (failure.value.status, failure.value.kind) == ("error", "UnsupportedModel")
    assert loadable("other", _plugin(), model, {}) == model


def test_file_that_was_cut_since_does_not_pass_for_its_folder(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "llama")
    with_folder(model)
    content = Path(model.path).read_bytes()
    Path(model.path).write_bytes(content[:-1000])
    with pytest.raises(ModelError, match=str(model.path)):
        with_folder(model)
