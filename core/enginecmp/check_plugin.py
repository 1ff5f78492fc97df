"""Does a plugin keep the contract? Its facts first, then the conformance suite in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click

from enginecmp import hookspecs, testing
from enginecmp.errors import CmpError, UsageError
from enginecmp.plugins import PLUGINS_VARIABLE, Plugin, discover, find, load_object, manager_with
from enginecmp.types import Device, EngineInfo

NEEDED = ("cmp_load", "cmp_prefill", "cmp_decode", "cmp_reset", "cmp_unload", "cmp_score", "cmp_metrics", "cmp_probe")


def check_plugin(target: str, model: str | None, device: str | None, verbose: bool) -> int:
    """Print what is right and what is not about one plugin.

    Args:
        target: name of an installed engine, or a folder with a plugin's pyproject.toml.
        model: for the conformance suite; tiny invented ones without it.
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
    click.echo(f"{plugin.name}: {plugin.distribution or plugin.origin} {plugin.version}")
    wrong = [*_facts(plugin.info), *_hooks(plugin)]
    for line in wrong:
        click.echo(f"  ! {line}")
    if not wrong:
        click.echo("  facts and hooks: ok")
    suite = _suite(plugin.name, model, device, verbose)
    return 1 if suite or any(not line.startswith("note:") for line in wrong) else 0


def _no_plugin(folder: Path, came: str) -> UsageError:
    return UsageError(f"{folder}: expected a pyproject.toml with [project.entry-points.enginecmp], came {came}")


def _visible(folder: Path) -> str:
    """Make the engine of a folder visible, here and for the suite, and return its name."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        entries: dict[str, str] = project["entry-points"][hookspecs.PROJECT]
    except OSError as error:
        raise _no_plugin(folder, "no file that can be read") from error
    except tomllib.TOMLDecodeError as error:
        raise _no_plugin(folder, f"no TOML: {error}") from error
    except KeyError as error:
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
    hook = manager_with(load_object(plugin.module)).hook
    for name in NEEDED:
        if not getattr(hook, name).get_hookimpls():
            optional = {
                "cmp_score": "every run will call it not comparable",
                "cmp_metrics": "no sizes",
                "cmp_probe": "it counts as able to run anywhere",
                "cmp_unload": "its process ends without freeing",
            }
            yield f"note: no {name}: {optional[name]}" if name in optional else f"no {name}: an engine must have it"
    if bool(hook.cmp_submit.get_hookimpls()) != bool(hook.cmp_step.get_hookimpls()):
        yield "cmp_submit and cmp_step come together; one of them is missing"


def _suite(name: str, model: str | None, device: str | None, verbose: bool) -> int:
    if importlib.util.find_spec("pytest") is None:
        msg = "the conformance suite needs pytest; install it: pip install 'enginecmp[test]'"
        raise CmpError(msg)
    line = [sys.executable, "-m", "pytest", "-v" if verbose else "-q", "-p", "no:cacheprovider", "--no-header"]
    # Whatever project lies around the current folder has no say in it.
    line += ["-c", os.devnull, "--rootdir", str(Path(testing.__file__).parent), "--tb=short"]
    line += ["--pyargs", "enginecmp.testing", "--engine", name]
    line += ["--engine-model", model] if model else []
    line += ["--engine-device", device] if device else []
    return subprocess.run(line, check=False).returncode
