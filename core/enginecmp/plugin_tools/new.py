"""A new plugin, complete and working, from the template beside this file."""

from __future__ import annotations

import re
from pathlib import Path

from enginecmp.errors import UsageError

TEMPLATE = Path(__file__).parent / "template"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def distribution_of(name: str) -> str:
    """Return the name of the distribution that a new engine is given."""
    return f"enginecmp-{name.replace('_', '-')}"


def scaffold(name: str, parent: Path) -> Path:
    """Write a distribution with one engine, its tests and its README; return its folder.

    Args:
        name: of the engine: lower case letters, digits, `_`.
        parent: where the folder is made.

    Raises:
        UsageError: not a name an engine can have, or the folder exists.
    """
    if not _NAME.fullmatch(name):
        hint = re.sub(r"\W+", "_", name.lower()).strip("_")
        msg = f"engine name '{name}': expected lower case letters, digits and _; try '{hint or 'my_engine'}'"
        raise UsageError(msg)
    folder = parent / distribution_of(name)
    if folder.exists():
        msg = f"{folder}: is already there; choose another name, or another place with --in"
        raise UsageError(msg)
    for source in sorted(TEMPLATE.rglob("*")):
        if source.is_dir() or "__pycache__" in source.parts:
            continue
        target = folder / _named(str(source.relative_to(TEMPLATE)), name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_named(source.read_text(encoding="utf-8"), name), encoding="utf-8")
    return folder


def _named(text: str, name: str) -> str:
    return text.replace("my_engine", name).replace("my-engine", name.replace("_", "-"))
