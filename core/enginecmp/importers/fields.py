"""Typed access to foreign JSON: whatever is wrong is one line with file and key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from enginecmp.errors import ResultsError
from enginecmp.format.text import plain

_MISSING = object()

LARGEST_STAMP = 2**62 - 1
"""Nanoseconds of which any two differ by less than 64 bits hold: those of the year 2116."""

LARGEST_SECONDS = 4_600_000_000
"""Seconds whose nanoseconds are no larger."""

LARGEST_COUNT = 1_000_000_000
"""More tokens, or requests at once, than any model or machine takes."""


class MissingKey(ResultsError):
    """A key that is needed is not there: the file may be of another version of its tool."""


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
            msg = f"{where}: expected an object, got {short(value)}"
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

    def entries(self, key: str, length: int | None = None) -> list[Any]:
        """Return the list at a key, of a given length if any."""
        value = self._get(key)
        if not isinstance(value, list):
            self.refuse(key, "a list", value)
        if length is not None and len(value) != length:
            msg = f"{self.where}: {key}: expected {length} entries, one a request, got {len(value)}"
            raise ResultsError(msg)
        return value

    def numbers(self, key: str, length: int | None = None) -> list[float]:
        """Return a list of finite numbers >= 0, of a given length if any."""
        return [self._number(f"{key}[{number}]", value) for number, value in enumerate(self.entries(key, length))]

    def number_at(self, key: str, index: int) -> float:
        """Return the finite number >= 0 at a place of a list."""
        return self._number(f"{key}[{index}]", self.entries(key)[index])

    def integers(self, key: str, length: int | None = None) -> list[int]:
        """Return a list of counts >= 0, of a given length if any."""
        return [self._whole(f"{key}[{i}]", value) for i, value in enumerate(self.numbers(key, length))]

    def number(self, key: str) -> float:
        """Return a finite number >= 0."""
        return self._number(key, self._get(key))

    def integer(self, key: str) -> int:
        """Return a count >= 0."""
        return self._whole(key, self.number(key))

    def stamp(self, key: str) -> int:
        """Return whole nanoseconds, or bytes, >= 0."""
        return self._whole(key, self.number(key), LARGEST_STAMP)

    def stamp_at(self, key: str, index: int) -> int:
        """Return the whole nanoseconds >= 0 at a place of a list."""
        return self._whole(f"{key}[{index}]", self.number_at(key, index), LARGEST_STAMP)

    def maybe_number(self, key: str) -> float | None:
        """Return a finite number >= 0; None where it is null, no number (NaN) or not there."""
        value = self.values.get(key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        return self.number(key)

    def maybe_integer(self, key: str) -> int | None:
        """Return a count >= 0; None where it is null, no number (NaN) or not there."""
        return None if self.maybe_number(key) is None else self.integer(key)

    def maybe_stamp(self, key: str) -> int | None:
        """Return whole nanoseconds >= 0; None where it is null, no number (NaN) or not there."""
        return None if self.maybe_number(key) is None else self.stamp(key)

    def text(self, key: str) -> str:
        """Return a word or a number as text on one printable line, "" where it is null or not there."""
        value = self.values.get(key)
        if value is None:
            return ""
        if isinstance(value, dict | list):
            self.refuse(key, "text", value)
        return plain(short(value) if isinstance(value, int | float) else str(value))

    def first(self, *keys: str) -> str:
        """Return the first of several keys that is there with a value; the first one where none is."""
        return next((key for key in keys if self.values.get(key) is not None), keys[0])

    def refuse(self, key: str, expected: str, value: object) -> NoReturn:
        """Say what stands at a key in place of what was expected.

        Raises:
            ResultsError: always.
        """
        msg = f"{self.where}: {key}: expected {expected}, got {short(value)}"
        raise ResultsError(msg)

    def _get(self, key: str) -> Any:
        value = self.values.get(key, _MISSING)
        if value is _MISSING:
            msg = f"{self.where}: expected the key '{key}', it is not there"
            raise MissingKey(msg)
        return value

    def _number(self, key: str, value: object) -> float:
        # bool is an int to Python, and no measurement; a longer int is no float.
        if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, int) and value >= 2**64):
            self.refuse(key, "a number >= 0", value)
        if not math.isfinite(value) or value < 0:
            self.refuse(key, "a number >= 0", value)
        return value

    def _whole(self, key: str, value: float, largest: int = LARGEST_COUNT) -> int:
        if value != int(value):
            self.refuse(key, "a whole number", value)
        if value > largest:
            self.refuse(key, f"a number of at most {largest}", value)
        return int(value)


def nanoseconds(seconds: float) -> int:
    """Return seconds as whole nanoseconds.

    Raises:
        OverflowError: they are more than any clock tells.
    """
    if seconds > LARGEST_SECONDS:
        msg = f"a time of {seconds:g} seconds is no time of a request"
        raise OverflowError(msg)
    # Apart, because a float64 of nanoseconds since 1970 holds only every 256th.
    whole = int(seconds)
    return whole * 1_000_000_000 + round((seconds - whole) * 1e9)


def short(value: object) -> str:
    """Return a value for an error message, whatever its size."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > LARGEST_STAMP:
        return f"a number of {value.bit_length()} bits"
    return plain(repr(value[:41]) if isinstance(value, str) else repr(value), 40)
