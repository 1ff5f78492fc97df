"""Foreign files to JSON values: encodings, several values in one file, and what no file of results may be."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import stat
import zlib
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.format.text import plain
from enginecmp.importers.llama_bench_text import tables

LARGEST_BYTES = 1 << 30
"""Files of results are smaller; what is larger is not read into memory."""

_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
)

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)

# C++ prints what JSON has no word for as nan, -nan, -nan(ind) or inf; strings are matched first, so that they stay.
_WORDS = re.compile(
    r'("(?:[^"\\]|\\.)*")|([-+]?)\b(nan(?:\([a-z0-9]*\))?|inf(?:inity)?)(?!\w)', re.IGNORECASE | re.DOTALL
)
_SPACE = re.compile(r"\s*")


def read_documents(path: Path) -> list[Any]:
    """Read a file of JSON values: one, one a line, or one after the other; or a text table of llama-bench.

    Returns:
        The values. A text table is a list of objects, as llama-bench's own JSON is.

    Raises:
        ResultsError: unreadable, not a plain file, too large, empty, or neither; names the line.
    """
    content = _unpacked(path, _read(path))
    try:
        text = _decode(path, content)
    except ResultsError:
        # A table's only sign beyond ASCII is "±", in whatever the terminal's encoding was.
        if found := _tables(path, content.decode("utf-8", "replace")):
            return found
        raise
    if not text.strip():
        msg = f"{path}: expected JSON, got an empty file"
        raise ResultsError(msg)
    try:
        return _values(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else plain(str(error))
    found = _tables(path, text)
    if found:
        return found
    words = _WORDS.sub(_word, text)
    if words != text:
        try:
            return _values(words)
        except (ValueError, RecursionError):
            pass
    msg = f"{path}: expected JSON, or JSON lines: {reason}"
    raise ResultsError(msg)


def _read(path: Path) -> bytes:
    try:
        # Not blocking: a pipe without a writer would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        about = os.fstat(descriptor)
        plain_file = stat.S_ISREG(about.st_mode) and about.st_size <= LARGEST_BYTES
        if not plain_file:
            os.close(descriptor)
        else:
            with open(descriptor, "rb") as file:
                content = file.read(about.st_size + 1)
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ResultsError(msg) from error
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a device, pipe or socket"
        msg = f"{path}: expected a file of results, got {kind}"
        raise ResultsError(msg)
    if not plain_file:
        msg = f"{path}: expected a file of at most {LARGEST_BYTES >> 20} MiB, got {about.st_size >> 20} MiB"
        raise ResultsError(msg)
    return content


def _unpacked(path: Path, content: bytes) -> bytes:
    """Return the content, unpacked where it is gzip.

    Raises:
        ResultsError: packed otherwise, cut or damaged, or too large.
    """
    kind = next((kind for mark, kind in _PACKED if content.startswith(mark)), None)
    if kind is None:
        return content
    if kind != "gzip":
        msg = f"{path}: expected text or gzip, got {kind}; unpack it first"
        raise ResultsError(msg)
    try:
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(LARGEST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path}: expected a whole gzip file: {plain(str(error))}"
        raise ResultsError(msg) from error
    if len(unpacked) > LARGEST_BYTES:
        msg = f"{path}: expected at most {LARGEST_BYTES >> 20} MiB when unpacked, got more"
        raise ResultsError(msg)
    return unpacked


def _tables(path: Path, text: str) -> list[Any]:
    try:
        return [*tables(text)]
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ResultsError(msg) from error


def _decode(path: Path, content: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None:
        # Without a byte order mark, zeros in the first characters tell (RFC 4627, section 3).
        encoding = json.detect_encoding(content[:4]) if content[:4].count(0) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        msg = f"{path}: expected text in {encoding.removesuffix('-sig')}: {error.reason} at byte {error.start}"
        raise ResultsError(msg) from error


def _values(text: str) -> list[Any]:
    """Return all JSON values of a text.

    Python's own reader takes the NaN and Infinity that Python tools write; such a number is refused only where it is
    needed.

    Raises:
        ValueError: a value is malformed.
        RecursionError: one is nested too deeply.
    """
    decoder = json.JSONDecoder()
    values, place = [], _end_of_space(text, 0)
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        values.append(value)
        place = _end_of_space(text, place)
    return values


def _end_of_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def _word(found: re.Match[str]) -> str:
    string, sign, word = found.groups()
    if string is not None:
        return str(string)
    return "NaN" if word[0] in "nN" else f"{sign.replace('+', '')}Infinity"
