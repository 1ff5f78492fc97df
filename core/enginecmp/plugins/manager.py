"""A pluggy manager that holds exactly one plugin, so that a hook call is never a broadcast."""

from __future__ import annotations

import importlib
import os
import re

import pluggy

from enginecmp import hookspecs
from enginecmp.errors import CmpError, did_you_mean
from enginecmp.plugins import trace

_BRINGING = ("cmp_engine", "cmp_telemetry", "cmp_measures", "cmp_models", "cmp_scenarios")
"""Hooks any of which makes an object a plugin."""


def manager_with(plugin: object) -> pluggy.PluginManager:
    """Return a plugin manager that holds exactly this plugin.

    Raises:
        CmpError: the plugin has a hook whose name or arguments do not exist, or none that brings anything.
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
    if not any(getattr(manager.hook, name).get_hookimpls() for name in _BRINGING):
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
