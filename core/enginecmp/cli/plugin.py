"""`cmp plugin`: make, list, check, install and uninstall engine plugins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from enginecmp.cli.console import echo, print_json, say, table
from enginecmp.errors import CmpError, UsageError, did_you_mean, meant
from enginecmp.format.text import command_line, operand
from enginecmp.plugins.discovery import discover
from enginecmp.plugins.plugin import Plugin


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
    from enginecmp.plugin_tools.new import scaffold

    folder = scaffold(name, parent)
    echo(f"{folder}: a working engine '{name}', a llama in NumPy until you put yours in its place")
    quoted = command_line([operand(folder)])
    echo(f"  cmp plugin check {quoted}      does it do what every engine must do?")
    echo(f"  cmp plugin install {quoted}    then it stands in `cmp engines`")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_plugins(as_json: bool) -> None:
    """List every plugin, where it comes from, and what is broken."""
    plugins = discover()
    if as_json:
        print_json({"plugins": plugins})
        return
    table(
        ("engine", "plugin", "version", "environment", "status"),
        [
            (p.name, p.distribution or p.module, p.version, _where(p), "ok" if p.error is None else "broken")
            for p in plugins
        ],
    )
    for plugin in plugins:
        if plugin.error is not None:
            echo()
            echo(f"{plugin.name}: {plugin.error}")


def _where(plugin: Plugin) -> str:
    if plugin.command:
        return f"executable {plugin.command[0]}"
    if plugin.python:
        return f"isolated: {Path(plugin.python).parent.parent.name}"
    return "this one" if plugin.distribution else "CMP_PLUGINS"


@command.command("check")
@click.argument("target", metavar="NAME|FOLDER")
@click.option("--model", help="Catalog name or GGUF file; tiny synthesized ones without it.")
@click.option("--device", help="The engine's default without it.")
@click.option("-v", "--verbose", is_flag=True, help="Show every test.")
def check(target: str, model: str | None, device: str | None, verbose: bool) -> int:
    """Say whether an engine does what every engine must do: facts, hooks, and the conformance suite.

    With a FOLDER the plugin in it is checked without being installed.
    """
    from enginecmp.plugin_tools.check import check_plugin

    return check_plugin(target, model, device, verbose)


@command.command("install", context_settings={"ignore_unknown_options": True})
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", type=click.UNPROCESSED)
@click.option("--isolated", metavar="NAME", help="Into an environment of its own, for dependencies that conflict.")
@click.option("--yes", is_flag=True, help="Do not ask: the authors of what is installed are trusted.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
def install(specs: tuple[str, ...], isolated: str | None, yes: bool, dry_run: bool) -> None:
    """Install plugins with pip (or uv) and say which engines came.

    SPEC is what the installer understands: a name, a folder, a wheel, or an option of it. Installing runs code of the
    plugin's author, and of everything that it depends on, with your rights: it asks first, or takes --yes.
    """
    from enginecmp.plugin_tools import isolated as environments

    if isolated is not None:
        folder = environments.folder_of(isolated)
        echo(f"new environment {folder}: {' '.join(specs)}")
        if not dry_run:
            _agreed(yes, ["--isolated", isolated, *specs])
            _tell(environments.create(isolated, specs))
        return
    line = [*environments.installer(sys.executable), *specs]
    echo(command_line(line))
    if dry_run:
        return
    _agreed(yes, specs)
    before = {plugin.name for plugin in _fresh()}
    if subprocess.run(line, env=environments.without_current_folder(), check=False).returncode != 0:
        msg = f"installing {' '.join(specs)} failed; the installer's messages are above"
        raise CmpError(msg)
    got = [plugin for plugin in _fresh() if plugin.name not in before]
    if got:
        _tell(got)
    else:
        echo("no new engine; see `cmp plugin list` (one that was there may be newer now)")


def _agreed(yes: bool, arguments: Sequence[str]) -> None:
    """Say what installing means, and go on only where somebody agreed.

    Raises:
        UsageError: nobody is there to ask.
        CmpError: the answer was no.
    """
    say("installing runs code of the plugin's author, and of what it depends on, with your rights")
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        again = f"cmp plugin install --yes {command_line(arguments)}"
        msg = f"plugin install: expected a terminal to ask on, there is none; where you trust its author: {again}"
        raise UsageError(msg)
    if not click.confirm("install it?", err=True):
        msg = "nothing was installed"
        raise CmpError(msg)


@command.command("uninstall")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
def uninstall(name: str, dry_run: bool) -> None:
    """Remove the plugin of the engine NAME, or the environment NAME."""
    from enginecmp.plugin_tools import isolated as environments

    plugins = {plugin.name: plugin for plugin in discover()}
    plugin = plugins.get(meant(name, plugins))
    own = environments.holding(plugin) if plugin is not None else name
    if own and environments.folder_of(own).is_dir():
        echo(f"remove {environments.folder_of(own)}")
        if not dry_run:
            environments.remove(own)
        return
    if plugin is None:
        msg = f"no plugin '{name}'{did_you_mean(name, plugins)}"
        raise UsageError(msg)
    if not plugin.distribution:
        msg = f"{name}: was not installed, it is named by {plugin.source or 'CMP_PLUGINS'}; take it out there"
        raise UsageError(msg)
    line = [sys.executable, "-P", "-m", "pip", "uninstall", "--yes", plugin.distribution]
    echo(command_line(line))
    if not dry_run and subprocess.run(line, env=environments.without_current_folder(), check=False).returncode != 0:
        msg = f"{name}: uninstalling {plugin.distribution} failed; pip's messages are above"
        raise CmpError(msg)


def _fresh() -> list[Plugin]:
    """Discover in a process of its own: what was just installed is not visible in this one."""
    code = "import sys, msgspec; from enginecmp.plugins.discovery import discover; "
    code += "sys.stdout.buffer.write(msgspec.json.encode(discover()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=list[Plugin])


def _tell(plugins: list[Plugin]) -> None:
    for plugin in plugins:
        state: Any = f"broken: {plugin.error}" if plugin.error else f"{plugin.info.version}" if plugin.info else ""
        echo(f"engine {plugin.name} ({plugin.distribution} {plugin.version}): {state}")
