"""Find engine plugins and say which of them are broken, without letting one harm another.

In the host a plugin is only imported and asked `cmp_engine()`. Each gets a plugin manager of its own: a failing
import or a misspelt hook is that plugin's error, and a hook call can never become a broadcast.
"""

from __future__ import annotations

import importlib
import os
import re
from importlib import metadata

import msgspec
import pluggy

from enginecmp import hookspecs, trace
from enginecmp.errors import CmpError, UsageError, did_you_mean
from enginecmp.types import EngineInfo

PLUGINS_VARIABLE = "CMP_PLUGINS"
"""Modules to load beside the installed plugins, separated by commas: an engine under development."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One engine plugin as discovery found it.

    Attributes:
        name: the engine's name, or the entry point's where the plugin is broken.
        module: what a worker imports, "package.module" or "package.module:attribute".
        distribution: name of the installed distribution; empty for `CMP_PLUGINS`.
        version: version of that distribution.
        info: the engine's facts; None when broken, and for a plugin that brings sensors alone.
        error: why it is broken, in one line; None when it is not.
        command: an executable that speaks the worker protocol, with its first arguments; empty for Python plugins.
        python: interpreter of the environment that holds the plugin; empty for this one.
        source: file that names an engine outside this environment; empty for installed plugins.
        sensors: whether it has `cmp_telemetry`.
    """

    name: str
    module: str = ""
    distribution: str = ""
    version: str = ""
    info: EngineInfo | None = None
    error: str | None = None
    command: tuple[str, ...] = ()
    python: str = ""
    source: str = ""
    sensors: bool = False

    @property
    def here(self) -> bool:
        """Whether its module can be imported in this environment."""
        return not (self.command or self.python)

    @property
    def batches(self) -> bool:
        """Whether several requests in flight go through its own batching, as against a queue in front of it."""
        return self.info is not None and self.info.max_concurrency > 1 and not self.command

    @property
    def origin(self) -> str:
        """Where the engine comes from: its module, the interpreter of another environment with it, or a command."""
        return " ".join(filter(None, (*self.command, self.python, self.module)))


def manager_with(plugin: object) -> pluggy.PluginManager:
    """Return a plugin manager that holds exactly this plugin.

    Raises:
        CmpError: the plugin has a hook whose name or arguments do not exist, or neither
            `cmp_engine` nor `cmp_telemetry`.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = [name for name in vars(hookspecs) if name.startswith("cmp_")]
        unknown = re.search(r"unknown hook '(\w+)'", str(error))
        hint = did_you_mean(unknown.group(1), known) if unknown else ""
        msg = f"{str(error).splitlines()[-1].strip()}{hint}"
        raise CmpError(msg) from error
    if os.environ.get(trace.VARIABLE):
        trace.watch(manager)
    if not manager.hook.cmp_engine.get_hookimpls() and not manager.hook.cmp_telemetry.get_hookimpls():
        msg = "it has no cmp_engine hook; decorate one with @enginecmp.hookimpl"
        raise CmpError(msg)
    return manager


def load_object(module: str) -> object:
    """Import "package.module" or "package.module:attribute" and return the plugin object."""
    path, _, attribute = module.partition(":")
    found: object = importlib.import_module(path)
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part)
    return found


def _examine(fallback_name: str, module: str, distribution: str, version: str) -> Plugin:
    try:
        hook = manager_with(load_object(module)).hook
        sensors = bool(hook.cmp_telemetry.get_hookimpls())
        if not hook.cmp_engine.get_hookimpls():
            return Plugin(
                name=fallback_name, module=module, distribution=distribution, version=version, sensors=sensors
            )
        info = hook.cmp_engine()[0]
        if not isinstance(info, EngineInfo):
            msg = f"cmp_engine returned {type(info).__name__}, expected enginecmp.EngineInfo"
            raise CmpError(msg)
        if not _NAME.fullmatch(info.name):
            msg = f"engine name {info.name!r} is not lower case letters, digits and '_'"
            raise CmpError(msg)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything on import, SystemExit included
        text = " ".join(str(error).split()) or "no message"
        kind = "" if isinstance(error, CmpError) else f"{type(error).__name__}: "
        return Plugin(
            name=fallback_name, module=module, distribution=distribution, version=version, error=f"{kind}{text}"
        )
    return Plugin(name=info.name, module=module, distribution=distribution, version=version, info=info, sensors=sensors)


def discover_installed() -> list[Plugin]:
    """Return the plugins that are installed in this environment."""
    found: list[Plugin] = []
    for entry in metadata.entry_points(group=hookspecs.PROJECT):
        distribution = entry.dist
        found.append(
            _examine(
                entry.name,
                entry.value,
                distribution.name if distribution else "",
                distribution.version if distribution else "",
            )
        )
    return found


def _under_development() -> list[Plugin]:
    named = [module.strip() for module in os.environ.get(PLUGINS_VARIABLE, "").split(",")]
    return [_examine(module.rpartition(".")[2], module, "", "") for module in named if module]


def sensor_modules() -> list[str]:
    """Return the modules of this environment's plugins, and of `CMP_PLUGINS`, that bring sensors; each once."""
    found = [*discover_installed(), *_under_development()]
    return list(dict.fromkeys(plugin.module for plugin in found if plugin.sensors))


def discover() -> list[Plugin]:
    """Return every engine by name, broken ones with their error: installed, of `CMP_PLUGINS`, and from outside."""
    from enginecmp.external import discover_external

    found = [*discover_external(), *discover_installed(), *_under_development()]
    engines = [plugin for plugin in found if plugin.info is not None or plugin.error is not None]
    by_name: dict[str, Plugin] = {}
    for plugin in sorted(engines, key=lambda p: (p.name, not p.here, p.distribution)):
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
    for plugin in plugins:
        if plugin.name == name:
            if plugin.error is not None:
                msg = f"{name}: its plugin is broken: {plugin.error}; see `cmp engines`"
                raise UsageError(msg)
            return plugin
    msg = f"unknown engine '{name}'{did_you_mean(name, [p.name for p in plugins if p.error is None])}"
    raise UsageError(msg)
