"""`s3://…` in the place of folders: runs that are kept there while they are made, and read from there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginecmp.cli.console import say
from enginecmp.errors import ObjectStoreError, ResultsError
from enginecmp.format.files import LAUNCHES
from enginecmp.format.text import command_line
from enginecmp.objects.address import is_address, parse_address

if TYPE_CHECKING:
    from enginecmp.run.options import RunOptions
    from enginecmp.run.request import RunRequest


def read_out(ctx: click.Context, param: click.Parameter, value: str) -> Path:
    """Read a folder of runs; of an address, the run is made in the usual folder and kept there as well."""
    if not is_address(value):
        return Path(value)
    ctx.params["store"] = str(parse_address(value))
    return Path("results")


def read_run(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Read a run's folder; an address means the folder of that name among the usual ones, brought from there."""
    if value is None or not is_address(value):
        return None if value is None else Path(value)
    address = parse_address(value)
    name = address.prefix.rpartition("/")[2]
    if not name:
        msg = f"expected the address of one run, s3://BUCKET/PREFIX/ID, got '{value}'"
        raise click.BadParameter(msg, ctx, param)
    ctx.params["brought"] = str(address)
    return Path("results") / name


def folders_of(paths: Sequence[str]) -> list[str | Path]:
    """Return paths as they are, and the folders of runs in place of addresses.

    Raises:
        ObjectStoreError: an address cannot be read.
    """
    found: list[str | Path] = []
    for path in paths:
        if not is_address(path):
            found.append(path)
            continue
        from enginecmp.models.known_files import cache_dir
        from enginecmp.objects.download import fetch_runs

        found += fetch_runs(parse_address(path), cache_dir() / "runs", say)
    return found


def with_store(options: RunOptions) -> RunOptions:
    """Return the options with the place where the run is kept; one that cannot be written is refused at once.

    Raises:
        UsageError: obstore is not installed.
        ObjectStoreError: no such bucket, wrong credentials, no such server.
    """
    import msgspec

    from enginecmp.objects.bucket import Bucket

    if options.brought is not None and options.store is None:
        # What came from somewhere goes on there.
        options = msgspec.structs.replace(options, store=options.brought.rpartition("/")[0])
    if options.store is not None and not options.dry_run:
        Bucket(parse_address(options.store)).check()
    return options


def bring(options: RunOptions) -> None:
    """Bring a run from object storage into its folder, unless the folder is as far or farther.

    Raises:
        ObjectStoreError: it is not there.
        ResultsError: both went on by themselves.
    """
    folder = options.resume or options.extend
    if options.brought is None or folder is None:
        return
    from enginecmp.models.known_files import cache_dir
    from enginecmp.objects.download import KEPT, fetch_runs

    place = parse_address(options.brought)
    (there,) = fetch_runs(place, cache_dir() / "runs", say)
    mine, theirs = (_launches(home) for home in (folder, there))
    if folder.exists() and mine.startswith(theirs):
        return
    if folder.exists() and not theirs.startswith(mine):
        msg = f"{folder}: went on otherwise than {place}; move one of them away, or resume the folder by its path"
        raise ResultsError(msg)
    import shutil

    try:
        shutil.copytree(there, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(KEPT))
    except OSError as error:
        msg = f"{folder}: cannot be written: {error}; make room or grant access"
        raise ResultsError(msg) from error
    say(f"{folder}: brought from {place}")


def _launches(folder: Path) -> bytes:
    path = folder / LAUNCHES
    return path.read_bytes() if path.is_file() else b""


@contextlib.contextmanager
def kept_there(options: RunOptions, folder: Path, request: RunRequest | None = None) -> Iterator[None]:
    """Keep a run in object storage, block by block while it is made inside; nothing where none is asked for.

    Args:
        options: with the place.
        folder: of the run.
        request: of the run; None where it is complete.

    Raises:
        ObjectStoreError: the run is whole here and could not be uploaded; says what will.
    """
    if options.store is None:
        yield
        return
    from enginecmp.objects.upload import Mirror

    mirror = Mirror(folder, parse_address(options.store), say)
    if request is not None:
        request.block_over = mirror.block_over
    try:
        yield
    except BaseException:
        mirror.interrupted()
        raise
    try:
        mirror.finish()
    except ObjectStoreError as error:
        again = command_line(["cmp", "run", "--resume", str(folder), "--out", options.store])
        msg = f"{error}: the run is whole in {folder}; upload it with: {again}"
        raise ObjectStoreError(msg) from error
