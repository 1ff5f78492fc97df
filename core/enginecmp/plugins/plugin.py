"""One engine plugin as discovery found it."""

from __future__ import annotations

import msgspec

from enginecmp.format.measures import Measure
from enginecmp.types import EngineInfo


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
        hooks: names of the hooks that it implements.
        scenarios: paths of the scenario files that it brings.
        measures: kinds of measurement that it brings.
        models: (name, what writes it) of the synthetic models that it brings.
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
    hooks: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    models: tuple[tuple[str, str], ...] = ()

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
