"""Tell what a weights file is: the facts that go into results, and the ones `cmp model info` prints."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import ModelError
from enginecmp.format.text import plain
from enginecmp.models.gguf_file import GGUFFile, read_gguf
from enginecmp.models.gguf_header import short
from enginecmp.models.paths import named_in_utf8, require_regular
from enginecmp.types import ModelInfo

MAX_KV_BYTES = 10**12
"""For one token; a model of 400 billion weights takes 0.5 MB."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a transformer, in its own units.

    Attributes:
        layers: transformer blocks.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of one key head.
        value_dim: width of one value head.
        feed_forward: inner width of the feed-forward part; 0 where the file does not say.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    feed_forward: int

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Return the KV cache that one token needs over all layers, in bytes (2 a value for F16)."""
        return self.layers * self.kv_heads * (self.head_dim + self.value_dim) * bytes_per_value


def sha256_of(*parts: Path) -> str:
    """Return the SHA-256 in hexadecimal of a file, or of several one after the other.

    Raises:
        ModelError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in parts:
        require_regular(path)
        try:
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
        except OSError as error:
            msg = f"{path}: expected a readable file, got: {error.strerror or error}"
            raise ModelError(msg) from error
    return digest.hexdigest()


def describe(path: Path | str, *, name: str | None = None, sha256: str | None = None) -> ModelInfo:
    """Return what the host tells engines and results about a weights file.

    Args:
        path: the GGUF file; of a split model, its first part.
        name: how people call it; the file's stem when not given.
        sha256: its hash where it is already known; computed otherwise.

    Raises:
        ModelError: the file is missing, malformed, or holds no weights.
    """
    path = named_in_utf8(Path(path).absolute())
    file = read_gguf(path)
    if not file.tensors:
        msg = f"{path}: expected a model, got a file without weights (a vocabulary?); name the model that it goes with"
        raise ModelError(msg)
    return ModelInfo(
        name=name or plain(path.stem),
        path=str(path),
        parts=tuple(map(str, file.parts)),
        sha256=sha256 or sha256_of(*(file.parts or (path,))),
        architecture=architecture_of(file),
        parameters=sum(type_histogram(file).values()),
        quantization=type_histogram(file).most_common(1)[0][0],
        bytes=file.bytes,
        context_tokens=_number(file, "context_length"),
        vocabulary=vocabulary_of(file),
    )


def architecture_of(file: GGUFFile) -> str:
    """Return `general.architecture`."""
    return str(file.metadata["general.architecture"])


def type_histogram(file: GGUFFile) -> Counter[str]:
    """Return the number of weights by tensor type."""
    histogram: Counter[str] = Counter()
    for tensor in file.tensors.values():
        weights = 1
        for extent in tensor.shape:
            weights *= extent
        histogram[tensor.type] += weights
    return histogram


def vocabulary_of(file: GGUFFile) -> int:
    """Return the number of token ids: the tokenizer's where there is one, else the embedding's rows.

    Raises:
        ModelError: the file says neither, or the two contradict each other.
    """
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    embedding = file.tensors.get("token_embd.weight")
    if isinstance(tokens, list) and tokens:
        if embedding is not None and len(embedding.shape) == 2 and embedding.shape[0] < len(tokens):
            msg = f"{file.path}: expected an embedding for each of {len(tokens)} tokens, got {embedding.shape[0]} rows"
            raise ModelError(msg)
        return len(tokens)
    if embedding is not None:
        return embedding.shape[0]
    msg = f"{file.path}: expected 'tokenizer.ggml.tokens' or 'token_embd.weight', the file has neither"
    raise ModelError(msg)


def shape_of(file: GGUFFile) -> Shape:
    """Return the transformer's shape.

    Raises:
        ModelError: a number is missing from the metadata, or is no number.
    """
    heads = _number(file, "attention.head_count")
    hidden = _number(file, "embedding_length")
    head_dim = _number(file, "attention.key_length", hidden // max(heads, 1))
    shape = Shape(
        layers=_number(file, "block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=_number(file, "attention.head_count_kv", heads),
        head_dim=head_dim,
        value_dim=_number(file, "attention.value_length", head_dim),
        feed_forward=_number(file, "feed_forward_length", 0),
    )
    if shape.kv_bytes_per_token() > MAX_KV_BYTES:
        msg = f"{file.path}: expected a model's layers and heads, got a KV cache of over 1 TB for one token"
        raise ModelError(msg)
    return shape


def recorded_shape(model: ModelInfo) -> dict[str, int]:
    """Return a model's shape and vocabulary as results record them; empty where its file does not tell.

    Raises:
        ModelError: the file is missing or malformed.
    """
    file = read_gguf(model.path)
    try:
        shape = shape_of(file)
    except ModelError:
        return {}
    return {**msgspec.structs.asdict(shape), "vocabulary": model.vocabulary}


def _number(file: GGUFFile, suffix: str, default: int | None = None) -> int:
    """Return one of the architecture's whole numbers; of a per-layer list, its largest."""
    key = f"{architecture_of(file)}.{suffix}"
    value: Any = file.metadata.get(key, default)
    if isinstance(value, list) and value:
        value = max(value)
    if type(value) is not int or not 0 <= value < 2**32:
        msg = f"{file.path}: expected a whole number below 2^32 in '{key}', got {short(value)}"
        raise ModelError(msg)
    return value
