"""Typed access to foreign JSON: whatever is wrong is one line with file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from enginecmp.errors import ResultsError

_MISSING = object()

LARGEST_SECONDS = 9_000_000_000
"""Seconds whose nanoseconds still fit 64 bits."""


def read_documents(path: Path) -> list[Any]:
    """Read a JSON file, or one with a JSON value a line.

    Returns:
        The values, one for plain JSON.

    Raises:
        ResultsError: unreadable, empty, or neither; names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror or error}"
        raise ResultsError(msg) from error
    # Python's own reader: it takes the NaN and Infinity that Python tools write, and such a number is refused only
    # where it is needed.
    try:
        return [json.loads(content)]
    except (ValueError, RecursionError) as error:
        whole = str(error)
    documents = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            documents.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            # Pretty-printed JSON that broke off fails on its first line: the error of the whole says more.
            reason = whole if not documents else f"line {number}: {error}"
            msg = f"{path}: expected JSON, or JSON lines: {reason}"
            raise ResultsError(msg) from error
    if not documents:
        msg = f"{path}: expected JSON, got an empty file"
        raise ResultsError(msg)
    return documents


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object, and where it stands.

    Attributes:
        values: the object.
        where: file and key, for errors.
    """

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> Fields:
        """Wrap a value that must be an object.

        Raises:
            ResultsError: it is not.
        """
        if not isinstance(value, dict):
            msg = f"{where}: expected an object, got {_short(value)}"
            raise ResultsError(msg)
        return cls(value, where)

    def nested(self, key: str) -> Fields:
        """Return the object at a key."""
        return Fields.of(self._get(key), f"{self.where}: {key}")

    def maybe_object(self, key: str) -> Fields:
        """Return the object at a key, an empty one when there is none."""
        value = self.values.get(key)
        return Fields(value if isinstance(value, dict) else {}, f"{self.where}: {key}")

    def objects(self, key: str) -> Iterator[Fields]:
        """Yield the objects of a list; nothing where it is null."""
        if self.values.get(key, _MISSING) is None:
            return
        for number, value in enumerate(self.entries(key)):
            yield Fields.of(value, f"{self.where}: {key}[{number}]")

    def entries(self, key: str) -> list[Any]:
        """Return the list at a key."""
        value = self._get(key)
        if not isinstance(value, list):
            self.refuse(key, "a list", value)
        return value

    def numbers(self, key: str, length: int | None = None) -> list[float]:
        """Return a list of finite numbers >= 0, of a given length if any."""
        values = self.entries(key)
        if length is not None and len(values) != length:
            msg = f"{self.where}: {key}: expected {length} entries, one a request, got {len(values)}"
            raise ResultsError(msg)
        return [self._number(f"{key}[{number}]", value) for number, value in enumerate(values)]

    def integers(self, key: str, length: int | None = None) -> list[int]:
        """Return a list of whole numbers >= 0, of a given length if any."""
        return [self._whole(f"{key}[{i}]", value) for i, value in enumerate(self.numbers(key, length))]

    def number(self, key: str) -> float:
        """Return a finite number >= 0."""
        return self._number(key, self._get(key))

    def integer(self, key: str) -> int:
        """Return a whole number >= 0."""
        return self._whole(key, self.number(key))

    def maybe_number(self, key: str) -> float | None:
        """Return a finite number >= 0, None where it is null or not there."""
        return None if self.values.get(key) is None else self.number(key)

    def maybe_integer(self, key: str) -> int | None:
        """Return a whole number >= 0, None where it is null or not there."""
        return None if self.values.get(key) is None else self.integer(key)

    def text(self, key: str) -> str:
        """Return a value as text, "" where it is null or not there."""
        value = self.values.get(key)
        return "" if value is None else str(value)

    def refuse(self, key: str, expected: str, value: object) -> NoReturn:
        """Say what stands at a key in place of what was expected.

        Raises:
            ResultsError: always.
        """
        msg = f"{self.where}: {key}: expected {expected}, got {_short(value)}"
        raise ResultsError(msg)

    def _get(self, key: str) -> Any:
        value = self.values.get(key, _MISSING)
        if value is _MISSING:
            msg = f"{self.where}: expected the key '{key}', it is not there"
            raise ResultsError(msg)
        return value

    def _number(self, key: str, value: object) -> float:
        # bool is an int to Python, and no measurement.
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            self.refuse(key, "a number >= 0", value)
        return value

    def _whole(self, key: str, value: float) -> int:
        if value != int(value):
            self.refuse(key, "a whole number", value)
        return int(value)


def nanoseconds(seconds: float) -> int:
    """Return seconds as whole nanoseconds.

    Raises:
        OverflowError: they do not fit 64 bits.
    """
    if seconds > LARGEST_SECONDS:
        msg = f"a time of {seconds:g} seconds is no time of a request"
        raise OverflowError(msg)
    # Apart, because a float64 of nanoseconds since 1970 holds only every 256th.
    whole = int(seconds)
    return whole * 1_000_000_000 + round((seconds - whole) * 1e9)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
