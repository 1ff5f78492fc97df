"""Folders and GGUF files of the same weights, each made from the other where it is needed, kept under its hash.

A folder of the user's is never written to: what is known of it lies in the cache's folder `known`, valid as long as the
size and modification time of every file are the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginecmp.errors import ModelError, ResultsError
from enginecmp.format.documents import read_json
from enginecmp.format.text import plain
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.huggingface.folder import folder_sha256, hashed_files, read_folder
from enginecmp.models.known_files import cache_dir, known_place, remember, remembered, write_known
from enginecmp.models.paths import named_in_utf8
from enginecmp.types import ModelInfo

Say = Callable[[str], None]


class FolderSidecar(msgspec.Struct, kw_only=True):
    """What is remembered of a folder.

    Attributes:
        path: absolute.
        sha256: of its files, see `folder_sha256`.
        files: name, size and modification time of each of them.
    """

    path: str
    sha256: str
    files: list[tuple[str, int, int]]


def model_of_folder(path: Path, *, name: str | None = None, say: Say | None = None) -> ModelInfo:
    """Return the model in a Hugging Face folder: its GGUF file, which is made where there is none yet, and its place.

    Args:
        path: of the folder.
        name: how people call it; the folder's own name when not given.
        say: told when the file is being made.

    Raises:
        ModelError: the folder is incomplete, malformed, or cannot be converted exactly.
    """
    from enginecmp.models.fetch import locked
    from enginecmp.models.huggingface.to_gguf import write_gguf_of
    from enginecmp.models.info import describe

    path = named_in_utf8(path.absolute())
    name = name or plain(path.name)
    folder = read_folder(path)
    sha256 = known_sha256(path)
    target = cache_dir() / "from-hf" / f"{sha256}.gguf"
    say = say or _silent
    with locked(target, say):
        sidecar = remembered(target)
        if sidecar is None or sidecar.source != sha256:
            if target.exists():
                say(f"the GGUF file made of {plain(path.name)} is not what was made (or nothing says that it is)")
            say(f"making the GGUF file of {plain(path.name)} for engines that read no folder, and for the reference")
            remember(describe(target, name=name, sha256=write_gguf_of(folder, sha256, target)), sha256)
            sidecar = remembered(target)
            assert sidecar is not None
    return msgspec.structs.replace(sidecar.info, name=name, hf_folder=str(path), hf_sha256=sha256, derived="gguf")


def with_folder(model: ModelInfo, *, say: Say | None = None) -> ModelInfo:
    """Return a model with a Hugging Face folder of its weights, made into the cache where there is none yet.

    Raises:
        ModelError: the folder cannot be made or written.
        UnsupportedModel: no folder can say what the file says.
    """
    if model.hf_folder:
        return model
    from enginecmp.models.fetch import locked
    from enginecmp.models.huggingface.to_folder import write_folder_of

    file = read_gguf(model.path)  # even where the folder is there: a file that was cut since must not pass for whole
    target = cache_dir() / "hf" / model.sha256
    made = known_place(target, ".made.json")
    say = say or _silent
    with locked(target, say):
        sha256 = _unchanged(target, made)
        if not sha256:
            if target.exists():
                say(f"the Hugging Face folder made of {model.name} is not what was made (or nothing says that it is)")
                shutil.rmtree(target)
            say(f"making the Hugging Face folder of {model.name}, for engines that read one")
            write_folder_of(file, model.sha256, target)
            sha256 = _remember_folder(target, made)
    return msgspec.structs.replace(model, hf_folder=str(target), hf_sha256=sha256, derived="hf_folder")


def known_sha256(path: Path) -> str:
    """Return a folder's SHA-256, hashing only what is new or has changed since.

    Raises:
        ModelError: a file cannot be read.
    """
    path = path.absolute()
    place = known_place(path, ".folder.json")
    return _unchanged(path, place) or _remember_folder(path, place)


def _unchanged(path: Path, place: Path) -> str:
    """Return the SHA-256 that a sidecar names of a folder; empty where there is none, or the folder is another now."""
    try:
        known: FolderSidecar = read_json(place, FolderSidecar)
        return known.sha256 if (known.path, known.files) == (str(path), _stamps(path)) else ""
    except (OSError, ResultsError, ModelError):
        return ""


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    statuses = [(file.name, file.stat()) for file in hashed_files(path)]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in statuses]


def _remember_folder(path: Path, place: Path) -> str:
    """Return a folder's SHA-256, and keep it in a sidecar.

    Raises:
        ModelError: a file cannot be read.
    """
    stamps = _stamps(path)
    sidecar = FolderSidecar(path=str(path), sha256=folder_sha256(path), files=stamps)
    write_known(place, msgspec.json.encode(sidecar), required=False)
    return sidecar.sha256


def _silent(line: str) -> None:
    """Say nothing."""
