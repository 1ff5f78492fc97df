"""What plugins share whose engine runs an export of the Hugging Face folder, made once and kept beside the models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from enginecmp.errors import UnsupportedModel
from enginecmp.format.text import plain


def exports_folder(engine: str) -> Path:
    """Return where an engine's exports are kept: beside the host's models."""
    if override := os.environ.get("ENGINECMP_CACHE"):
        return Path(override).absolute() / engine
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "enginecmp" / engine


def exported(
    engine: str, exporter: str, folder: str, *, key: str, needs: str, command: Callable[[Path], Sequence[str]]
) -> Path:
    """Return the export of a folder, made where there is none yet, in a process of its own.

    A process of its own, so that what exports (PyTorch) is not in the memory of the engine that is measured.

    Args:
        engine: its name, for the place and for errors.
        exporter: the name of what exports, for errors.
        folder: the Hugging Face folder.
        key: names the export: the folder's SHA-256, what was asked for, the exporter's versions.
        needs: a file that a whole export has, as its name.
        command: what is run to export into the empty folder that it is given; its output goes to stderr.

    Raises:
        UnsupportedModel: it cannot be exported.
    """
    target = exports_folder(engine) / key
    if (target / needs).is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename is atomic; two that export at once make the same.
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        done = subprocess.run(
            command(scratch), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
        sys.stderr.write(done.stdout[-20_000:] + done.stderr[-20_000:])  # into the launch's log
        if done.returncode != 0 or not (scratch / needs).is_file():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            msg = f"{engine}: expected a folder that {exporter} exports, got: {plain(lines[-1], 400)}; {folder}"
            raise UnsupportedModel(msg)
        if not target.exists():
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
