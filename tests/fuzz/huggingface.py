"""Hugging Face folders: damaged weights, and configurations, indices and tokenizers with odd values."""

from __future__ import annotations

import atexit
import copy
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.huggingface.config import gguf_fields, shape_of_folder
from enginecmp.models.huggingface.folder import read_folder
from enginecmp.models.huggingface.to_folder import write_folder_of
from enginecmp.models.huggingface.to_gguf import matched
from enginecmp.models.huggingface.vocabulary import read_vocabulary, special_fields, vocabulary_fields
from enginecmp.testing.tiny_models import tiny_model
from fuzz.damage import EDGES, damaged
from fuzz.runner import Target

_INDEX = "model.safetensors.index.json"
_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "model.safetensors.index.json",
)
_ODD: tuple[Any, ...] = (
    *EDGES,
    *(
        None,
        True,
        -1,
        0.0,
        -1.5,
        1e300,
        "",
        "x",
        "\x1b]0;x\x07",
        "two\nlines",
        "\u202e",
        "../x.safetensors",
        "x" * 5000,
    ),
    *(
        "x" * 5000,
        [],
        {},
        [[]],
        [None],
        {"": 1},
        [1] * 2000,
        "llama",
        "gpt2",
        "longrope",
        "llama3",
        {"rope_type": "llama3"},
    ),
)


@cache
def _valid() -> Path:
    """Return a whole folder, made once."""
    place = Path(tempfile.mkdtemp(prefix="enginecmp-fuzz-"))
    atexit.register(shutil.rmtree, place)
    model = tiny_model(place, "llama", "F16")
    write_folder_of(read_gguf(model.path), model.sha256, place / "folder")
    names = read_folder(place / "folder").tensors
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (place / "folder" / _INDEX).write_text(json.dumps(index))
    shutil.copytree(place / "folder", place / "input")
    return place


def broken_weights(draw: random.Random) -> bytes:
    """Return a weights file with faults, most of them in its header."""
    content = (_valid() / "folder" / "model.safetensors").read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    return damaged(content[:head], draw) + content[head : draw.choice((head, head + 999, len(content)))]


def odd_values(draw: random.Random) -> bytes:
    """Return the number of a JSON file and its content, some values others, or bytes damaged."""
    number = draw.randrange(len(_FILES))
    text = (_valid() / "folder" / _FILES[number]).read_bytes()
    if draw.random() < 0.3:
        return bytes([number]) + damaged(text, draw)
    content = json.loads(text)
    for _ in range(draw.randint(1, 3)):
        place = content
        while place:
            key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
            if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.8:
                place = place[key]
                continue
            if draw.random() < 0.2:
                del place[key]
            else:
                place[key] = copy.deepcopy(draw.choice(_ODD))
            break
    return bytes([number]) + json.dumps(content).encode()


def check_weights(content: bytes) -> None:
    """Read a folder with these weights."""
    folder = _valid() / "input"
    (folder / "model.safetensors").write_bytes(content)
    _check(folder)


def check_values(content: bytes) -> None:
    """Read a folder with this file in it."""
    folder = _valid() / "input"
    for name in (*_FILES, "model.safetensors"):
        shutil.copy(_valid() / "folder" / name, folder / name)
    name = _FILES[content[0]]
    (folder / name).write_bytes(content[1:])
    if name == _INDEX:
        # An index counts where there is no single file.
        (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    _check(folder)
    (folder / "model-00001.safetensors").unlink(missing_ok=True)


def _check(folder: Path) -> None:
    """Do what a conversion does, up to the tokenizer's child process."""
    whole = read_folder(folder)
    shape = shape_of_folder(whole)
    tensors, _ = matched(whole, shape)
    if shape.rope is not None:
        shape.rope.gguf_tensors()
    gguf_fields(shape, 314)
    vocabulary = read_vocabulary(whole, tensors["token_embd.weight"].shape[0])
    vocabulary_fields(vocabulary, vocabulary.rules[0])
    special_fields(whole, vocabulary, None)


TARGETS = (
    Target("hf-weights", broken_weights, check_weights),
    Target("hf-values", odd_values, check_values),
)
