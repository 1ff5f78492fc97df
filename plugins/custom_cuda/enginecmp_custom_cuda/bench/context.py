"""What a part of a run is told, and where it writes what it finds."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measurement import Measurement

if TYPE_CHECKING:
    from ..device import Device


class Context:
    """What a part is told, and where it writes.

    Args:
        spec: from the parent; see `parts.run_part`.

    Attributes:
        device_kind: "cuda" or "emulated".
        dry: whether this is a rehearsal: the least of everything.
        wanted_model: what the user asked for, a path or the name of a shape.
        folder: of the run.
        wrong: records of the wrong answers of the parts before, each with the name of its part.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.device_kind: str = spec["device"]
        self.dry: bool = spec["dry"]
        self.wanted_model: str = spec["model"]
        self._folder: str = spec.get("folder", "")
        self.wrong: list[dict[str, Any]] = spec.get("wrong", [])
        self._deadline: float = time.monotonic() + spec["seconds"]
        self._records = Path(spec["records"])

    def left(self) -> float:
        """Return the seconds until this part should be over."""
        return self._deadline - time.monotonic()

    def enough(self, seconds: float, what: str) -> bool:
        """Return whether so many seconds are left; where not, write down what is left out."""
        if self.left() >= seconds:
            return True
        self.note(f"no time for {what}")
        return False

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self._folder)

    @property
    def device_timed(self) -> bool:
        """Whether times mean anything."""
        return self.device_kind == "cuda"

    @contextlib.contextmanager
    def device(self) -> Iterator[Device]:
        """Open the device, and close it at the end."""
        from ..device import open_device

        device = open_device(self.device_kind)
        try:
            yield device
        finally:
            device.close()

    def fact(self, name: str, value: Any) -> None:
        """Write a fact down."""
        self._write({"record": "fact", "name": name, "value": value})

    def measured(self, one: Measurement, **more: Any) -> None:
        """Write a measurement down."""
        self._write({"record": "measurement", **asdict(one), **more})

    def note(self, text: str) -> None:
        """Write down what was left out, and why."""
        self._write({"record": "note", "text": text})

    def failed(self, text: str) -> None:
        """Write down what ended the part, or one thing in it."""
        self._write({"record": "error", "text": text})

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Let one thing fail without the next ones, unless the device is lost: write its error down."""
        from ..device import LostDeviceError

        try:
            yield
        except LostDeviceError:
            raise
        except Exception as error:
            traceback.print_exc()
            self.failed(f"{what}: {one_line(error)}")

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, default=str) + "\n")


def one_line(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]
