"""Keys of a Hugging Face config.json, each value of the type and in the range that is asked for, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from enginecmp.errors import UnsupportedModel
from enginecmp.models.gguf_header import short

MAX_COUNT = 2**31
MAX_LAYERS = 4096
MAX_HEADS = 65_536
MAX_NUMBER = 1e38
"""GGUF keeps numbers in float32."""


class ConfigKeys:
    """A configuration under the names of one architecture.

    Args:
        path: of the folder, for errors.
        config: the object in config.json, or one inside it.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self._path = path
        self._config = config

    def integer(self, *keys: str, default: int | None = None, most: int = MAX_COUNT) -> int:
        """Return the whole number, 1 to `most`, under the first key that is there and not null.

        Raises:
            UnsupportedModel: none is there and there is no default, or it is something else.
        """
        value = self._value(keys, default)
        if type(value) is not int or not 1 <= value <= most:
            self.refuse(f"a whole number from 1 to {most} in '{keys[0]}'", short(value))
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """Return the positive finite number under the first key that is there; errors as for `integer`."""
        value = self._value(keys, default)
        if type(value) not in (int, float) or not 0 < value < MAX_NUMBER:
            self.refuse(f"a number above 0 in '{keys[0]}'", short(value))
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a flag; null is the default. Errors as for `integer`."""
        value = self._value((key,), default)
        if type(value) is not bool:
            self.refuse(f"true or false in '{key}'", short(value))
        return value

    def numbers(self, key: str, length: int) -> list[float]:
        """Return a list of so many finite numbers; errors as for `integer`."""
        value = self._value((key,), None)
        sound = isinstance(value, list) and len(value) == length
        if not sound or any(type(item) not in (int, float) or not abs(item) < MAX_NUMBER for item in value):
            self.refuse(f"{length} numbers in '{key}'", short(value))
        return [float(item) for item in value]

    def inner(self, *keys: str) -> ConfigKeys:
        """Return the object under the first key that is there and not null; an empty one where none is."""
        value = self._value(keys, {})
        if not isinstance(value, dict):
            self.refuse(f"an object in '{keys[0]}'", short(value))
        return ConfigKeys(self._path, value)

    def get(self, key: str) -> Any:
        """Return a value as it is, None where there is none."""
        return self._config.get(key)

    def require(self, key: str, *allowed: Any) -> None:
        """Refuse a value that is there and none of those that are implemented; null counts as not there."""
        value = self._config.get(key)
        if value is not None and (isinstance(value, list | dict) or value not in allowed):
            self.refuse(f"'{key}' {' or '.join(map(repr, allowed))}", short(value))

    def refuse(self, expected: str, got: str) -> NoReturn:
        """Raise one line: the file, what was expected, what came."""
        msg = f"{self._path}/config.json: expected {expected}, got {got}; convert the model with llama.cpp's tools"
        raise UnsupportedModel(msg)

    def _value(self, keys: tuple[str, ...], default: Any) -> Any:
        for key in keys:
            if self._config.get(key) is not None:
                return self._config[key]
        return default
