"""A GGUF file as a Hugging Face folder: F32, F16 and BF16 bit for bit, every other type dequantized to F32."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.errors import ModelError, UsageError
from enginecmp.models.gguf_file import GGUFFile
from enginecmp.models.huggingface.config import config_json, shape_of_gguf
from enginecmp.models.huggingface.folder import CONFIG, DERIVATION, TOKENIZER, WEIGHTS
from enginecmp.models.huggingface.layout import HFShape, Weight, to_hf_order, weights_of
from enginecmp.models.huggingface.proof import first_difference
from enginecmp.models.huggingface.refusal import refuse
from enginecmp.models.huggingface.rope import FREQS, LONG, SHORT
from enginecmp.models.huggingface.safetensors_file import TensorToWrite, write_safetensors
from enginecmp.models.huggingface.to_gguf import DTYPES
from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
from enginecmp.models.paths import named_in_utf8
from enginecmp.models.quantize import refuse_undequantizable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SPECIAL = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}


def write_folder_of(file: GGUFFile, sha256: str, target: Path) -> None:
    """Write a GGUF model as a Hugging Face folder.

    Args:
        file: the checked file.
        sha256: of it, which the folder then names.
        target: the folder, which appears when it is whole; it must not be there.

    Raises:
        ModelError: tensors are missing, left over or of another shape, or the folder cannot be written.
        UnsupportedModel: what no config.json of the architecture's class can say.
        UsageError: the target is there.
    """
    target = named_in_utf8(target.absolute())
    if target.exists():
        msg = f"{target}: expected the name of a folder to make, got one that is there; name another, or remove it"
        raise UsageError(msg)
    refuse_undequantizable(file)
    shape = shape_of_gguf(file)
    weights, biases = _matched(file, shape)
    rows = file.tensors["token_embd.weight"].shape[0]
    matrices = Counter(_dtype(file, weight) for weight in weights if len(weight.shape) > 1)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the rename below is atomic.
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        refuse(target, "to make the folder", error.strerror or str(error))
    try:
        config = config_json(
            shape,
            rows,
            _TORCH_DTYPES[matrices.most_common(1)[0][0]],
            tied="output.weight" not in file.tensors,
            biased="attn_output" in biases,
        )
        ids = _special_ids(file)
        # Absent ones are said to be absent: the classes' own defaults are ids of other vocabularies.
        config |= {f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")}
        write_json(scratch / CONFIG, config)
        write_json(scratch / "generation_config.json", {f"{name}_token_id": ids[name] for name in ids if name != "unk"})
        _write_tokenizer(file, scratch, ids)
        write_safetensors(
            scratch / WEIGHTS,
            [
                TensorToWrite(
                    name=weight.hf,
                    dtype=_dtype(file, weight),
                    shape=weight.hf_shape,
                    content=lambda weight=weight: _pieces(file, weight, shape),  # type: ignore[misc]
                )
                for weight in weights
            ],
            {"format": "pt"},
        )
        write_json(scratch / DERIVATION, _derivation(file, sha256))
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except OSError as error:
        refuse(target, "to write the folder", error.strerror or str(error))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one of a folder's JSON files."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def _matched(file: GGUFFile, shape: HFShape) -> tuple[list[Weight], set[str]]:
    """Return what is to be written and which projections have biases, all tensors of the file accounted for."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        refuse(file.path, "a tensor 'token_embd.weight'", "none")
    biases = {name.split(".")[2] for name in file.tensors if name.startswith("blk.0.") and name.endswith(".bias")}
    attention = {"attn_q", "attn_k", "attn_v", "attn_output"}
    possible: dict[str, list[set[str]]] = {
        "qwen2": [attention - {"attn_output"}],
        "llama": [set(), attention],
        "phi3": [set()],
        "gpt2": [biases],
    }
    if biases not in possible[shape.architecture]:
        got = ", ".join(sorted(biases)) or "none"
        refuse(file.path, f"biases where transformers' {shape.architecture} has them", got)
    weights = list(weights_of(shape, embedding.shape[0], biases, "output.weight" not in file.tensors))
    for weight in weights:
        if weight.gguf not in file.tensors:
            refuse(file.path, f"a tensor '{weight.gguf}'", "none")
        if (got_shape := file.tensors[weight.gguf].shape) != weight.shape:
            refuse(file.path, f"'{weight.gguf}' of shape {weight.shape} by the metadata", f"{got_shape}")
    known = {weight.gguf for weight in weights} | ({FREQS, LONG, SHORT} if shape.rope is not None else set())
    if more := [name for name in file.tensors if name not in known]:
        refuse(file.path, f"the tensors of a dense {shape.architecture} model", f"also '{more[0]}'")
    return weights, biases


def _dtype(file: GGUFFile, weight: Weight) -> str:
    """Return the type in which a tensor is written."""
    kind = file.tensors[weight.gguf].type
    return kind if kind in DTYPES else "F32"


def _pieces(file: GGUFFile, weight: Weight, shape: HFShape) -> Iterator[bytes]:
    """Yield a tensor's bytes in transformers' order."""
    import numpy as np

    kind = file.tensors[weight.gguf].type
    stored: NDArray[np.generic]
    if kind in DTYPES:
        width: type[np.generic] = np.uint32 if kind == "F32" else np.uint16
        stored = file.raw(weight.gguf).view(width).reshape(weight.shape)
    else:
        stored = file.float32(weight.gguf)
    yield np.ascontiguousarray(to_hf_order(stored, weight.change, shape.heads, shape.kv_heads)).tobytes()


def _special_ids(file: GGUFFile) -> dict[str, int]:
    """Return the ids of the special tokens that the file names, by transformers' names."""
    found = {}
    for gguf, name in _SPECIAL.items():
        number = file.metadata.get(f"tokenizer.ggml.{gguf}_token_id")
        if type(number) is int and 0 <= number < len(file.metadata.get("tokenizer.ggml.tokens") or ()):
            found[name] = number
    return found


def _write_tokenizer(file: GGUFFile, folder: Path, ids: dict[str, int]) -> None:
    """Write tokenizer.json and tokenizer_config.json, proven to read text as the file's own tokenizer does."""
    tokenizer = IsolatedTokenizer(file.path)
    (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    if difference := first_difference(IsolatedTokenizer(folder / TOKENIZER), tokenizer):
        msg = f"{file.path}: expected a tokenizer that a tokenizer.json can hold, got one that reads {difference}"
        raise ModelError(msg)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    template = file.metadata.get("tokenizer.chat_template")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.bos_id is not None,
        **{f"{name}_token": tokens[number] for name, number in ids.items()},
        **({"chat_template": template} if isinstance(template, str) else {}),
    }
    write_json(folder / "tokenizer_config.json", settings)


def _derivation(file: GGUFFile, sha256: str) -> dict[str, Any]:
    """Return what a folder was made from."""
    quantized = sorted({tensor.type for tensor in file.tensors.values()} - set(DTYPES))
    return {
        "schema": "enginecmp-derivation/1",
        "made_from": "gguf",
        "source_sha256": sha256,
        "weights": f"dequantized to F32 from {', '.join(quantized)}" if quantized else "bit for bit",
        "converter": f"enginecmp {metadata.version('enginecmp')}",
    }
