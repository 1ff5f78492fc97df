"""Engines outside this Python environment: executables that speak the worker protocol, and isolated plugins.

An executable is named by an `engines.toml` (the user's, or those of `CMP_ENGINES`), one table an engine:

    [my_engine]
    command = ["./my-engine"]          # relative to the file; speaks the protocol of docs/worker-protocol.md
    version = "1.0"
    licence = "Apache-2.0"
    devices = ["cpu"]
    architectures = ["llama"]
    quantizations = ["F32"]

with the fields of `EngineInfo`. A table with `python` and `module` in place of `command` is a plugin in an environment
of its own. `cmp plugin install --isolated` keeps such plugins in the user's data folder, facts included, so that
discovery starts no process.
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import did_you_mean
from enginecmp.plugins import Plugin
from enginecmp.types import EngineInfo

ENGINES_VARIABLE = "CMP_ENGINES"
"""Further engines.toml files, separated by the system's path separator."""

ISOLATED_FACTS = "plugins.json"
"""What an isolated environment's plugins said of themselves when they were installed."""

_OWN_KEYS = ("command", "python", "module")
_PLACEHOLDER = {"version": "", "licence": "", "devices": ("cpu",), "architectures": (), "quantizations": ()}


def environments_folder() -> Path:
    """Return the folder that holds one environment for each isolated plugin."""
    from platformdirs import user_data_path

    return user_data_path("enginecmp") / "environments"


def engines_files() -> list[Path]:
    """Return the engines.toml files that exist or were asked for."""
    from platformdirs import user_config_path

    named = [Path(text) for text in os.environ.get(ENGINES_VARIABLE, "").split(os.pathsep) if text]
    own = user_config_path("enginecmp") / "engines.toml"
    return [*([own] if own.exists() else []), *named]


def discover_external() -> list[Plugin]:
    """Return every engine outside this environment; broken entries carry their error."""
    found = [entry for file in engines_files() for entry in _read(file)]
    for facts in sorted(environments_folder().glob(f"*/{ISOLATED_FACTS}")):
        found += _isolated(facts)
    return found


def _read(file: Path) -> Iterator[Plugin]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        yield Plugin(name=file.stem, source=str(file), error=f"{file}: cannot be read: {error}")
        return
    for name, table in content.items():
        yield _entry(name, table, file)


def _entry(name: str, table: Any, file: Path) -> Plugin:
    def broken(why: str) -> Plugin:
        return Plugin(name=name, source=str(file), error=f"{file} [{name}]: {why}")

    if not isinstance(table, dict):
        return broken("expected a table")
    known = (*_OWN_KEYS, *(key for key in EngineInfo.__struct_fields__ if key != "name"))
    for key in table:
        if key not in known:
            return broken(f"unknown key '{key}'{did_you_mean(key, known)}")
    if ("command" in table) == ("python" in table and "module" in table):
        return broken("expected either command, or python and module")
    try:
        facts = {key: value for key, value in table.items() if key not in _OWN_KEYS}
        info = msgspec.convert({**_PLACEHOLDER, **facts, "name": name}, EngineInfo)
        command = msgspec.convert(table.get("command", []), tuple[str, ...])
    except msgspec.ValidationError as error:
        return broken(str(error))
    python = str(table.get("python", ""))
    program = command[0] if command else python
    path = _resolve(program, file.parent)
    if path is None:
        return broken(f"expected an executable, found none at '{program}'")
    return Plugin(
        name=name,
        source=str(file),
        command=(path, *command[1:]) if command else (),
        python="" if command else path,
        module=str(table.get("module", "")),
        info=info,
    )


def _resolve(program: str, folder: Path) -> str | None:
    """Return the absolute path of a program, looked up beside the file or on PATH; None when there is none."""
    if "/" in program:
        path = (folder / Path(program).expanduser()).absolute()
        return str(path) if os.access(path, os.X_OK) and path.is_file() else None
    return shutil.which(program)


def _isolated(facts: Path) -> list[Plugin]:
    folder = facts.parent
    try:
        found = msgspec.json.decode(facts.read_bytes(), type=list[Plugin])
    except (OSError, msgspec.DecodeError) as error:
        why = f"{facts}: cannot be read: {error}; install it again: cmp plugin install --isolated {folder.name}"
        return [Plugin(name=folder.name, source=str(facts), error=why)]
    if not os.access(folder / "bin" / "python", os.X_OK):
        why = f"its environment {folder} has no interpreter any more; install it again with --isolated"
        return [msgspec.structs.replace(entry, info=None, error=why) for entry in found]
    return found
