"""What plugins bring beside engines: scenarios, kinds of measurement, synthetic models. Nothing of it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from enginecmp.format.measures import Measure
from enginecmp.plugins.discovery import bringing


class Brought(NamedTuple):
    """What all plugins together bring; of two that bring the same name the first by distribution counts.

    Attributes:
        scenarios: paths of scenario files.
        measures: kinds of measurement by name.
        models: synthetic models by name, and what writes each: "package.module:function".
    """

    scenarios: tuple[str, ...]
    measures: Mapping[str, Measure]
    models: Mapping[str, str]


def brought() -> Brought:
    """Return what the plugins of this environment and of `CMP_PLUGINS` bring."""
    plugins = bringing()[::-1]
    return Brought(
        scenarios=tuple(path for plugin in plugins for path in plugin.scenarios),
        measures={measure.name: measure for plugin in plugins for measure in plugin.measures},
        models={name: made for plugin in plugins for name, made in plugin.models},
    )
