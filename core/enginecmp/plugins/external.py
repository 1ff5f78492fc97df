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
of its own; one with `preset_of` is a name for an engine with options (`enginecmp.plugins.presets`).
`cmp plugin install --isolated` keeps such plugins in the user's data folder, facts included, so that discovery starts
no process.
"""

from __future__ import annotations

import errno
import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import did_you_mean
from enginecmp.format.text import plain
from enginecmp.plugins.facts import words, wrong_info
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import EngineInfo

ENGINES_VARIABLE = "CMP_ENGINES"
"""Further engines.toml files, separated by the system's path separator."""

PRESET_KEY = "preset_of"
"""A table with this key is a preset of an engine, see `enginecmp.plugins.presets`."""

ISOLATED_FACTS = "plugins.json"
"""What an isolated environment's plugins said of themselves when they were installed."""

_PLACEHOLDER = {"version": "", "licence": "", "devices": ("cpu",), "architectures": (), "quantizations": ()}
_MOST_BYTES = 1 << 20


class _Start(msgspec.Struct, frozen=True, kw_only=True):
    """How a table says that its engine is started; the rest of it are facts."""

    command: tuple[str, ...] = ()
    python: str = ""
    module: str = ""


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


def _content(file: Path) -> bytes:
    """Return the content of a file of facts; a pipe, a device or a flood is refused before it is read."""
    if not file.is_file():
        raise OSError(errno.EINVAL, "expected a regular file")
    with file.open("rb") as opened:
        content = opened.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"expected at most {_MOST_BYTES} bytes")
    return content


def tables_of(file: Path) -> dict[str, Any]:
    """Return what an engines.toml holds; nothing where it cannot be read, which `discover_external` tells."""
    try:
        return tomllib.loads(_content(file).decode())
    except (OSError, ValueError, RecursionError):
        return {}


def _read(file: Path) -> Iterator[Plugin]:
    try:
        content = tomllib.loads(_content(file).decode())
    except (OSError, ValueError, RecursionError) as error:
        why = f"{plain(str(file))}: cannot be read: {plain(getattr(error, 'strerror', None) or str(error))}"
        yield Plugin(name=plain(file.stem), source=str(file), error=why)
        return
    for name, table in content.items():
        if not (isinstance(table, dict) and PRESET_KEY in table):
            yield _entry(name, table, file)


def broken_table(name: str, file: Path, why: str) -> Plugin:
    """Return what stands for a table of an engines.toml that is wrong."""
    where = f"{plain(str(file))} [{plain(name, 80)}]"
    return Plugin(name=plain(name, 80), source=str(file), error=f"{where}: {plain(why, 500)}")


def _entry(name: str, table: Any, file: Path) -> Plugin:
    def broken(why: str) -> Plugin:
        return broken_table(name, file, why)

    if not isinstance(table, dict):
        return broken("expected a table")
    facts_of = (key for key in EngineInfo.__struct_fields__ if key not in ("name", "presets"))
    known = (*_Start.__struct_fields__, *facts_of)
    for key in table:
        if key not in known:
            return broken(f"unknown key '{key}'{did_you_mean(key, known)}")
    if {"command", "python", "module"} & table.keys() not in ({"command"}, {"python", "module"}):
        return broken("expected either command, or python and module")
    try:
        start = msgspec.convert({key: table[key] for key in _Start.__struct_fields__ if key in table}, _Start)
        facts = {key: value for key, value in table.items() if key not in _Start.__struct_fields__}
        info = msgspec.convert({**_PLACEHOLDER, **facts, "name": name}, EngineInfo)
    except msgspec.ValidationError as error:
        return broken(words(error))
    texts = (*start.command, start.python, start.module)
    if wrong := next((text for text in texts if not text.isprintable()), None):
        return broken(f"expected printable text in command, python and module, got '{wrong}'")
    if wrong := next(wrong_info(info), None):
        return broken(wrong)
    program = start.command[0] if start.command else start.python
    path = _resolve(program, file.parent)
    if path is None:
        return broken(f"expected an executable, found none at '{program}'")
    if start.command:
        return Plugin(name=name, source=str(file), command=(path, *start.command[1:]), info=info)
    return Plugin(name=name, source=str(file), python=path, module=start.module, info=info)


def _resolve(program: str, folder: Path) -> str | None:
    """Return the absolute path of a program, looked up beside the file or on PATH; None when there is none."""
    if "/" in program:
        path = (folder / os.path.expanduser(program)).absolute()
        return str(path) if os.access(path, os.X_OK) and path.is_file() else None
    return shutil.which(program)


def _isolated(facts: Path) -> list[Plugin]:
    folder = facts.parent
    try:
        found = msgspec.json.decode(_content(facts), type=list[Plugin])
    except (OSError, ValueError, RecursionError) as error:
        why = f"{plain(str(facts))}: cannot be read: {plain(str(error))}; {_again(folder)}"
        return [Plugin(name=folder.name, source=str(facts), error=why)]
    if not os.access(folder / "bin" / "python", os.X_OK):
        why = f"its environment {folder} has no interpreter any more; {_again(folder)}"
        return [msgspec.structs.replace(entry, info=None, error=why) for entry in found]
    return [_checked(entry) for entry in found]


def _again(folder: Path) -> str:
    return f"take it out with `cmp plugin uninstall {folder.name}`, then install it again with --isolated"


def _checked(plugin: Plugin) -> Plugin:
    """Hold stored facts against the rules: they came from the plugin, and an older version may have let them pass."""
    wrong = next(wrong_info(plugin.info), None) if plugin.info else None
    return msgspec.structs.replace(plugin, name=plain(plugin.name, 80), info=None, error=wrong) if wrong else plugin
