"""The host's tokenizer against llama.cpp's, on the same vocabulary and the same text."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import pytest

from enginecmp.errors import ModelError, UnsupportedModel
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.gguf_write import field, write_gguf
from enginecmp.models.store import DEFAULT_MODEL, resolve
from enginecmp.models.synth import write_synth
from enginecmp.models.synth_shapes import SHAPES
from enginecmp.models.tokenizer import load_tokenizer
from enginecmp.prompts import corpus

PICKED = [
    "",
    "\n",
    "Hello world",
    "The year 2024 had 12345 days,   and\n\n\n  more \t tabs\r\nend  ",
    "def f(x):\n    return x**2 + 3.14  # café\n\n\n",
    "naïve façade — “quotes” 日本語テキスト emoji 👩‍👩‍👧 🎉 ß İ ẞ",
    "I'm you're WE'LL don'T it's 's",
    "    leading and trailing    ",
    "\u00a0no\u2003break\u0085line",
    "x=1;y=2;;;z!!==<>|~^$+ (a,b) [c]{d}",
    "مرحبا بالعالم हिन्दी ไทย ١٢٣ ½ ² Ⅷ",
    "a\u0301e\u0308 0x1F 1e-9 100,000.00",
]
ALPHABET = "abcABC 012  \n\t\r'._-é日👍\u00a0ſK½=+$"


def texts() -> list[str]:
    drawn = random.Random(1)
    noise = ["".join(drawn.choices(ALPHABET, k=drawn.randint(1, 60))) for _ in range(500)]
    return [*PICKED, *noise, *corpus().values()]


@contextmanager
def llama_tokenizer(path: Path | str) -> Iterator[Callable[[str], list[int]]]:
    """Load only the vocabulary of a file into llama.cpp and give its encoder."""
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp refused {path}"
    vocabulary = llama_cpp.llama_model_get_vocab(model)

    def encode(text: str) -> list[int]:
        content = text.encode()
        ids = (ctypes.c_int32 * (len(content) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, content, len(content), ids, len(ids), False, True)
        assert count >= 0
        return list(ids[:count])

    try:
        yield encode
    finally:
        llama_cpp.llama_model_free(model)


def assert_agrees(path: Path | str) -> None:
    tokenizer = load_tokenizer(path)
    with llama_tokenizer(path) as expected:
        for text in texts():
            ids = tokenizer.encode(text)
            assert ids == expected(text), f"differs on {text[:60]!r}"
            assert tokenizer.decode(ids) == text


def with_fields(source: Path | str, target: Path, replaced: dict[str, bytes]) -> Path:
    """Write the metadata of a file again with some fields replaced, and no tensors."""
    content = Path(source).read_bytes()
    fields = {key: content[start:end] for key, (start, end) in read_gguf(source).spans.items()}
    write_gguf(target, list((fields | replaced).values()), [], lambda plan: [])
    return target


@pytest.mark.parametrize("like", [name for name, shape in SHAPES.items() if shape.tiny])
def test_tiny_vocabularies_agree_with_llama_cpp(like: str, tmp_path: Path) -> None:
    assert_agrees(write_synth(tmp_path / "tiny.gguf", like).path)


@pytest.mark.model
def test_embedded_model_agrees_with_llama_cpp() -> None:
    assert_agrees(resolve(DEFAULT_MODEL, fetch=True).path)


@pytest.mark.model
@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe", "qwen2", "starcoder", "refact", "command-r", "mpt"])
def test_every_splitting_rule_agrees_with_llama_cpp_on_a_real_vocabulary(pre: str, tmp_path: Path) -> None:
    model = resolve(DEFAULT_MODEL, fetch=True)
    renamed = {"tokenizer.ggml.pre": field("tokenizer.ggml.pre", "STRING", pre)}
    assert_agrees(with_fields(model.path, tmp_path / "vocabulary.gguf", renamed))


@pytest.mark.model
def test_prompt_of_the_published_example_has_the_known_ids() -> None:
    """The ids that llama.cpp, mistral.rs and transformers agree on for this model."""
    tokenizer = load_tokenizer(resolve(DEFAULT_MODEL, fetch=True).path)
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.bos_id is None


@pytest.mark.model
def test_special_tokens_written_out_are_read_as_one() -> None:
    path = resolve(DEFAULT_MODEL, fetch=True).path
    text = "<|im_start|>user\nHi<|im_end|>\n"
    with llama_tokenizer(path) as expected:
        ids = load_tokenizer(path).encode(text)
        assert ids == expected(text)
        assert ids[0] < 10


def sentence_piece(source: Path | str, target: Path) -> Path:
    """Write a small SentencePiece vocabulary: bytes, letters and pieces that overlap each other."""
    pieces = ["▁", "e", "t", "a", "h", "n", "o", "i", "s", "r", "▁t", "he", "in", "▁a", "an", "re", "▁the", "er", "on",
              "▁th", "and", "▁and", "▁s", "ing", "st", "▁st", "▁in", "l", "d", "u", "c", "m", "w", "g", "▁w", "at",
              "en", "ten", "tent", "ent", "▁o", "or", "▁of", "f", "▁▁", "▁▁▁▁"]  # fmt: skip
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces))]
    return with_fields(
        source,
        target,
        {
            "tokenizer.ggml.model": field("tokenizer.ggml.model", "STRING", "llama"),
            "tokenizer.ggml.pre": field("tokenizer.ggml.pre", "STRING", "default"),
            "tokenizer.ggml.tokens": field("tokenizer.ggml.tokens", "STRING", tokens),
            "tokenizer.ggml.scores": field("tokenizer.ggml.scores", "FLOAT32", scores),
            "tokenizer.ggml.token_type": field("tokenizer.ggml.token_type", "INT32", types),
            "tokenizer.ggml.merges": field("tokenizer.ggml.merges", "STRING", []),
            "tokenizer.ggml.bos_token_id": field("tokenizer.ggml.bos_token_id", "UINT32", 1),
            "tokenizer.ggml.eos_token_id": field("tokenizer.ggml.eos_token_id", "UINT32", 2),
            "tokenizer.ggml.add_bos_token": field("tokenizer.ggml.add_bos_token", "BOOL", True),
        },
    )


def test_sentence_piece_agrees_with_llama_cpp(tmp_path: Path) -> None:
    write_synth(tmp_path / "tiny.gguf", "tiny-llama")
    path = sentence_piece(tmp_path / "tiny.gguf", tmp_path / "spm.gguf")
    assert_agrees(path)
    assert load_tokenizer(path).bos_id == 1


def test_unknown_kinds_and_rules_are_named(tmp_path: Path) -> None:
    write_synth(tmp_path / "tiny.gguf", "tiny-llama")
    kind = {"tokenizer.ggml.model": field("tokenizer.ggml.model", "STRING", "bert")}
    with pytest.raises(UnsupportedModel, match="gpt2 or llama, got 'bert'"):
        load_tokenizer(with_fields(tmp_path / "tiny.gguf", tmp_path / "a.gguf", kind))
    pre = {"tokenizer.ggml.pre": field("tokenizer.ggml.pre", "STRING", "qwen22")}
    with pytest.raises(UnsupportedModel, match="did you mean 'qwen2'"):
        load_tokenizer(with_fields(tmp_path / "tiny.gguf", tmp_path / "b.gguf", pre))


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("tokens", field("tokenizer.ggml.tokens", "STRING", [])),
        ("tokens", field("tokenizer.ggml.tokens", "INT32", [1, 2])),
        ("merges", field("tokenizer.ggml.merges", "STRING", ["no such"])),
        ("merges", field("tokenizer.ggml.merges", "STRING", ["nospace"])),
    ],
)
def test_contradictory_tokenizer_is_a_model_error(name: str, replaced: bytes, tmp_path: Path) -> None:
    write_synth(tmp_path / "tiny.gguf", "tiny-llama")
    path = with_fields(tmp_path / "tiny.gguf", tmp_path / "bad.gguf", {f"tokenizer.ggml.{name}": replaced})
    with pytest.raises(ModelError) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
