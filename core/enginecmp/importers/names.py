"""Names in foreign files."""

from __future__ import annotations

import re


def model_name(path: str) -> str:
    r"""Return the name of a model from what a tool was given: the last part of a path, also one of Windows.

    A name of a hub (`owner/name`) stays whole: it has one slash, and no path has so few.
    """
    return path if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) else file_name(path)


def file_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
