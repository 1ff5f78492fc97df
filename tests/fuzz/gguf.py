"""GGUF files: well-formed ones with faults in their header, and ones put together from arbitrary fields."""

from __future__ import annotations

import atexit
import random
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.info import describe, shape_of, type_histogram
from enginecmp.models.tokenizer import tokenizer_of
from fuzz.damage import EDGES, damaged
from fuzz.runner import Target

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_WORDS = ("", "a", "ab", "▁", "Ġ", "<s>", "\x1b[2J", "line\nbreak", "\u202e", "ż", "a b", "gpt2", "llama", "llama-bpe")


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="enginecmp-fuzz-"))
    atexit.register(shutil.rmtree, folder)
    return folder / "input.gguf"


def _fields(kind: str) -> list[bytes]:
    """Return the metadata of a small model with a tokenizer of 40 tokens."""
    letters = [chr(0x61 + index) for index in range(26)]
    tokens = ["<unk>", "<s>", "</s>", *letters, "ab", "abc", "de", "def", "▁", "▁a", "Ġ", "Ġa", "he", "in", "re"]
    types = [2, 3, 3] + [1] * (len(tokens) - 3)
    return [
        field("general.architecture", "STRING", "llama"),
        field("general.name", "STRING", "fuzz"),
        field("llama.context_length", "UINT32", 64),
        field("llama.embedding_length", "UINT32", 32),
        field("llama.block_count", "UINT32", 1),
        field("llama.attention.head_count", "UINT32", 4),
        field("llama.attention.head_count_kv", "UINT32", [2]),
        field("tokenizer.ggml.model", "STRING", kind),
        field("tokenizer.ggml.pre", "STRING", "llama-bpe"),
        field("tokenizer.ggml.tokens", "STRING", tokens),
        field("tokenizer.ggml.token_type", "INT32", types),
        field("tokenizer.ggml.scores", "FLOAT32", [-float(rank) for rank in range(len(tokens))]),
        field("tokenizer.ggml.merges", "STRING", ["a b", "ab c", "d e", "de f", "Ġ a", "h e", "i n", "r e"]),
        field("tokenizer.ggml.bos_token_id", "UINT32", 1),
    ]


@cache
def _valid(kind: str) -> bytes:
    """Return a well-formed file."""
    plans = [
        TensorPlan(name="token_embd.weight", shape=(44, 32), type="Q8_0"),
        TensorPlan(name="output_norm.weight", shape=(32,), type="F32"),
    ]
    path = _scratch().with_name(f"{kind}.gguf")
    write_gguf(path, _fields(kind), plans, lambda plan: [bytes(plan.nbytes())])
    return path.read_bytes()


def broken_header(draw: random.Random) -> bytes:
    """Return a well-formed file with faults before its tensors' data."""
    content = _valid(draw.choice(("gpt2", "llama")))
    return damaged(content, draw, most=len(content) - 1500)


def odd_fields(draw: random.Random) -> bytes:
    """Return a file whose structure is right and whose fields have other types, lengths and values."""
    fields = _fields(draw.choice(("gpt2", "llama")))
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(fields))
        (length,) = struct.unpack_from("<Q", fields[at])
        key = fields[at][: 8 + length]
        kind = draw.choice((*_SCALARS, _STRING, _ARRAY, _ARRAY))
        if draw.random() < 0.2:
            del fields[at]
        else:
            fields[at] = key + struct.pack("<I", kind) + _value(draw, kind, 0)
    if draw.random() < 0.3:
        name = draw.choice(("general.type", "split.count", "split.no", "adapter.type", "general.alignment"))
        fields.append(field(name, "UINT32", draw.choice((0, 1, 2, 3))))
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields)) + b"".join(fields)
    head += struct.pack("<Q", 17) + b"token_embd.weight" + struct.pack("<IQQIQ", 2, 32, draw.choice((1, 44)), 0, 0)
    return head + bytes(-len(head) % 32 + 44 * 32 * 4)


def _value(draw: random.Random, kind: int, depth: int) -> bytes:
    """Encode a value of a type number."""
    if kind == _STRING:
        text = draw.choice(_WORDS).encode() * draw.choice((1, 1, 1, 500))
        return struct.pack("<Q", len(text)) + text
    if kind == _ARRAY:
        inner = draw.choice((*_SCALARS, _STRING, _STRING, _ARRAY))
        count = draw.choice((0, 1, 2, 44, 300)) if depth < 2 else 1
        if depth > draw.choice((0, 1, 2, 6)):
            inner = 0
        items = b"".join(_value(draw, inner, depth + 1) for _ in range(count))
        return struct.pack("<IQ", inner, draw.choice((count, count, count, *EDGES[-3:]))) + items
    code = _SCALARS[kind]
    number: Any = draw.choice((0, 1, 2, 3, 40, 100))
    return struct.pack(f"<{code}", draw.choice((float("nan"), -0.0, 1e30)) if code in "fd" else number)


def check(content: bytes) -> None:
    """Read a file as `cmp model info` and `cmp run` do."""
    path = _scratch()
    path.write_bytes(content)
    file = read_gguf(path)
    for tensor in file.tensors.values():
        assert 0 < tensor.offset <= tensor.offset + tensor.nbytes <= len(content)
    type_histogram(file)
    describe(path)
    shape_of(file)
    tokenizer = tokenizer_of(file)
    tokenizer.decode(tokenizer.encode("abc def\n the <s> in ▁ab"))


TARGETS = (
    Target("gguf-header", broken_header, check),
    Target("gguf-fields", odd_fields, check),
)
