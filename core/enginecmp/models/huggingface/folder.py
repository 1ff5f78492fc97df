"""A Hugging Face folder: which of its files are the model, what they say, and the hash of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from enginecmp.errors import ModelError
from enginecmp.format.text import command_line, plain
from enginecmp.models.huggingface.refusal import refuse
from enginecmp.models.huggingface.safetensors_file import MAX_TENSORS, SafeTensor, read_safetensors
from enginecmp.models.paths import named_in_utf8, require_regular

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DERIVATION = "enginecmp.json"
"""Says what a converted folder was made from; no part of its hash, as it names this program's version."""

_HASHED = (".json", ".safetensors", ".model", ".txt", ".jinja")
MAX_JSON_BYTES = {CONFIG: 2**22, TOKENIZER: 2**26, INDEX: 2**25}
MAX_OTHER_JSON_BYTES = 2**22
MAX_FILES = 4096


class HFFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A checked folder.

    Attributes:
        path: absolute.
        config: content of config.json.
        tensors: by name, of all weights files.
        weights: the weights files, in order.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, SafeTensor]
    weights: tuple[Path, ...]


def read_folder(path: Path) -> HFFolder:
    """Return a folder's configuration and the headers of its weights.

    Raises:
        ModelError: it is incomplete, malformed or hostile, or holds no weights that can be taken exactly.
    """
    path = named_in_utf8(path.absolute())
    if not (path / CONFIG).is_file():
        _incomplete(path, CONFIG)
    config = read_object(path / CONFIG)
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "") if isinstance(quantized, dict) else ""
        got = f"weights quantized with {plain(str(method), 40) or 'a method of their own'}"
        refuse(path, "weights in F32, F16 or BF16", f"{got}; name the folder that they were made from")
    weights, index = _weights(path)
    tensors: dict[str, SafeTensor] = {}
    for file in weights:
        for name, tensor in read_safetensors(file).items():
            if name in tensors:
                refuse(path, f"tensor '{plain(name)}' once", f"it in {tensors[name].path.name} and in {file.name}")
            tensors[name] = tensor
        if len(tensors) > MAX_TENSORS:
            refuse(path, f"at most {MAX_TENSORS} tensors", "more")
    if index is not None:
        _hold_to_index(path, index, tensors)
    if not tensors:
        refuse(path, "a model", "weights files without a tensor")
    return HFFolder(path=path, config=config, tensors=tensors, weights=weights)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a folder.

    Raises:
        ModelError: it is missing, too large or none.
    """
    most = MAX_JSON_BYTES.get(path.name, MAX_OTHER_JSON_BYTES)
    if (size := require_regular(path, "JSON")) > most:
        refuse(path, f"at most {most} bytes", f"{size}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        refuse(path, "a readable file", error.strerror or str(error))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        refuse(path, "a JSON object", plain(str(error)))


def hashed_files(path: Path) -> list[Path]:
    """Return the files of a folder that make the model, by name: whatever an engine may read of it.

    Raises:
        ModelError: the folder cannot be read, or holds too many files.
    """
    try:
        files = [
            file
            for file in path.iterdir()
            if file.suffix in _HASHED and not file.name.startswith(".") and file.name != DERIVATION and file.is_file()
        ]
    except OSError as error:
        refuse(path, "a readable folder", error.strerror or str(error))
    if len(files) > MAX_FILES:
        refuse(path, f"a folder of at most {MAX_FILES} files", f"{len(files)}")
    return sorted(files, key=lambda file: file.name)


def folder_sha256(path: Path) -> str:
    """Return the SHA-256 of a folder: over name, size and SHA-256 of each of its `hashed_files`, one line a file.

    Raises:
        ModelError: a file cannot be read.
    """
    from enginecmp.models.info import sha256_of

    digest = hashlib.sha256()
    for file in hashed_files(path):
        line = f"{sha256_of(file)} {require_regular(file, 'model')} {named_in_utf8(Path(file.name))}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _weights(path: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """Return the weights files, of several kinds those that transformers would take, and the index that names them."""
    if (path / WEIGHTS).is_file():
        return (path / WEIGHTS,), None
    if (path / INDEX).is_file():
        index = _index(path)
        named = sorted(set(index.values()))
        for name in named:
            # The name comes from the file: it must not lead out of the folder.
            if not name.endswith(".safetensors") or name.startswith(".") or not set(name).isdisjoint("/\\\0"):
                refuse(path / INDEX, "names of safetensors files in this folder", f"'{plain(name)}'")
            if not (path / name).is_file():
                _incomplete(path, name)
        return tuple(path / name for name in named), index
    single = sorted(path.glob("*.safetensors"))
    if len(single) == 1 and not (path / "adapter_config.json").exists():
        return (single[0],), None
    _no_weights(path)


def _index(path: Path) -> dict[str, str]:
    """Return the index's map of tensors to files."""
    try:
        return msgspec.convert(read_object(path / INDEX).get("weight_map"), dict[str, str])
    except msgspec.ValidationError as error:
        refuse(path / INDEX, "a weight_map of tensor names to file names", plain(str(error)))


def _hold_to_index(path: Path, index: Mapping[str, str], tensors: Mapping[str, SafeTensor]) -> None:
    """Refuse a folder whose index names other tensors, or other places, than its files hold."""
    for name, file in index.items():
        if name not in tensors or tensors[name].path.name != file:
            refuse(path, f"tensor '{plain(name)}' in {plain(file)}, as {INDEX} says", "it is not there; fetch it again")
    if more := [name for name in tensors if name not in index]:
        refuse(path, f"the tensors of {INDEX}", f"also '{plain(more[0])}' in {tensors[more[0]].path.name}")


def _no_weights(path: Path) -> NoReturn:
    """Say what lies in the weights' place."""
    if (path / "adapter_config.json").exists():
        refuse(path, "a model", "a LoRA adapter; name the model that it goes with")
    if pickled := next((name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")
                        if (path / name).exists()), None):  # fmt: skip
        # Pickles run code of their author when they are read.
        got = f"{pickled}; save it as safetensors with transformers' save_pretrained, or fetch a revision that has them"
        refuse(path, f"weights in {WEIGHTS}", got)
    _incomplete(path, WEIGHTS)


def _incomplete(path: Path, name: str) -> NoReturn:
    """Raise the error of a folder without one of its files."""
    if ggufs := sorted(path.glob("*.gguf")):
        one = command_line(["--model", str(ggufs[0])])
        msg = f"{path}: expected a model, got a folder; name one of its files: {one}"
        raise ModelError(msg)
    msg = (
        f"{path}: expected a Hugging Face folder with {plain(name)}, it is not there; fetch the whole folder: "
        f"{command_line(['hf', 'download', 'OWNER/NAME', '--local-dir', str(path)])}"
    )
    raise ModelError(msg)
