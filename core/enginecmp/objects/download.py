"""Runs from object storage: into folders that every reader knows, each part checked by its hash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginecmp.errors import CmpError, ObjectStoreError, ResultsError
from enginecmp.format.documents import read_json
from enginecmp.format.text import to_json
from enginecmp.objects.address import Address
from enginecmp.objects.bucket import Bucket
from enginecmp.objects.index import ObjectPart, RunObjects, key_of, read_index
from enginecmp.results.files import write_atomically

KEPT = ".objects.json"
"""Beside the files of a run that was fetched: which version of it they are."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._=+@:-]*")


class Kept(msgspec.Struct):
    """.objects.json: the etag of run.json, and its content."""

    etag: str
    index: RunObjects


def fetch_runs(address: Address, cache: Path, say: Callable[[str], None]) -> list[Path]:
    """Return the folders of every run at an address, fetched unless they are here as they are there.

    Args:
        address: of a run, or of what runs lie right below.
        cache: folder of what was fetched.
        say: told what was left out.

    Raises:
        ObjectStoreError: no run is there, or it cannot be read.
    """
    bucket = Bucket(address)
    # Another server may have a bucket of the same name.
    where = f"{os.environ.get('AWS_ENDPOINT_URL', '')} {address.bucket}"
    home = cache / hashlib.sha256(where.encode()).hexdigest()[:16]
    found = []
    for place in _runs_at(bucket, address):
        try:
            found.append(fetch_run(bucket, place, home / place.prefix))
        except KeyError:
            continue  # not a run
    if not found:
        msg = f"{address}: expected a run or runs below it, found none; upload one with `cmp run --out {address}`"
        raise ObjectStoreError(msg)
    return found


def _runs_at(bucket: Bucket, address: Address) -> list[Address]:
    try:
        read_index(bucket, address)
    except KeyError:
        return [address.below(name) for name in bucket.folders(address.prefix) if _NAME.fullmatch(name)]
    return [address]


def fetch_run(bucket: Bucket, place: Address, home: Path) -> Path:
    """Bring one run into a folder and return that.

    Args:
        bucket: of the place.
        place: of the run.
        home: its folder here; what is there already is taken where its hash is right.

    Raises:
        KeyError: no run is there.
        ObjectStoreError: a part is missing, or is not what its hash says.
        CmpError: the folder cannot be written.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with open(home.parent / f".{home.name}.lock", "a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _fetch(bucket, place, home)
    except OSError as error:
        msg = (
            f"{home}: cannot be written ({error.strerror or error}); make room or grant access, or set ENGINECMP_CACHE"
        )
        raise CmpError(msg) from error


def _fetch(bucket: Bucket, place: Address, home: Path) -> Path:
    kept = _kept(home)
    found = read_index(bucket, place, kept.etag if kept else "")
    if found is None:
        return home
    index, etag = found
    home.mkdir(exist_ok=True)
    for name, parts in index.files.items():
        _assemble(bucket, place, home / name, parts)
    for path in [*home.iterdir(), *(home / "logs").glob("*")]:
        name = str(path.relative_to(home))
        if name not in index.files and name != KEPT and path.is_file():
            path.unlink()
    write_atomically(home / KEPT, to_json(Kept(etag, index)))
    return home


def _kept(home: Path) -> Kept | None:
    """Return which version lies in a folder; None where that is not known, or a file of it is not as it was."""
    try:
        kept: Kept = read_json(home / KEPT, Kept)
    except (FileNotFoundError, ResultsError):
        return None
    sizes = {name: sum(part.bytes for part in parts) for name, parts in kept.index.files.items()}
    whole = all((home / name).is_file() and (home / name).stat().st_size == size for name, size in sizes.items())
    return kept if whole else None


def _assemble(bucket: Bucket, place: Address, path: Path, parts: list[ObjectPart]) -> None:
    """Write a file from its parts, beside the old one, which gives those that it has."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        at = 0
        for part in parts:
            file.write(_of_old(path, at, part) or _get(bucket, place, part))
            at += part.bytes
        file.flush()
        os.fsync(file.fileno())
    shutil.move(temporary, path)


def _of_old(path: Path, at: int, part: ObjectPart) -> bytes:
    """Return a part out of the file that is there; nothing where it is another."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(at)
        content = file.read(part.bytes)
    return content if hashlib.sha256(content).hexdigest() == part.sha256 else b""


def _get(bucket: Bucket, place: Address, part: ObjectPart) -> bytes:
    key = key_of(place, part.sha256)
    try:
        found = bucket.get(key)
    except KeyError as error:
        msg = (
            f"{place}: expected the part {part.sha256[:16]}… that its run.json names, found none; upload the run again"
        )
        raise ObjectStoreError(msg) from error
    content = found.content if found else b""
    if hashlib.sha256(content).hexdigest() != part.sha256:
        msg = f"{place}: the part {part.sha256[:16]}… is not what its hash says; upload the run again"
        raise ObjectStoreError(msg)
    return content
