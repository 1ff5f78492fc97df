"""Presets: names that stand for an engine with options, a plugin's own or those of a user's engines.toml.

A plugin names its presets in `EngineInfo.presets`. A user adds one as a table of an engines.toml:

    [my-vllm]
    preset_of = "vllm-server"                         # a preset whose options stay where none is given, or an engine
    options = { flags = "--tensor-parallel-size 2" }

with the other fields of `enginecmp.types.Preset` where they are not those of the preset that it is made from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from enginecmp.errors import did_you_mean
from enginecmp.plugins.external import PRESET_KEY, broken_table, engines_files, tables_of
from enginecmp.plugins.facts import PRESET_NAME, words, wrong_preset
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import Preset, Probe


class Named(NamedTuple):
    """A preset and the engine that it stands for.

    Attributes:
        plugin: of the engine.
        preset: what it adds.
    """

    plugin: Plugin
    preset: Preset

    @property
    def missing(self) -> bool:
        """Whether the program that it needs is not here."""
        program = self.preset.program
        return bool(program) and shutil.which(os.path.expanduser(program)) is None


def presets_of(plugins: Iterable[Plugin]) -> dict[str, Named]:
    """Return every preset by name; the name of an engine is that engine, whatever a preset is called."""
    working = [plugin for plugin in plugins if plugin.info is not None]
    engines = {plugin.name for plugin in working}
    return {
        name: Named(plugin, preset)
        for plugin in working
        if plugin.info is not None
        for name, preset in plugin.info.presets.items()
        if name not in engines
    }


def without_program(plugin: Plugin, given: Mapping[str, str]) -> Probe | None:
    """Return why an engine with a preset's options cannot run here, and the command that brings what is missing.

    None where nothing is missing, and where other options than a preset's say how it is started.

    Args:
        plugin: of the engine.
        given: its options.
    """
    for preset in plugin.info.presets.values() if plugin.info is not None else ():
        as_given = all(given.get(key) == value for key, value in preset.options.items() if key != "url")
        if preset.options and as_given and Named(plugin, preset).missing:
            reason = f"expected the program '{preset.program}', it is not installed"
            return Probe(ok=False, reason=reason, fix=preset.install)
    return None


def with_users_presets(plugins: Sequence[Plugin]) -> list[Plugin]:
    """Return the plugins with the presets that engines.toml files add, and a broken plugin for each wrong one."""
    found = list(plugins)
    for file in engines_files():
        for name, table in tables_of(file).items():
            if isinstance(table, dict) and PRESET_KEY in table:
                found = list(_added(found, name, table, file))
    return found


def _added(plugins: Sequence[Plugin], name: str, table: Mapping[str, Any], file: Path) -> Iterator[Plugin]:
    """Yield the plugins with one more preset, or beside them what is wrong with it."""
    try:
        engine, preset = _read(plugins, name, table)
    except (ValueError, msgspec.ValidationError) as error:
        yield from plugins
        yield broken_table(name, file, words(error) if isinstance(error, msgspec.ValidationError) else str(error))
        return
    for plugin in plugins:
        if plugin.info is None or plugin.name != engine:
            yield plugin
            continue
        info = msgspec.structs.replace(plugin.info, presets={**plugin.info.presets, name: preset})
        yield msgspec.structs.replace(plugin, info=info)


def _read(plugins: Sequence[Plugin], name: str, table: Mapping[str, Any]) -> tuple[str, Preset]:
    """Return the engine's name and the preset of a table.

    Raises:
        ValueError: it is made from nothing that exists, or has a name or a field that is not allowed.
        msgspec.ValidationError: a field has another type.
    """
    fields = dict(table)
    base = fields.pop(PRESET_KEY)
    known, engines = presets_of(plugins), {p.name for p in plugins if p.info is not None}
    if not PRESET_NAME.fullmatch(name) or name in engines:
        msg = "expected a name of its own of lower case letters, digits, '_' and '-'"
        raise ValueError(msg)
    for key in fields:
        if key not in Preset.__struct_fields__:
            msg = f"unknown key '{key}'{did_you_mean(key, Preset.__struct_fields__)}"
            raise ValueError(msg)
    if base not in known and base not in engines:
        msg = f"expected {PRESET_KEY} to name an engine or a preset, got '{base}'{did_you_mean(str(base), known)}"
        raise ValueError(msg)
    of = known[base].preset if base in known else Preset(what=name)
    given = msgspec.convert({"what": of.what, **fields}, Preset)
    changed = {key: getattr(given, key) for key in fields if key != "options"}
    preset = msgspec.structs.replace(of, **changed, options={**of.options, **given.options})
    if wrong := next(wrong_preset(name, preset), None):
        raise ValueError(wrong)
    return (known[base].plugin.name if base in known else base), preset
