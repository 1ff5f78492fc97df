"""A Hugging Face folder as one GGUF file: every weight bit for bit, norms and biases widened to F32."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from enginecmp.errors import UnsupportedModel
from enginecmp.format.text import plain
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.huggingface.config import gguf_fields, shape_of_folder
from enginecmp.models.huggingface.folder import TOKENIZER, HFFolder
from enginecmp.models.huggingface.layout import HFShape, Weight, to_gguf_order, weights_of
from enginecmp.models.huggingface.proof import first_difference
from enginecmp.models.huggingface.refusal import refuse
from enginecmp.models.huggingface.safetensors_file import SafeTensor
from enginecmp.models.huggingface.vocabulary import Vocabulary, read_vocabulary, special_fields, vocabulary_fields
from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
from enginecmp.models.quantize import CHUNK_WEIGHTS, FILE_TYPES, QUANTIZATION_VERSION, planned_type

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES = ("F32", "F16", "BF16")

SOURCE_KEY = "enginecmp.source.sha256"
"""Metadata that names the folder a file was made from, by its hash."""

_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Tensors that old checkpoints hold beside their weights: tables that follow from the configuration."""


def write_gguf_of(folder: HFFolder, sha256: str, target: Path) -> str:
    """Write a folder's model as a GGUF file and return the file's SHA-256.

    Args:
        folder: the checked folder.
        sha256: of the folder, which the file then names.
        target: the file, which appears when it is whole.

    Raises:
        ModelError: a tensor is missing, left over or of another shape or type, or the file cannot be written.
        UnsupportedModel: an architecture or tokenizer that cannot be converted exactly.
    """
    shape = shape_of_folder(folder)
    tensors, weights = matched(folder, shape)
    embedding = tensors["token_embd.weight"]
    vocabulary = read_vocabulary(folder, embedding.shape[0])
    plans = [
        TensorPlan(name=each.gguf, shape=each.shape, type=planned_type(each.gguf, each.shape, tensors[each.gguf].dtype))
        for each in weights
    ]
    by_name = {weight.gguf: weight for weight in weights}
    factors = shape.rope.gguf_tensors() if shape.rope is not None else {}
    plans += [TensorPlan(name=name, shape=(len(values),), type="F32") for name, values in factors.items()]
    head = [*_general(folder, vocabulary, embedding.dtype, shape, sha256), *gguf_fields(shape, embedding.shape[0])]

    def content(plan: TensorPlan) -> Iterator[bytes]:
        import numpy as np

        if plan.name in factors:
            return iter([np.array(factors[plan.name], np.float32).tobytes()])
        return _pieces(tensors[plan.name], by_name[plan.name], plan.type, shape)

    return write_gguf(target, [*head, *_tokenizer(folder, vocabulary, head)], plans, content)


def matched(folder: HFFolder, shape: HFShape) -> tuple[dict[str, SafeTensor], list[Weight]]:
    """Return the folder's tensors under their GGUF names: all that the model needs, and no others."""
    # GPT-2 was published without the prefix that transformers writes since.
    bare = shape.architecture == "gpt2" and "wte.weight" in folder.tensors
    given = {
        f"transformer.{name}" if bare and not name.startswith("lm_head.") else name: tensor
        for name, tensor in folder.tensors.items()
        if not name.endswith(_BUFFERS)
    }
    tied = folder.config.get("tie_word_embeddings")
    tied = (shape.architecture == "gpt2") if tied is None else bool(tied)
    if tied:
        given.pop("lm_head.weight", None)
    embedding = given.get("transformer.wte.weight" if shape.architecture == "gpt2" else "model.embed_tokens.weight")
    rows = embedding.shape[0] if embedding is not None and embedding.shape else 0
    projections = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    first = {weight.gguf: weight.hf for weight in weights_of(shape, rows, projections, tied)}
    biases = {name for name in projections if first.get(f"blk.0.{name}.bias") in given}
    weights = list(weights_of(shape, rows, biases | _needed(shape), tied))
    for weight in weights:
        tensor = given.get(weight.hf)
        if tensor is None:
            refuse(folder.path, f"a tensor '{weight.hf}'", "none; fetch the whole folder again")
        if tensor.shape != weight.hf_shape:
            refuse(folder.path, f"'{weight.hf}' of shape {weight.hf_shape} by config.json", f"{tensor.shape}")
        if tensor.dtype not in DTYPES:
            refuse(folder.path, f"'{weight.hf}' in {', '.join(DTYPES)}", tensor.dtype)
    known = {weight.hf for weight in weights}
    if more := [name for name in given if name not in known]:
        refuse(folder.path, f"the tensors of a dense {shape.architecture} model", f"also '{plain(more[0])}'")
    return {weight.gguf: given[weight.hf] for weight in weights}, weights


def _needed(shape: HFShape) -> set[str]:
    """Return the projections that have a bias in every model of an architecture."""
    return {"attn_q", "attn_k", "attn_v"} if shape.architecture == "qwen2" else set()


def _general(folder: HFFolder, vocabulary: Vocabulary, dtype: str, shape: HFShape, sha256: str) -> list[bytes]:
    """Return the metadata that every GGUF file has."""
    name = plain(folder.path.name, 100)
    if "</s>" not in vocabulary.tokens:
        # llama.cpp takes "phi3" and "phi-3" in a name for the original's vocabulary, and looks for its tokens.
        name = name.replace("phi-3", "phi").replace("phi3", "phi")
    return [
        field("general.architecture", "STRING", shape.architecture),
        field("general.type", "STRING", "model"),
        field("general.name", "STRING", name),
        field("general.file_type", "UINT32", FILE_TYPES[dtype]),
        field("general.quantization_version", "UINT32", QUANTIZATION_VERSION),
        field(SOURCE_KEY, "STRING", sha256),
    ]


def _tokenizer(folder: HFFolder, vocabulary: Vocabulary, head: list[bytes]) -> list[bytes]:
    """Return the tokenizer as metadata, under the splitting rules that are proven to be the folder's."""
    source = folder.path / TOKENIZER
    reader = IsolatedTokenizer(source)
    special = special_fields(folder, vocabulary, reader.bos_id)
    differences = []
    with tempfile.TemporaryDirectory(prefix="cmp-tokenizer-") as scratch:
        for rule in vocabulary.rules:
            fields = [*vocabulary_fields(vocabulary, rule), *special]
            trial = Path(scratch) / "vocabulary.gguf"
            write_gguf(trial, [*head, *fields], [], lambda plan: [])
            difference = first_difference(reader, IsolatedTokenizer(trial))
            if not difference:
                return fields
            differences.append(difference)
    msg = f"{source}: expected a tokenizer that GGUF has a name for, got one that reads {differences[0]}"
    raise UnsupportedModel(msg)


def _pieces(tensor: SafeTensor, weight: Weight, kind: str, shape: HFShape) -> Iterator[bytes]:
    """Yield a tensor's bytes in GGUF's order and type, a few rows at a time."""
    import numpy as np

    width: type[np.generic] = np.uint32 if tensor.dtype == "F32" else np.uint16
    stored: NDArray[np.generic] = tensor.raw().view(width).reshape(tensor.shape)
    ordered = to_gguf_order(stored, weight.change, shape.heads, shape.kv_heads)
    step = max(1, CHUNK_WEIGHTS // ordered.shape[-1]) if ordered.ndim > 1 else CHUNK_WEIGHTS
    for first in range(0, len(ordered), step):
        yield _as(np.ascontiguousarray(ordered[first : first + step]), tensor.dtype, kind)


def _as(bits: NDArray[np.generic], dtype: str, kind: str) -> bytes:
    """Return weights in another type, or in their own; F16 and BF16 widen to F32 without rounding."""
    import numpy as np

    if dtype == kind:
        return bits.tobytes()
    assert kind == "F32", f"{dtype} does not become {kind}"
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32).tobytes()
    return (bits.astype(np.uint32) << np.uint32(16)).tobytes()
