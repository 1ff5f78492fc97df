"""`cmp engines`: what is installed, what can run here, and what mends the rest."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from enginecmp.launch import Launch, LaunchFailure
from enginecmp.plugins import Plugin, discover
from enginecmp.types import LoadOptions, Probe

_PROBE_SECONDS = 20.0


@click.command("engines", short_help="List engines.")
@click.option("--device", help="Ask about this device; each engine's default without it.")
@click.option("--sensors", is_flag=True, help="List the sensors too, and why the missing ones are absent.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(device: str | None, sensors: bool, as_json: bool) -> None:
    """List every engine: name, version, devices, and whether it can run here.

    An engine that cannot run shows the reason and the command that mends it. A plugin that fails to import is
    listed as broken with its error.
    """
    rows = [_row(plugin, probe) for plugin, probe in probe_all(discover(), device)]
    readable = _sensors() if sensors else {}
    if as_json:
        document = {"engines": rows, **({"sensors": readable} if sensors else {})}
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        return
    _print_table(rows)
    if sensors:
        _print_sensors(readable)


def _sensors() -> dict[str, dict[str, Any]]:
    """Start every sensor once; return facts, or the reason why it is absent."""
    from enginecmp.plugins import sensor_modules
    from enginecmp.telemetry.watch import Telemetry

    with tempfile.TemporaryDirectory(prefix="cmp-sensors-") as folder:
        say = partial(print, file=sys.stderr)
        with Telemetry(Path(folder), say, sensor_modules()) as telemetry:
            return telemetry.facts()


def probe_all(plugins: list[Plugin], device: str | None = None) -> list[tuple[Plugin, Probe]]:
    """Ask every plugin, each in a worker of its own, whether it can run here."""
    with tempfile.TemporaryDirectory(prefix="cmp-probe-") as folder, ThreadPoolExecutor() as pool:
        return list(zip(plugins, pool.map(lambda p: probe(p, device, Path(folder)), plugins), strict=True))


def probe(plugin: Plugin, device: str | None, logs: Path, extra: Mapping[str, str] = {}) -> Probe:
    """Ask one plugin whether it can run here, with its own options; a crash or a hang is an answer too."""
    if plugin.info is None:
        return Probe(ok=False, reason=plugin.error or "broken", mend=_mend_broken(plugin))
    device = device or plugin.info.devices[0]
    if device not in plugin.info.devices:
        return Probe(ok=False, reason=f"runs on {', '.join(plugin.info.devices)}, not on {device}")
    options = LoadOptions(device=device, extra=extra)
    try:
        with Launch(plugin.name, plugin, log=logs / f"{plugin.name}.log", options=options) as launch:
            answer = launch.call("probe", _PROBE_SECONDS, options=msgspec.to_builtins(options))
        return msgspec.convert(answer, Probe)
    except LaunchFailure as failure:
        return Probe(ok=False, reason=str(failure).partition("; log:")[0])


def _mend_broken(plugin: Plugin) -> str:
    return f"pip install --force-reinstall {plugin.distribution}" if plugin.distribution else ""


def _row(plugin: Plugin, probe: Probe) -> dict[str, Any]:
    info = plugin.info
    status = "broken" if info is None else "available" if probe.ok else "unavailable"
    return {
        "name": plugin.name,
        "version": info.version if info else "",
        "status": status,
        "reason": probe.reason,
        "mend": probe.mend,
        "devices": list(info.devices) if info else [],
        "architectures": list(info.architectures) if info else [],
        "quantizations": list(info.quantizations) if info else [],
        "max_concurrency": info.max_concurrency if info else 0,
        "licence": info.licence if info else "",
        "limits": list(info.limits) if info else [],
        "plugin": plugin.distribution or plugin.origin,
        "plugin_version": plugin.version,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not rows:
        console.print("no engine plugins are installed; try `pip install enginecmp-llamacpp`")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("engine", "version", "devices", "status", "licence"):
        table.add_column(heading)
    style = {"available": "green", "unavailable": "yellow", "broken": "red"}
    for row in rows:
        status = f"[{style[row['status']]}]{row['status']}[/]"
        table.add_row(row["name"], row["version"], " ".join(row["devices"]), status, row["licence"])
    console.print(table)
    for row in rows:
        if row["status"] != "available":
            mend = f"\n  mend: {row['mend']}" if row["mend"] else ""
            console.print(f"\n{row['name']}: {row['reason']}{mend}", markup=False, soft_wrap=True)


def _print_sensors(readable: dict[str, dict[str, Any]]) -> None:
    print("\nsensors")
    for name, said in readable.items():
        absent = said.get("facts", {}).get("absent", {})
        parts = [f"not {value}: {reason}" for value, reason in absent.items()] if isinstance(absent, dict) else []
        print(f"  {name}: {str(said.get('absent', '')).removeprefix(f'{name}: ') or '; '.join(['read', *parts])}")
