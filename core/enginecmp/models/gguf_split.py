"""A model in several files: their names, and what has to agree for them to be read as one.

Convention: llama.cpp's gguf-split. Part i of n is called NAME-0000i-of-0000n.gguf and says so in `split.no` (from 0)
and `split.count`; the first part holds the model's metadata, each part its own tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from enginecmp.errors import ModelError
from enginecmp.models.gguf_header import Header, TensorInfo, short

MAX_PARTS = 65_535  # `split.count` has 16 bits
_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")

_SHARED = ("general.architecture", "general.name", "split.tensors.count")
"""What a later part may leave out, and may not say otherwise than the first."""


def part_names(name: str) -> list[str]:
    """Return the file names of all parts of a split model, given that of one; only itself for any other name."""
    match = _NAME.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]) <= MAX_PARTS:
        return [name]
    return [f"{match[1]}-{number:05}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def part_paths(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Return the files that a model consists of, in order; one that is not split is its only part.

    Args:
        path: the file that was named.
        metadata: its own.

    Raises:
        ModelError: it is not the first part, or another part is missing or cannot be told from its name.
    """
    number, count = _place(path, metadata)
    if count == 1:
        return [path]
    names = part_names(path.name)
    if number:
        first = path.with_name(names[0]) if len(names) == count else "the file whose name ends in -00001-of-…"
        _fail(path, f"expected a model, got part {number + 1} of {count} of a split one; name its first part: {first}")
    if len(names) != count or names[0] != path.name:
        wanted = f"NAME-00001-of-{count:05}.gguf"
        _fail(path, f"expected the first of {count} parts to be named {wanted}; give all parts their names back")
    paths = [path.with_name(name) for name in names]
    if missing := [part.name for part in paths if not part.exists()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        _fail(path, f"expected all {count} parts of the split model beside it, {missing[0]}{more} missing; fetch them")
    return paths


def joined(path: Path, parts: Sequence[Path], headers: Sequence[Header]) -> dict[str, TensorInfo]:
    """Return the tensors of all parts by name.

    Args:
        path: how messages call the model.
        parts: its files, in order.
        headers: theirs.

    Raises:
        ModelError: the parts do not belong together.
    """
    tensors: dict[str, TensorInfo] = {}
    for index, (part, header) in enumerate(zip(parts, headers, strict=True)):
        number, count = _place(part, header.metadata)
        if (number, count) != (index, len(parts)):
            _fail(part, f"expected part {index + 1} of {len(parts)}, got part {number + 1} of {count}; fetch it again")
        first = headers[0].metadata
        if other := next((key for key in _SHARED if header.metadata.get(key, first.get(key)) != first.get(key)), None):
            told, came = short(first.get(other)), short(header.metadata[other])
            _fail(part, f"expected {other} {told} as in the first part, got {came}; the parts are of different models")
        if twice := next((name for name in header.tensors if name in tensors), None):
            _fail(part, f"expected every tensor in one part, got '{twice}' in two; the parts are of different models")
        tensors |= {name: msgspec.structs.replace(each, part=index) for name, each in header.tensors.items()}
    told = headers[0].metadata.get("split.tensors.count", len(tensors))
    if told != len(tensors):
        _fail(path, f"expected {short(told)} tensors in {len(parts)} parts, got {len(tensors)}; fetch them again")
    return tensors


def _place(path: Path, metadata: Mapping[str, Any]) -> tuple[int, int]:
    """Return which part a file is, from 0, and of how many."""
    number, count = metadata.get("split.no", 0), metadata.get("split.count", 1)
    count = 1 if count == 0 else count  # what gguf-split --merge leaves behind
    if type(number) is not int or type(count) is not int or not 0 <= number < count <= MAX_PARTS:
        _fail(path, f"expected a part's number and count, got split.no {short(number)}, split.count {short(count)}")
    return number, count


def _fail(path: Path, what: str) -> NoReturn:
    """Raise the error of parts that are no model."""
    msg = f"{path}: {what}"
    raise ModelError(msg)
