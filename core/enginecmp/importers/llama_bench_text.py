"""llama-bench's text forms: Markdown tables (its default), CSV and SQL, as the objects of its JSON.

They hold averages of the repetitions and not the repetitions. A Markdown table rounds: its rate has two decimals, size
and parameters are in GiB and billions and are not read.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Entry = dict[str, Any]

COLUMNS = {
    "ngl": "n_gpu_layers",
    "threads": "n_threads",
    "fa": "flash_attn",
    "mmap": "use_mmap",
    "dio": "use_direct_io",
    "sm": "split_mode",
    "mg": "main_gpu",
    "nkvo": "no_kv_offload",
    "embd": "embeddings",
    "ts": "tensor_split",
    "ot": "tensor_buft_overrides",
    "dev": "devices",
    "ncmoe": "n_cpu_moe",
    "nopo": "no_op_offload",
    "noh": "no_host",
    "fitt": "fit_target",
    "fitc": "fit_min_ctx",
    "backend": "backends",
    "model": "model_type",
}
"""Short names of the table's columns; the others are those of the JSON."""

_ROUNDED = frozenset({"size", "params", "test", "t/s"})
_TEST = re.compile(r"(?:pp ?(?P<pp>\d{1,9}))?\+?(?:tg ?(?P<tg>\d{1,9}))?(?: @ d ?(?P<depth>\d{1,9}))?")
_RATE = re.compile(r"(?P<mean>[0-9]+(?:\.[0-9]+)?)(?:\s*(?:±|\+/-|[?\ufffd]+|Â±)\s*\S+)?")
_BUILD = re.compile(r"build: (?P<commit>[0-9a-f]+|unknown) \((?P<number>\d{1,9})\)")
_RATES = frozenset({"avg_ts", "stddev_ts"})
_INSERT = re.compile(r"INSERT INTO \w+ \((?P<columns>[^()]*)\) VALUES \((?P<values>.*)\);")
_TRUTH = frozenset(
    {"cpu_strict", "no_kv_offload", "use_mmap", "use_direct_io", "embeddings", "no_host", "repack"}
)  # true and false in JSON, 1 and 0 elsewhere


def tables(text: str) -> list[list[Entry]]:
    """Return the tests of every table in a text, whatever stands around it; nothing where there is none.

    Raises:
        ValueError: a row of a table is cut or damaged; names the line.
    """
    lines = [line.strip() for line in text.split("\n")]
    return list(_markdown(lines)) or list(_csv(lines)) or list(_sql(lines))


def _markdown(lines: list[str]) -> Iterator[list[Entry]]:
    header: list[str] = []
    entries: list[Entry] = []
    build: Entry = {}
    # The build stands below the table.
    for line in reversed(lines):
        if found := _BUILD.fullmatch(line):
            build = {"build_commit": found["commit"], "build_number": int(found["number"])}
    inside = False
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if {"model", "test", "t/s"} <= set(cells):
            if entries:
                yield entries
            header, entries, inside = cells, [], True
        elif header and len(cells) == len(header) and line.endswith("|"):
            if entry := _row(dict(zip(header, cells, strict=True))):
                entries.append(build | entry)
        elif inside and line.startswith("|"):
            raise _cut(number, len(header), len(cells) if line.endswith("|") else 0)
        else:
            inside = False
    if entries:
        yield entries


def _row(row: dict[str, str]) -> Entry | None:
    test, rate = _TEST.fullmatch(row["test"]), _RATE.fullmatch(row["t/s"])
    if not row["test"] or test is None or rate is None:
        return None
    named = {COLUMNS.get(key, key): text for key, text in row.items() if key not in _ROUNDED}
    counts = {"n_prompt": test["pp"], "n_gen": test["tg"], "n_depth": test["depth"]}
    settings = {key: _value(key, text) for key, text in named.items()}
    return settings | {key: int(text or 0) for key, text in counts.items()} | {"avg_ts": float(rate["mean"])}


def _csv(lines: list[str]) -> Iterator[list[Entry]]:
    starts = [i for i, line in enumerate(lines) if line.startswith("build_commit,") and ",n_prompt," in line]
    for start, end in pairwise([*starts, len(lines)]):
        columns = lines[start].split(",")
        entries = []
        for number, line in enumerate(lines[start + 1 : end], start=start + 2):
            if line.startswith('"'):
                entries.append(_typed(columns, _split(line, '"', number, len(columns))))
        if entries:
            yield entries


def _sql(lines: list[str]) -> Iterator[list[Entry]]:
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        found = _INSERT.fullmatch(line)
        if found is None and entries and line.startswith("INSERT INTO"):
            raise _cut(number, len(entries[0]), 0)
        if found is not None and "n_prompt" in found["columns"]:
            columns = [column.strip() for column in found["columns"].split(",")]
            entries.append(_typed(columns, _split(found["values"], "'", number, len(columns))))
    if entries:
        yield entries


def _split(line: str, quote: str, number: int, columns: int) -> list[str]:
    """Return the values of a line.

    Raises:
        ValueError: there are more or fewer than columns, or one is longer than any setting.
    """
    try:
        values = next(csv.reader([line], quotechar=quote, skipinitialspace=quote == "'", strict=True), [])
    except csv.Error as error:
        msg = f"line {number}: expected a row of llama-bench: {error}"
        raise ValueError(msg) from error
    if len(values) != columns:
        raise _cut(number, columns, len(values))
    return values


def _cut(number: int, columns: int, got: int) -> ValueError:
    return ValueError(f"line {number}: expected a row of {columns} columns, got {got or 'a part of one'}; is it cut?")


def _typed(columns: list[str], values: list[str]) -> Entry:
    return {column: _value(column, value) for column, value in zip(columns, values, strict=True)}


def _value(column: str, text: str) -> str | int | float | bool:
    """Return a value as JSON holds it."""
    if column in _TRUTH and text in ("0", "1"):
        return text == "1"
    if column in _RATES:
        return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else text
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) and column != "build_commit" else text
