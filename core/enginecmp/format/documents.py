"""Read a small file whole, as text, TOML or JSON: regular files only, and whatever is wrong with it in one error."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import ResultsError, UsageError, did_you_mean
from enginecmp.format.streams import open_regular

MOST_BYTES = 64 * 2**20
"""Of a file that people write or that holds what was asked; a recorded trace of a million arrivals is a third of it."""


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        FileNotFoundError: nothing is there.
        ResultsError: it is no regular file, too large, cannot be read or is no UTF-8.
    """
    with open_regular(path, MOST_BYTES) as file:
        content = file.read()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        msg = f"{path}: expected text in UTF-8, got: {error}"
        raise ResultsError(msg) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        FileNotFoundError: nothing is there.
        ResultsError: as `read_text`, or it is no TOML.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{path}: not TOML: {error}"
        raise ResultsError(msg) from error


def read_json(path: Path, kind: Any) -> Any:
    """Return the content of a JSON file as a type that msgspec knows.

    Raises:
        FileNotFoundError: nothing is there.
        ResultsError: as `read_text`, it is no JSON, or another type.
    """
    text = read_text(path)
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        msg = f"{path}: {error}"
        raise ResultsError(msg) from error


@contextlib.contextmanager
def named_by_user(what: str, path: Path | str) -> Iterator[None]:
    """Tell what is wrong with a file that is read inside as the mistake of who named it.

    Args:
        what: the file is, or the option that named it: "scenario", "--suite".
        path: as it is shown where nothing is there.

    Raises:
        UsageError: in place of FileNotFoundError and ResultsError.
    """
    try:
        yield
    except FileNotFoundError as error:
        msg = f"{what} {path}: No such file or directory"
        raise UsageError(msg) from error
    except ResultsError as error:
        msg = f"{what} {error}"
        raise UsageError(msg) from error


def require_known(keys: Iterable[str], known: Collection[str], where: str) -> None:
    """Refuse keys that a table does not have.

    Args:
        keys: those of the table.
        known: those that there are.
        where: the table is.

    Raises:
        UsageError: names the first wrong one and the nearest right one.
    """
    for key in keys:
        if key not in known:
            msg = f"{where}: unknown key '{key}'{did_you_mean(key, known)}"
            raise UsageError(msg)


def converted(table: Any, kind: Any, where: str) -> Any:
    """Return a table of a file, or what stands in its place, as a type that msgspec knows.

    Args:
        table: as it was read.
        kind: of a struct only its own keys are taken, whatever it says of others itself.
        where: it stands.

    Raises:
        UsageError: a key that the struct does not have, or another type.
    """
    if isinstance(table, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        require_known(table, kind.__struct_fields__, where)
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        msg = f"{where}: {error}"
        raise UsageError(msg) from error
