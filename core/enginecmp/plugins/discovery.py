"""Find engine plugins and say which of them are broken, without letting one harm another.

The host imports no plugin: each is asked for its facts in a process of its own (`enginecmp.plugins.asking`), and what
it said is kept until it, or what is installed, changes. A failing import, a hang, a misspelt hook or a wrong fact is
that plugin's error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata

import msgspec

from enginecmp import hookspecs
from enginecmp.errors import UsageError, did_you_mean, meant
from enginecmp.format.text import listed, plain
from enginecmp.plugins import identity
from enginecmp.plugins.asking import ask
from enginecmp.plugins.external import discover_external
from enginecmp.plugins.facts import Answer
from enginecmp.plugins.plugin import Plugin

PLUGINS_VARIABLE = "CMP_PLUGINS"
"""Modules to load beside the installed plugins, separated by commas: an engine under development."""

_MODULE = re.compile(r"[\w.]+(:[\w.]+)?")
_answers: dict[str, Answer] = {}
"""What plugins answered in this process, by identity: a plugin that hangs is waited for once."""


def examine(name: str, module: str, distribution: str, version: str) -> Plugin:
    """Ask one plugin for its facts; whatever it does instead becomes its error.

    Args:
        name: of its entry point; the engine's own name takes its place.
        module: "package.module" or "package.module:attribute".
        distribution: that brings it; empty for a module under development.
        version: of that distribution.
    """
    return _examined([_candidate(name, module, distribution, version)])[0]


def discover_installed() -> list[Plugin]:
    """Return the plugins that are installed in this environment."""
    return _examined(_installed())


def _installed() -> list[Plugin]:
    """Return what the metadata of installed distributions names as plugins, broken metadata with its error."""
    try:
        return [_named(entry, entry.dist) for entry in metadata.entry_points(group=hookspecs.PROJECT)]
    except Exception:  # one distribution's broken metadata: ask each by itself
        return [plugin for distribution in metadata.distributions() for plugin in _of(distribution)]


def _of(distribution: metadata.Distribution) -> Iterator[Plugin]:
    try:
        yield from (_named(entry, distribution) for entry in distribution.entry_points.select(group=hookspecs.PROJECT))
    except Exception as error:
        name = plain(str(getattr(distribution, "_path", "unknown distribution")).rpartition("/")[2])
        yield Plugin(
            name=name, error=f"{name}: its metadata cannot be read: {plain(str(error), 300)}; install it again"
        )


def _named(entry: metadata.EntryPoint, distribution: metadata.Distribution | None) -> Plugin:
    name, version = (distribution.metadata["Name"], distribution.version) if distribution else ("", "")
    return _candidate(entry.name, entry.value, name, version)


def _under_development() -> list[Plugin]:
    named = listed(os.environ.get(PLUGINS_VARIABLE, ""))
    return [_candidate(module.rpartition(".")[2], module) for module in named]


def _candidate(name: str, module: str, distribution: str = "", version: str = "") -> Plugin:
    """Return a plugin that is yet to be asked; one whose module cannot be named is broken."""
    found = Plugin(name=plain(name), distribution=plain(distribution), version=plain(version))
    if _MODULE.fullmatch(module):
        return msgspec.structs.replace(found, module=module)
    why = f"expected the name of a module, package.module or package.module:attribute, got '{plain(module)}'"
    return msgspec.structs.replace(found, error=why)


def _examined(plugins: Sequence[Plugin]) -> list[Plugin]:
    """Return plugins with their facts: those known from earlier without asking, the others asked at once."""
    around = identity.surroundings() if plugins else ""
    keys = {
        plugin: identity.identity(plugin, around, environment=not _lasting(plugin))
        for plugin in plugins
        if plugin.error is None
    }
    unknown: dict[str, Plugin] = {}
    for plugin, key in keys.items():
        if key not in _answers and _lasting(plugin) and (facts := identity.known(key)):
            _answers[key] = Answer(facts=facts)
        elif key not in _answers:
            unknown[key] = plugin
    answers = ask([plugin.module for plugin in unknown.values()])
    for (key, plugin), answer in zip(unknown.items(), answers, strict=True):
        _answers[key] = answer
        if answer.facts is not None and _lasting(plugin):
            identity.remember(key, answer.facts)
    return [_with(plugin, _answers[keys[plugin]]) if plugin in keys else plugin for plugin in plugins]


def _lasting(plugin: Plugin) -> bool:
    """Whether facts may be kept for later commands; a module under development may take them from anywhere."""
    return bool(plugin.distribution) or plugin.module.startswith(f"{hookspecs.PROJECT}.")


def _with(plugin: Plugin, answer: Answer) -> Plugin:
    facts = answer.facts
    if facts is None:
        return msgspec.structs.replace(plugin, name=answer.name or plugin.name, error=answer.error)
    return msgspec.structs.replace(
        plugin,
        name=facts.info.name if facts.info else plugin.name,
        info=facts.info,
        sensors="cmp_telemetry" in facts.hooks,
        hooks=facts.hooks,
        scenarios=facts.scenarios,
        measures=facts.measures,
        models=tuple(facts.models.items()),
    )


def sensor_modules(used: Collection[str] | None = None) -> list[str]:
    """Return the modules of this environment's plugins, and of `CMP_PLUGINS`, that bring sensors; each once.

    Args:
        used: modules of the engines that are measured: of plugins with engines only these; None takes all.
    """
    found = _examined([*_installed(), *_under_development()])
    sensors = [plugin for plugin in found if plugin.sensors]
    return list(dict.fromkeys(p.module for p in sensors if used is None or p.info is None or p.module in used))


def bringing() -> list[Plugin]:
    """Return the working plugins of this environment and of `CMP_PLUGINS`, with engines or without, by origin."""
    found = _examined([*_installed(), *_under_development()])
    return sorted((plugin for plugin in found if plugin.error is None), key=lambda p: (p.distribution, p.module))


def discover() -> list[Plugin]:
    """Return every engine by name, broken ones with their error: installed, of `CMP_PLUGINS`, and from outside."""
    from enginecmp.plugins.presets import with_users_presets

    found = with_users_presets([*discover_external(), *_examined([*_installed(), *_under_development()])])
    engines = [plugin for plugin in found if plugin.info is not None or plugin.error is not None]
    by_name: dict[str, Plugin] = {}
    # One that works comes first: a broken plugin takes no name from it.
    for plugin in sorted(engines, key=lambda p: (p.name, p.error is not None, not p.here, p.distribution)):
        if plugin.name not in by_name:
            by_name[plugin.name] = plugin
        elif plugin.origin != by_name[plugin.name].origin:
            clash = f"the name '{plugin.name}' is already taken by {by_name[plugin.name].origin}"
            key = f"{plugin.name} ({plugin.distribution or plugin.origin})"
            by_name[key] = msgspec.structs.replace(plugin, name=key, info=None, error=plugin.error or clash)
    return list(by_name.values())


def find(name: str, plugins: list[Plugin]) -> Plugin:
    """Return the working plugin of that name.

    Raises:
        UsageError: no such engine, or its plugin is broken.
    """
    plugin = named(name, plugins)
    if plugin.error is not None:
        msg = f"{name}: its plugin is broken: {plugin.error}; see `cmp engines`"
        raise UsageError(msg)
    return plugin


def named(name: str, plugins: list[Plugin]) -> Plugin:
    """Return the plugin of that name, broken or not.

    Raises:
        UsageError: no such engine.
    """
    name = meant(name, [plugin.name for plugin in plugins])
    for plugin in plugins:
        if plugin.name == name:
            return plugin
    from enginecmp.plugins.presets import presets_of

    known = [*(p.name for p in plugins if p.error is None), *presets_of(plugins)]
    msg = f"unknown engine '{name}'{did_you_mean(name, known)}"
    raise UsageError(msg)
