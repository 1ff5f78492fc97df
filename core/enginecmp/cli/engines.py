"""`cmp engines`: what is installed, what can run here, and what fixes the rest."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from enginecmp.cli.console import echo, print_json, say, table
from enginecmp.plugins.discovery import discover
from enginecmp.plugins.plugin import Plugin
from enginecmp.run.probe import probe_all
from enginecmp.types import Probe


@click.command("engines", short_help="List engines.")
@click.option("--device", help="Ask about this device; each engine's default without it.")
@click.option("--sensors", is_flag=True, help="List the sensors too, and why the missing ones are absent.")
@click.option("--available", is_flag=True, help="List all known engines, with the one command that brings each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(device: str | None, sensors: bool, available: bool, as_json: bool) -> None:
    """List every engine: name, version, devices, and whether it can run here.

    An engine that cannot run shows the reason and the command that fixes it. A plugin that fails to import is
    listed as broken with its error.
    """
    if available:
        _print_known(as_json)
        return
    rows = [_row(plugin, probe) for plugin, probe in probe_all(discover(), device)]
    readable = _sensors() if sensors else {}
    if as_json:
        document = {"engines": rows, **({"sensors": readable} if sensors else {})}
        print_json(document)
        return
    _print_table(rows)
    if sensors:
        _print_sensors(readable)


def _print_known(as_json: bool) -> None:
    """Print every engine and every preset that is known by name."""
    from enginecmp.plugins.catalog import KNOWN
    from enginecmp.plugins.presets import presets_of

    plugins = discover()
    here = {plugin.name for plugin in plugins if plugin.error is None}
    rows = [
        {
            "name": engine.name,
            "what": engine.what,
            "status": "installed" if engine.name in here else "not installed",
            "install": engine.brings,
            "engines": engine.name,
            "docs": f"docs/engines/{engine.name}.md",
        }
        for engine in KNOWN
    ]
    rows += [
        {
            "name": name,
            "what": named.preset.what,
            "status": "not installed" if named.missing else "installed",
            "install": named.preset.install,
            "engines": name,
            "docs": named.preset.docs,
        }
        for name, named in presets_of(plugins).items()
    ]
    if as_json:
        print_json({"engines": rows})
        return
    for row in rows:  # no table: a command that is broken over lines cannot be copied
        echo(f"{row['name']:<19} {row['status']:<14} {row['install']}  # {row['what']}")
    echo()
    echo("a server that runs already joins as --engines openai:http://HOST:PORT/v1; docs/engines/servers.md")


def _sensors() -> dict[str, dict[str, Any]]:
    """Start every sensor once; return facts, or the reason why it is absent."""
    from enginecmp.plugins.discovery import sensor_modules
    from enginecmp.telemetry.watch import Telemetry

    with (
        tempfile.TemporaryDirectory(prefix="cmp-sensors-") as folder,
        Telemetry(Path(folder), say, sensor_modules()) as telemetry,
    ):
        return telemetry.facts()


def _row(plugin: Plugin, probe: Probe) -> dict[str, Any]:
    info = plugin.info
    status = "broken" if info is None else "available" if probe.ok else "unavailable"
    return {
        "name": plugin.name,
        "version": info.version if info else "",
        "status": status,
        "reason": probe.reason,
        "fix": probe.fix,
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
    if not rows:
        echo("no engine plugins are installed; try `pip install enginecmp-llamacpp`")
        return
    style = {"available": "green", "unavailable": "yellow", "broken": "red"}
    table(
        ("engine", "version", "devices", "status", "licence"),
        [
            (r["name"], r["version"], " ".join(r["devices"]), (r["status"], style[r["status"]]), r["licence"])
            for r in rows
        ],
    )
    for row in rows:
        if row["status"] != "available":
            echo()
            echo(f"{row['name']}: {row['reason']}")
            if row["fix"]:
                echo(f"  fix: {row['fix']}")


def _print_sensors(readable: dict[str, dict[str, Any]]) -> None:
    echo()
    echo("sensors")
    for name, said in readable.items():
        absent = said.get("facts", {}).get("absent", {})
        parts = [f"not {value}: {reason}" for value, reason in absent.items()] if isinstance(absent, dict) else []
        echo(f"  {name}: {str(said.get('absent', '')).removeprefix(f'{name}: ') or '; '.join(['read', *parts])}")
