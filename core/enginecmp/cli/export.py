"""`cmp export`: runs into a store of Parquet files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from enginecmp.cli.console import say
from enginecmp.cli.each_run import each_run
from enginecmp.cli.objects import folders_of
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.format.files import LAUNCHES, MANIFEST, SAMPLES
from enginecmp.format.text import command_line
from enginecmp.results.files import write_atomically

MOST_ROWS = 500_000
"""Requests in one file: what is in memory at a time."""


@click.command("export")
@click.argument("paths", nargs=-1, type=click.Path())
@click.option(
    "--parquet", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the store; added to."
)
def command(paths: tuple[str, ...], parquet: Path) -> None:
    """Write runs, launch means and requests as Parquet, for DuckDB, polars, pandas and `cmp stats --history`.

    PATHS are run folders or folders of runs (default: results), s3://BUCKET/PREFIX among them. Runs that are in the
    store already, as they are, are passed over.
    """
    from enginecmp_analysis.data.store import SCHEMA, STORE, connect, is_store

    folders, notes = each_run(folders_of(paths or ("results",)))
    connection = connect()
    if parquet.exists() and not is_store(parquet) and (not parquet.is_dir() or any(parquet.iterdir())):
        msg = f"--parquet {parquet}: expected a new or empty folder, or a store, got something else; name another"
        raise UsageError(msg)
    try:
        parquet.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{parquet}: cannot be written ({error.strerror or error}); name another folder with --parquet"
        raise CmpError(msg) from error
    # First, so that an export that is cut off is a store, whose files are whole.
    write_atomically(parquet / STORE, f'{{"schema": "{SCHEMA}"}}\n'.encode(), "name another folder with --parquet")
    written = _Writer(parquet, connection).write(folders, notes)
    for note in notes[:3]:
        say(note)
    if len(notes) > 3:
        say(f"and {len(notes) - 3} more runs were left out")
    told = command_line(["cmp", "stats", "--history", str(parquet)])
    say(f"{parquet}: {written} runs written, {len(folders) - written} were there or left out; read it with: {told}")


class _Writer:
    """Adds runs to a store.

    Args:
        store: its folder.
        connection: to DuckDB.
    """

    def __init__(self, store: Path, connection: Any) -> None:
        from enginecmp_analysis.data.store import TABLES

        self._store, self._connection = store, connection
        for table, columns in TABLES.items():
            (store / table).mkdir(exist_ok=True)
            spelt = ", ".join(f"{name} {kind}" for name, kind in columns.items())
            connection.execute(f"CREATE TABLE {table} ({spelt})")
        self._number = max((int(path.stem) for path in (store / "runs").glob("[0-9]*.parquet")), default=0)
        self._rows = 0

    def write(self, folders: list[Path], notes: list[str]) -> int:
        """Write the runs that are not there yet; return how many."""
        from enginecmp_analysis.analyse import analyse
        from enginecmp_analysis.data.load import load_run
        from enginecmp_analysis.data.store import batches

        known = self._known()
        written = 0
        for folder in folders:
            source = _source(folder)
            if source in known:
                continue
            try:
                run = load_run(folder)
            except ResultsError as error:
                notes.append(f"left out: {error}")
                continue
            (group,) = analyse([run]).groups
            # Every file has one number, which is the version of the runs in it.
            for table, batch in batches(group, self._number + 1, source).items():
                self._insert(table, batch)
            self._rows += len(run.columns)
            written += 1
            if self._rows >= MOST_ROWS or written % 500 == 0:
                self._flush()
        self._flush()
        return written

    def _known(self) -> set[str]:
        if not self._number:
            return set()
        files = str(self._store / "runs" / "*.parquet")
        return {row[0] for row in self._connection.execute("SELECT source FROM read_parquet(?)", [files]).fetchall()}

    def _insert(self, table: str, batch: Mapping[str, Any]) -> None:
        rows = dict(batch)  # read by DuckDB under this name
        if len(rows["run_id"]):
            self._connection.execute(f"INSERT INTO {table} SELECT * FROM rows")

    def _flush(self) -> None:
        """Write what has come together; `runs` last, because what no row of it names is no run."""
        from enginecmp_analysis.data.store import TABLES, connection_error

        if not self._connection.execute("SELECT count(*) FROM runs").fetchone()[0]:
            return
        self._number += 1
        for table in reversed(list(TABLES)):
            path = self._store / table / f"{self._number:06d}.parquet"
            temporary = path.with_suffix(".tmp")
            try:
                self._connection.execute(f"COPY {table} TO '{_quoted(temporary)}' (FORMAT parquet, COMPRESSION zstd)")
                temporary.replace(path)
            except (OSError, connection_error()) as error:
                msg = f"{path}: cannot be written ({str(error).splitlines()[0]}); make room, and export again"
                raise CmpError(msg) from error
            self._connection.execute(f"DELETE FROM {table}")
        self._rows = 0


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _source(folder: Path) -> str:
    """Return what changes when a run's files do."""
    stats = [(folder / name).stat() for name in (MANIFEST, SAMPLES, LAUNCHES) if (folder / name).is_file()]
    told = f"{folder.name} {[(one.st_size, one.st_mtime_ns) for one in stats]}"
    return hashlib.sha256(told.encode()).hexdigest()
