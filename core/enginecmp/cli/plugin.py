"""`cmp plugin`: make, list, check, install and uninstall engine plugins."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from enginecmp.errors import CmpError, UsageError
from enginecmp.plugins import Plugin, discover


@click.group("plugin", short_help="Make, list, check and install engine plugins.")
def command() -> None:
    """Make, list, check, install and uninstall engine plugins.

    An engine joins from outside through the entry-point group `enginecmp`, or through an engines.toml.
    """


@command.command("new")
@click.argument("name")
@click.option("--in", "parent", type=click.Path(file_okay=False, path_type=Path), default=".", help="Where to make it.")
def new(name: str, parent: Path) -> None:
    """Write a complete, working plugin for the engine NAME; replace its class by your engine."""
    from enginecmp.scaffold import scaffold

    folder = scaffold(name, parent)
    click.echo(f"{folder}: a working engine '{name}', a llama in NumPy until you put yours in its place")
    click.echo(f"  cmp plugin check {folder}      does it do what every engine must do?")
    click.echo(f"  cmp plugin install {folder}    then it stands in `cmp engines`")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_plugins(as_json: bool) -> None:
    """List every plugin, where it comes from, and what is broken."""
    plugins = discover()
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode({"plugins": plugins}), indent=2) + b"\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("engine", "plugin", "version", "environment", "status"):
        table.add_column(heading)
    for plugin in plugins:
        status = "ok" if plugin.error is None else "broken"
        table.add_row(plugin.name, plugin.distribution or plugin.module, plugin.version, _where(plugin), status)
    console = Console(highlight=False)
    console.print(table)
    for plugin in plugins:
        if plugin.error is not None:
            console.print(f"\n{plugin.name}: {plugin.error}", markup=False, soft_wrap=True)


def _where(plugin: Plugin) -> str:
    if plugin.command:
        return f"executable {plugin.command[0]}"
    if plugin.python:
        return f"isolated: {Path(plugin.python).parent.parent.name}"
    return "this one" if plugin.distribution else "CMP_PLUGINS"


@command.command("check")
@click.argument("target", metavar="NAME|FOLDER")
@click.option("--model", help="Catalog name or GGUF file; tiny invented ones without it.")
@click.option("--device", help="The engine's default without it.")
@click.option("-v", "--verbose", is_flag=True, help="Show every test.")
def check(target: str, model: str | None, device: str | None, verbose: bool) -> int:
    """Say whether an engine does what every engine must do: facts, hooks, and the conformance suite.

    With a FOLDER the plugin in it is checked without being installed.
    """
    from enginecmp.check_plugin import check_plugin

    return check_plugin(target, model, device, verbose)


@command.command("install", context_settings={"ignore_unknown_options": True})
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", type=click.UNPROCESSED)
@click.option("--isolated", metavar="NAME", help="Into an environment of its own, for dependencies that conflict.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
def install(specs: tuple[str, ...], isolated: str | None, dry_run: bool) -> None:
    """Install plugins with pip (or uv) and say which engines came.

    SPEC is what the installer understands: a name, a folder, a wheel, or an option of it.
    """
    from enginecmp import isolated as environments

    if isolated is not None:
        folder = environments.folder_of(isolated)
        click.echo(f"new environment {folder}: {' '.join(specs)}")
        if not dry_run:
            _tell(environments.create(isolated, specs))
        return
    line = [*environments.installer(sys.executable), *specs]
    click.echo(shlex.join(line))
    if dry_run:
        return
    before = {plugin.name for plugin in _fresh()}
    if subprocess.run(line, check=False).returncode != 0:
        msg = f"installing {' '.join(specs)} failed; the installer's messages are above"
        raise CmpError(msg)
    came = [plugin for plugin in _fresh() if plugin.name not in before]
    if came:
        _tell(came)
    else:
        click.echo("no new engine; see `cmp plugin list` (one that was there may be newer now)")


@command.command("uninstall")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
def uninstall(name: str, dry_run: bool) -> None:
    """Remove the plugin of the engine NAME, or the environment NAME."""
    from enginecmp import isolated as environments

    plugins = {plugin.name: plugin for plugin in discover()}
    plugin = plugins.get(name)
    own = Path(plugin.python).parent.parent.name if plugin is not None and plugin.python else name
    if (plugin is None or plugin.python) and environments.folder_of(own).is_dir():
        click.echo(f"remove {environments.folder_of(own)}")
        if not dry_run:
            environments.remove(own)
        return
    if plugin is None:
        from enginecmp.errors import did_you_mean

        msg = f"no plugin '{name}'{did_you_mean(name, plugins)}"
        raise UsageError(msg)
    if not plugin.distribution:
        msg = f"{name}: was not installed, it is named by {plugin.source or 'CMP_PLUGINS'}; take it out there"
        raise UsageError(msg)
    line = [sys.executable, "-m", "pip", "uninstall", "--yes", plugin.distribution]
    click.echo(shlex.join(line))
    if not dry_run and subprocess.run(line, check=False).returncode != 0:
        msg = f"{name}: uninstalling {plugin.distribution} failed; pip's messages are above"
        raise CmpError(msg)


def _fresh() -> list[Plugin]:
    """Discover in a process of its own: what was just installed is not visible in this one."""
    code = "import sys, msgspec; from enginecmp.plugins import discover; "
    code += "sys.stdout.buffer.write(msgspec.json.encode(discover()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=list[Plugin])


def _tell(plugins: list[Plugin]) -> None:
    for plugin in plugins:
        state: Any = f"broken: {plugin.error}" if plugin.error else f"{plugin.info.version}" if plugin.info else ""
        click.echo(f"engine {plugin.name} ({plugin.distribution} {plugin.version}): {state}")
