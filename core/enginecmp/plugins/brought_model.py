"""Synthetic models that plugins bring: written in a process of their own, then read like any other file.

In the child: `python -P -m enginecmp.plugins.brought_model ANSWER_FD PLACE ARGUMENTS`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import ModelError
from enginecmp.format.text import plain
from enginecmp.models.known_files import info_of
from enginecmp.plugins.describe import told
from enginecmp.plugins.manager import load_object
from enginecmp.types import ModelInfo
from enginecmp.wire.asked import AskedProcess, NoAnswer

DEADLINE_SECONDS = 3600.0
"""For a file of tens of gigabytes."""

_MOST_BYTES = 4096
_WRITTEN = b"written"


def write_brought(
    name: str, place: str, path: Path, quantization: str, seed: int, layers: int | None = None
) -> ModelInfo:
    """Write a plugin's synthetic model and return what it is.

    Args:
        name: of the model.
        place: what writes it, from `Brought.models`.
        path: the GGUF file to write.
        quantization: tensor type of the matrices.
        seed: every weight comes from it.
        layers: another number of layers than the model's own.

    Raises:
        ModelError: the plugin does not write it, or what it wrote is no model.
    """
    arguments = {"path": str(path), "quantization": quantization, "seed": seed, "layers": layers}
    try:
        asked = AskedProcess(
            "enginecmp.plugins.brought_model",
            place,
            msgspec.json.encode(arguments).decode(),
            seconds=DEADLINE_SECONDS,
            most_bytes=_MOST_BYTES,
        )
        try:
            answer = asked.answer()
        finally:
            asked.close()
    except NoAnswer as silent:
        msg = f"{name}: {place} {silent}{f'; it printed: {silent.printed}' if silent.printed else ''}"
        raise ModelError(msg) from silent
    if answer != _WRITTEN:
        msg = f"{name}: {plain(answer.decode(errors='replace'), 500)}"
        raise ModelError(msg)
    return info_of(path)


def main(arguments: list[str]) -> None:
    """Write one model and answer; what the plugin left running has no say."""
    try:
        write: Any = load_object(arguments[1])
        write(**msgspec.json.decode(arguments[2]))
        answer = _WRITTEN
    except BaseException as error:  # whatever a plugin raises
        answer = told(error).encode(errors="replace")[:_MOST_BYTES]
    os.pwrite(int(arguments[0]), answer, 0)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
