"""A store of runs: Parquet files that DuckDB, polars and pandas read, one row a run, a launch mean or a request.

`runs/`, `launches/` and `samples/` hold numbered files, each written once. A run that is exported again has a higher
`version`; readers take the highest of each `run_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.records import Cell, Manifest
from enginecmp.format.text import to_json
from enginecmp_analysis.data.columns import PHASES, ColumnBuilder
from enginecmp_analysis.data.fingerprint import Group
from enginecmp_analysis.data.group import GroupResult, describe_group
from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.load import Run

STORE = "store.json"
SCHEMA = "enginecmp-store/1"

TABLES: Mapping[str, Mapping[str, str]] = {
    "runs": {
        "run_id": "VARCHAR",
        "version": "BIGINT",
        "created_utc": "VARCHAR",
        "status": "VARCHAR",
        "scenario": "VARCHAR",
        "model": "VARCHAR",
        "quantization": "VARCHAR",
        "primary_metric": "VARCHAR",
        "source": "VARCHAR",
        "warnings": "VARCHAR",
        "manifest": "VARCHAR",
    },
    "launches": {
        "run_id": "VARCHAR",
        "version": "BIGINT",
        "engine": "VARCHAR",
        "cell": "VARCHAR",
        "metric": "VARCHAR",
        "block": "BIGINT",
        "mean": "DOUBLE",
        "requests": "BIGINT",
    },
    "samples": {
        "run_id": "VARCHAR",
        "version": "BIGINT",
        "engine": "VARCHAR",
        "cell": "VARCHAR",
        "launch": "VARCHAR",
        "block": "BIGINT",
        "position": "BIGINT",
        "request": "BIGINT",
        "phase": "VARCHAR",
        "excluded": "VARCHAR",
        "intended_ns": "BIGINT",
        "start_ns": "BIGINT",
        "first_token_ns": "BIGINT",
        "end_ns": "BIGINT",
        "prompt_tokens": "BIGINT",
        "output_tokens": "BIGINT",
    },
}
"""Columns of each table with their types in SQL. `cell` is JSON, null for what belongs to a whole launch; `warnings`
and `manifest` are JSON; `source` changes when the run's files do; `excluded` is empty for samples that count;
`first_token_ns` is -1 where no token has a stamp."""

Batch = Mapping[str, NDArray[Any]]


def is_store(path: Path) -> bool:
    """Return whether a folder is a store."""
    return (path / STORE).is_file()


def connect() -> Any:
    """Return a connection to DuckDB, in memory.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        msg = "a store of runs: needs duckdb, which is not installed; run: pip install 'enginecmp[store]'"
        raise UsageError(msg) from error
    return duckdb.connect(config={"threads": 1})


def batches(group: GroupResult, version: int, source: str) -> dict[str, Batch]:
    """Return the rows of one run, by table, as columns.

    Args:
        group: of the run alone, with all its samples.
        version: higher than that of any earlier export of it.
        source: what changes when the run's files do.
    """
    (run,) = group.runs
    manifest = run.manifest
    runs = {
        "created_utc": manifest.created_utc,
        "status": manifest.status,
        "scenario": str(manifest.scenario.get("name", "unnamed")),
        "model": manifest.model.name,
        "quantization": manifest.model.quantization,
        "primary_metric": group.context.primary_metric,
        "source": source,
        "warnings": to_json(run.warnings).decode(),
        "manifest": to_json(manifest).decode(),
    }
    found = {
        "runs": {name: np.array([value], dtype=object) for name, value in runs.items()},
        "launches": _launch_columns(group.means),
        "samples": _sample_columns(run),
    }
    return {table: _in_order(table, columns, manifest.run_id, version) for table, columns in found.items()}


def _in_order(table: str, columns: Batch, run_id: str, version: int) -> Batch:
    rows = len(next(iter(columns.values())))
    every = {"run_id": np.full(rows, run_id, object), "version": np.full(rows, version), **columns}
    return {name: every[name] for name in TABLES[table]}


def _launch_columns(means: Mapping[Key, LaunchMeans]) -> Batch:
    sizes = [len(launches.means) for launches in means.values()]

    def spread(values: Sequence[str | None]) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype=object), sizes)

    nothing = np.zeros(0)
    return {
        "engine": spread([engine for engine, _, _ in means]),
        "cell": spread([cell_text(cell) for _, cell, _ in means]),
        "metric": spread([metric for _, _, metric in means]),
        "block": np.array([block for launches in means.values() for _, block in launches.blocks], dtype=np.int64),
        "mean": np.concatenate([nothing, *(launches.means for launches in means.values())]),
        "requests": np.concatenate([nothing, *(launches.requests for launches in means.values())]).astype(np.int64),
    }


def _sample_columns(run: Run) -> Batch:
    c = run.columns
    stamped = c.offsets[1:] > c.offsets[:-1]
    first = np.full(len(c), -1, np.int64)
    first[stamped] = c.token_ns[c.offsets[:-1][stamped]]
    return {
        "engine": np.array(c.engines, dtype=object)[c.engine],
        "cell": np.array([cell_text(cell) for cell in c.cells], dtype=object)[c.cell],
        "launch": np.array(c.launches, dtype=object)[c.launch],
        "block": c.block,
        "position": c.order,
        "request": c.index,
        "phase": np.array(PHASES, dtype=object)[c.phase],
        "excluded": np.array(c.reasons, dtype=object)[c.excluded],
        "intended_ns": c.intended_ns,
        "start_ns": c.start_ns,
        "first_token_ns": first,
        "end_ns": c.end_ns,
        "prompt_tokens": c.prompt_tokens,
        "output_tokens": c.output_tokens,
    }


def cell_text(cell: Cell | None) -> str | None:
    """Return a cell as the store holds it."""
    return None if cell is None else to_json(cell).decode()


def read_store(store: Path, metrics: Sequence[str]) -> Iterator[GroupResult]:
    """Yield every run of a store with launch means, without its requests, in the order of time.

    Args:
        store: its folder.
        metrics: names; empty takes each run's primary metric.

    Raises:
        UsageError: DuckDB is not installed.
        ResultsError: it cannot be read.
    """
    connection = connect()
    files = {table: str(store / table / "*.parquet") for table in TABLES}
    wanted = "list_contains($metrics, l.metric)" if metrics else "l.metric = r.primary_metric"
    names: dict[str, Any] = {"metrics": list(metrics)} if metrics else {}
    try:
        connection.execute(
            "CREATE TABLE r AS SELECT * FROM read_parquet($files) "
            "QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY version DESC) = 1",
            {"files": files["runs"]},
        )
        connection.execute(
            "CREATE TABLE l AS SELECT l.run_id, l.engine, l.cell, l.metric, l.block, l.mean, l.requests "
            "FROM read_parquet($files) l JOIN r USING (run_id, version) "
            f"WHERE {wanted} ORDER BY r.created_utc, run_id",
            {"files": files["launches"], **names},
        )
        rows = connection.cursor().execute("SELECT manifest, warnings FROM r ORDER BY created_utc, run_id")
        launches = connection.cursor().execute("SELECT * FROM l")
        waiting: list[tuple[Any, ...]] = []
        while row := rows.fetchone():
            manifest = msgspec.json.decode(row[0], type=Manifest)
            own: list[tuple[Any, ...]] = []
            while True:
                own += [one for one in waiting if one[0] == manifest.run_id]
                waiting = [one for one in waiting if one[0] != manifest.run_id]
                if waiting or not (more := launches.fetchmany(1000)):
                    break
                waiting = more
            warnings = tuple(msgspec.json.decode(row[1], type=list[str]))
            yield _group(Run(manifest, ColumnBuilder().build(), warnings), own)
    except (connection_error(), msgspec.MsgspecError) as error:
        msg = f"{store}: cannot be read as a store of runs: {str(error).splitlines()[0]}; export the runs again"
        raise ResultsError(msg) from error


def connection_error() -> type[Exception]:
    """Return what DuckDB raises."""
    import duckdb

    found: type[Exception] = duckdb.Error
    return found


def _group(run: Run, rows: Sequence[tuple[Any, ...]]) -> GroupResult:
    """Return a run with launch means, from rows of run, engine, cell, metric, block, mean and requests."""
    parts: dict[Key, list[tuple[int, float, int]]] = {}
    for _, engine, cell, metric, block, mean, requests in rows:
        at = None if cell is None else msgspec.json.decode(cell, type=Cell)
        parts.setdefault((engine, at, metric), []).append((block, mean, requests))
    means = {}
    for key, own in parts.items():
        values = np.array([mean for _, mean, _ in own])
        blocks = [(0, block) for block, _, _ in own]
        counts = np.ones(len(own), np.int64)
        means[key] = LaunchMeans(blocks, values, counts, np.array([n for _, _, n in own], np.int64), values)
    scenario = str(run.manifest.scenario.get("name", "unnamed"))
    return GroupResult(describe_group(Group([run], {}), scenario, None), [run], means, {}, [], [])
