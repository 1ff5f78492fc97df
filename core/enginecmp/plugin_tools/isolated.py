"""Environments of their own for engines whose dependencies conflict with others'.

The environment holds the plugin and what it needs. Of the host it sees the package `enginecmp` alone, linked and
not copied, so that host and worker always speak the same protocol.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import msgspec

import enginecmp
from enginecmp.errors import CmpError, UsageError
from enginecmp.plugins.external import ISOLATED_FACTS, environments_folder
from enginecmp.plugins.plugin import Plugin

_WORKER_NEEDS = ("gguf", "msgspec", "numpy", "pluggy")
"""What the worker and a plugin's own imports of `enginecmp` need; named as requirements of the linked package."""

_DESCRIBE = """
import sys, msgspec
from enginecmp.plugins.discovery import discover_installed
sys.stdout.buffer.write(msgspec.json.encode(discover_installed()))
"""


def installer(python: str) -> list[str]:
    """Return the command that installs into the environment of an interpreter: uv where it is present, else pip."""
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-P", "-m", "uv", "pip", "install", "--python", python]
    return [sys.executable, "-P", "-m", "pip", "--python", python, "install"]


def without_current_folder() -> dict[str, str]:
    """Return the environment in which Python programs that others start take no module of the current folder either."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def folder_of(name: str) -> Path:
    """Return where the environment of a name is or would be.

    Raises:
        UsageError: the name is no single folder name.
    """
    if not name or name != Path(name).name or name.startswith("."):
        msg = f"environment name '{name}': expected letters, digits, - and _"
        raise UsageError(msg)
    return environments_folder() / name


def holding(plugin: Plugin) -> str:
    """Return the name of the environment that a plugin is in, also of one that is broken; "" for none of ours."""
    folder = Path(plugin.source).parent
    return folder.name if plugin.source and folder.parent == environments_folder() else ""


def create(name: str, specs: Sequence[str]) -> list[Plugin]:
    """Make an environment, install plugins into it and remember what they say of themselves.

    A failed installation leaves nothing behind; an environment of that name that was there before stays as it was.

    Args:
        name: of the environment.
        specs: what the installer is given: names, folders, options of it.

    Returns:
        The engines that were found in it.

    Raises:
        CmpError: the installation failed, or brought no working engine.
    """
    folder = folder_of(name)
    fresh = folder.with_name(f"{name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        venv.create(fresh, symlinks=True)
        python = str(fresh / "bin" / "python")
        _link_host(fresh)
        _run([*installer(python), *_WORKER_NEEDS, *specs], "installation failed")
        described = _run([python, "-P", "-c", _DESCRIBE], "the environment does not start", quiet=True)
        found = _read(described)
        if not found:
            msg = f"{' '.join(specs)}: installed, but it brings no engine: no entry point in the group 'enginecmp'"
            raise CmpError(msg)
        # Scripts inside name the folder; the interpreter, all that is used, finds its home by pyvenv.cfg beside it.
        final = str(folder / "bin" / "python")
        found = [msgspec.structs.replace(p, python=final, source=str(folder / ISOLATED_FACTS)) for p in found]
        (fresh / ISOLATED_FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return found


def _read(described: bytes) -> list[Plugin]:
    try:
        return msgspec.json.decode(described, type=list[Plugin])
    except msgspec.MsgspecError as error:
        msg = f"the environment does not say which engines it holds: {error}"
        raise CmpError(msg) from error


def remove(name: str) -> bool:
    """Delete an environment; return whether there was one."""
    folder = folder_of(name)
    if not folder.is_dir():
        return False
    shutil.rmtree(folder)
    return True


def _link_host(folder: Path) -> None:
    """Make this host's package importable there, with metadata that satisfies a plugin's requirement of it."""
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "enginecmp").symlink_to(Path(enginecmp.__file__).parent, target_is_directory=True)
    facts = packages / f"enginecmp-{enginecmp.__version__}.dist-info"
    facts.mkdir()
    needs = "".join(f"Requires-Dist: {name}\n" for name in _WORKER_NEEDS)
    text = f"Metadata-Version: 2.1\nName: enginecmp\nVersion: {enginecmp.__version__}\nProvides-Extra: test\n{needs}"
    (facts / "METADATA").write_text(text, encoding="utf-8")
    (facts / "INSTALLER").write_text("enginecmp\n", encoding="utf-8")
    (facts / "RECORD").write_text("", encoding="utf-8")


def _run(command: Sequence[str], what: str, quiet: bool = False) -> bytes:
    out = subprocess.PIPE if quiet else None
    done = subprocess.run(command, stdout=out, env=without_current_folder(), check=False)
    if done.returncode != 0:
        msg = f"{what} (exit code {done.returncode}: {command[0]}); its messages are above"
        raise CmpError(msg)
    return done.stdout or b""
