"""How a folder's files are refused: in one line."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from enginecmp.errors import ModelError


def refuse(where: Path, expected: str, got: str) -> NoReturn:
    """Raise one line: where, what was expected, what came."""
    msg = f"{where}: expected {expected}, got {got}"
    raise ModelError(msg)
