"""Does a plugin keep the contract? Its facts first, then the conformance suite in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import msgspec

from enginecmp import hookspecs, testing
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.format.documents import read_toml
from enginecmp.format.text import visible
from enginecmp.models.store import resolve
from enginecmp.plugins.discovery import PLUGINS_VARIABLE, discover, find
from enginecmp.plugins.plugin import Plugin
from enginecmp.run.probe import probe_all
from enginecmp.types import Device, EngineInfo

NEEDED = ("cmp_load", "cmp_prefill", "cmp_decode", "cmp_reset", "cmp_unload", "cmp_score", "cmp_metrics", "cmp_probe")


def check_plugin(target: str, model: str | None, device: str | None, verbose: bool) -> int:
    """Print what is right and what is not about one plugin.

    Args:
        target: name of an installed engine, or a folder with a plugin's pyproject.toml.
        model: for the conformance suite; tiny synthesized ones without it.
        device: likewise; the engine's default without it.
        verbose: show every test.

    Returns:
        0 when everything holds, 1 when something does not.

    Raises:
        UsageError: no such engine or no plugin in the folder.
    """
    name = _visible(Path(target)) if os.sep in target or Path(target).is_dir() else target
    plugin = find(name, discover())
    assert plugin.info is not None
    click.echo(visible(f"{plugin.name}: {plugin.distribution or plugin.origin} {plugin.version}"))
    wrong = [*_facts(plugin.info), *_hooks(plugin)]
    for line in wrong:
        click.echo(visible(f"  ! {line}"))
    if not wrong:
        click.echo("  facts and hooks: ok")
    if model:
        resolve(model, fetch=True)  # a wrong name is one line here, and an error of every test there
    [(_, answer)] = probe_all([plugin], device)
    if not answer.ok:
        click.echo(visible(f"  ! it cannot run here: {answer.reason}; the conformance suite was not run"))
        if answer.fix:
            click.echo(visible(f"    {answer.fix}"))
        return 1
    suite = _suite(plugin.name, model, device, verbose)
    return 1 if suite or any(not line.startswith("note:") for line in wrong) else 0


def _no_plugin(folder: Path, got: str) -> UsageError:
    return UsageError(f"{folder}: expected a pyproject.toml with [project.entry-points.enginecmp], got {got}")


def _visible(folder: Path) -> str:
    """Make the engine of a folder visible, here and for the suite, and return its name."""
    try:
        project = read_toml(folder / "pyproject.toml")["project"]
        entries = msgspec.convert(project["entry-points"][hookspecs.PROJECT], dict[str, str])
    except FileNotFoundError as error:
        raise _no_plugin(folder, "no file that can be read") from error
    except ResultsError as error:
        raise _no_plugin(folder, f"one that cannot be read: {error}") from error
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise _no_plugin(folder, "one without it") from error
    modules = list(entries.values())
    sys.path.insert(0, str(folder.absolute()))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH", ""))))
    os.environ[PLUGINS_VARIABLE] = ",".join(filter(None, (*modules, os.environ.get(PLUGINS_VARIABLE, ""))))
    found = [plugin for plugin in discover() if plugin.module in modules]
    if not found:
        msg = f"{folder}: expected an engine in {', '.join(modules)}, found none"
        raise UsageError(msg)
    return found[0].name


def _facts(info: EngineInfo) -> Iterator[str]:
    for name in ("version", "licence", "devices", "architectures", "quantizations"):
        if not getattr(info, name):
            yield f"EngineInfo.{name} is empty; say what it is"
    for device in info.devices:
        if device not in get_args(Device):
            yield f"EngineInfo.devices: '{device}' is none of {', '.join(get_args(Device))}"
    from gguf import GGMLQuantizationType

    for name in info.quantizations:
        if name not in GGMLQuantizationType.__members__:
            yield f"EngineInfo.quantizations: '{name}' is no GGUF tensor type"
    if "F32" not in info.quantizations:
        yield "note: without F32 in quantizations nothing proves the engine exact"


def _hooks(plugin: Plugin) -> Iterator[str]:
    if not plugin.here:
        return
    for name in NEEDED:
        if name not in plugin.hooks:
            optional = {
                "cmp_score": "every run will call it not comparable",
                "cmp_metrics": "no sizes",
                "cmp_probe": "it counts as able to run anywhere",
                "cmp_unload": "its process ends without freeing",
            }
            yield f"note: no {name}: {optional[name]}" if name in optional else f"no {name}: an engine must have it"
    if ("cmp_submit" in plugin.hooks) != ("cmp_step" in plugin.hooks):
        yield "cmp_submit and cmp_step come together; one of them is missing"


def _suite(name: str, model: str | None, device: str | None, verbose: bool) -> int:
    if importlib.util.find_spec("pytest") is None:
        msg = "the conformance suite needs pytest; install it: pip install 'enginecmp[test]'"
        raise CmpError(msg)
    # Whatever lies in the current folder has no say in it: no module (-P), no settings (-c), and no conftest.py, which
    # pytest reads there unless it is given a path.
    folder = str(Path(testing.__file__).parent)
    line = [sys.executable, "-P", "-m", "pytest", "-v" if verbose else "-q", "-p", "no:cacheprovider", "--no-header"]
    line += ["-c", os.devnull, "--rootdir", folder, "--tb=short", folder, "--engine", name]
    line += ["--engine-model", model] if model else []
    line += ["--engine-device", device] if device else []
    return subprocess.run(line, env={**os.environ, "PYTHONSAFEPATH": "1"}, check=False).returncode
