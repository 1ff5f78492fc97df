"""Ask engines whether they can run here, each in a worker of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from enginecmp.format.text import command_line
from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.plugins.discovery import discover
from enginecmp.plugins.plugin import Plugin
from enginecmp.plugins.presets import without_program
from enginecmp.types import LoadOptions, Probe

_PROBE_SECONDS = 20.0


class AskedOnce:
    """Looks for plugins once, and asks every engine once for each device and options: for plans of many runs.

    Attributes:
        plugins: every plugin there is.
    """

    def __init__(self) -> None:
        self.plugins = discover()
        self._answers: dict[tuple[str, str | None, tuple[tuple[str, str], ...]], Probe] = {}

    def __call__(self, plugin: Plugin, device: str | None, logs: Path, extra: Mapping[str, str] = {}) -> Probe:
        """Return what `probe` returns, or has returned before."""
        key = plugin.name, device, tuple(sorted(extra.items()))
        if key not in self._answers:
            self._answers[key] = probe(plugin, device, logs, extra)
        return self._answers[key]


def probe_all(plugins: list[Plugin], device: str | None = None) -> list[tuple[Plugin, Probe]]:
    """Ask every plugin, each in a worker of its own, whether it can run here."""
    with tempfile.TemporaryDirectory(prefix="cmp-probe-") as folder, ThreadPoolExecutor() as pool:
        return list(zip(plugins, pool.map(lambda p: probe(p, device, Path(folder)), plugins), strict=True))


def probe(plugin: Plugin, device: str | None, logs: Path, extra: Mapping[str, str] = {}) -> Probe:
    """Ask one plugin whether it can run here, with its own options; a crash or a hang is an answer too."""
    if plugin.info is None:
        return Probe(ok=False, reason=plugin.error or "broken", fix=_fix_broken(plugin))
    device = device or plugin.info.devices[0]
    if device not in plugin.info.devices:
        return Probe(ok=False, reason=f"runs on {', '.join(plugin.info.devices)}, not on {device}")
    if (lacking := without_program(plugin, extra)) is not None:
        return lacking
    options = LoadOptions(device=device, extra=extra)
    try:
        with Launch(plugin.name, plugin, log=logs / f"{id(plugin)}.log", options=options) as launch:
            return launch.probe(_PROBE_SECONDS)
    except LaunchFailure as failure:
        return Probe(ok=False, reason=str(failure).partition("; log:")[0])


def _fix_broken(plugin: Plugin) -> str:
    """Return what helps: a missing module comes with an installation, a wrong answer with another version."""
    if not plugin.distribution:
        return ""
    if "ModuleNotFoundError" in (plugin.error or "") or "ImportError" in (plugin.error or ""):
        return f"pip install --force-reinstall {plugin.distribution}"
    return (
        f"pip install --upgrade {plugin.distribution}; or: {command_line(['cmp', 'plugin', 'uninstall', plugin.name])}"
    )
