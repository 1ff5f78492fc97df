"""Metadata keys of a GGUF file's architecture, typed, for engines that read the file by themselves.

What an engine concludes from them stays its own: the equivalence gate must not share the conclusions it checks.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NoReturn

from enginecmp.errors import UnsupportedModel
from enginecmp.models.gguf_file import GGUFFile


class GGUFKeys:
    """Metadata below "<architecture>.", each value of the type and in the range that is asked for, or a refusal.

    Args:
        engine: its name, for errors.
        file: the checked GGUF file.
        architectures: those that the engine implements.
        fix: the next step that a refusal names.

    Attributes:
        architecture: the file's `general.architecture`.

    Raises:
        UnsupportedModel: of another architecture.
    """

    def __init__(
        self,
        engine: str,
        file: GGUFFile,
        architectures: Collection[str],
        fix: str = "leave this engine out with --engines",
    ) -> None:
        self.architecture = str(file.metadata["general.architecture"])
        self._engine = engine
        self._fix = fix
        self._metadata = file.metadata
        if self.architecture not in architectures:
            self.refuse(f"an architecture among {', '.join(architectures)}", f"'{self.architecture}'")

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Refuse a file that asks for what the engine has never heard of.

        A count of zero experts or a flag that is off asks for nothing.

        Args:
            known: keys, without the architecture, that are implemented or say nothing about the arithmetic.

        Raises:
            UnsupportedModel: another key has a value that is neither zero nor false nor empty.
        """
        prefix = f"{self.architecture}."
        for key, value in self._metadata.items():
            if key.startswith(prefix) and key.removeprefix(prefix) not in known and value:
                self.refuse("only metadata that is implemented here", f"{key} = {value!r:.40}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int | None = None) -> int:
        """Return a whole number.

        Args:
            key: without the architecture.
            default: for files without the key; without a default it must be there. It may lie outside the range.
            least: smallest value that makes sense.
            most: largest one, if any.

        Raises:
            UnsupportedModel: absent, another type, out of range, or not the same in all layers.
        """
        value = self._value(key, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole and value >= least and (most is None or value <= most)
        if not fits and not (whole and value == default):
            wanted = "a positive whole number" if least == 1 else f"a whole number from {least}"
            wanted = wanted if most is None else f"a whole number from {least} to {most}"
            self.refuse(f"{wanted} in {self.architecture}.{key}", f"{value!r:.40}")
        return int(value)

    def number(self, key: str, default: float | None = None, *, above: float | None = None) -> float:
        """Return a finite number.

        Args:
            key: without the architecture.
            default: for files without the key; without a default it must be there.
            above: it must be larger than this.

        Raises:
            UnsupportedModel: absent, another type, out of range, or not the same in all layers.
        """
        value = self._value(key, default)
        sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not sound or (above is not None and value <= above):
            wanted = "a number" if above is None else f"a number above {above:g}"
            self.refuse(f"{wanted} in {self.architecture}.{key}", f"{value!r:.40}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a flag; arguments and errors as for `number`."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.refuse(f"true or false in {self.architecture}.{key}", f"{value!r:.40}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; arguments and errors as for `number`."""
        value = self._value(key, default)
        if not isinstance(value, str):
            self.refuse(f"a text in {self.architecture}.{key}", f"{value!r:.40}")
        return value

    def refuse(self, expected: str, got: str, fix: str = "") -> NoReturn:
        """Raise `UnsupportedModel` with one line: the engine, what was expected, what came, the next step."""
        msg = f"{self._engine}: expected {expected}, got {got}; {fix or self._fix}"
        raise UnsupportedModel(msg)

    def _value(self, key: str, default: Any) -> Any:
        name = f"{self.architecture}.{key}"
        value = self._metadata.get(name, default)
        if value is None:
            self.refuse(f"metadata {name}", "none", f"convert the model again, or {self._fix}")
        # Some converters write one value a layer.
        if isinstance(value, list):
            if not value or any(other != value[0] for other in value):
                self.refuse(f"one {name} for all layers", f"{value!r:.40}")
            value = value[0]
        return value
