"""Every number of `cmp stats --json --all --quantiles --price`, computed a second time from the lines of the files.

`recomputed.py` and `recomputed_verdicts.py` know nothing of the analysis. What the report holds and they do not, or
the other way round, fails as well.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import recomputed
import recomputed_verdicts as again
from click.testing import CliRunner
from simulated_load import batching_server, queueing_server, run_of, sample

from enginecmp.cli.stats import command
from enginecmp.format.records import Cell, Sample

ENGINES = ("baseline", "one", "two", "three")
SPEEDS = {"baseline": 1.0, "one": 0.8, "two": 0.81, "three": 1.02}
PRICE = 3.7
MB = 1e6


def write(folder: Path, run_id: str, rows: list[Sample], primary: str, **scenario: Any) -> Path:
    """Write a run of the four engines."""
    run = run_of(rows, engines=ENGINES, scenario={"primary_metric": primary, **scenario})
    home = folder / run_id
    home.mkdir(parents=True)
    manifest = msgspec.structs.replace(run.manifest, run_id=run_id)
    (home / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    (home / "samples.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return home


def one_user(seed: int, blocks: int, cells: tuple[Cell, ...], requests: int, run_effect: float = 0.0) -> list[Sample]:
    """Requests one after the other, with a load and memory; every launch and every run has a speed of its own."""
    random = np.random.default_rng(seed)
    own = {engine: math.exp(run_effect * random.standard_normal()) for engine in ENGINES}
    rows, now = [], 5.0
    for block in range(blocks):
        for engine in random.permutation(ENGINES).tolist():
            speed = SPEEDS[engine] * own[engine] * math.exp(0.02 * random.standard_normal())
            told = {"empty_rss_bytes": 100 * MB, "weights_bytes": 140 * MB}
            end = now + random.uniform(0.5, 0.6)
            load = sample(block, engine, cells[0], 0, now, end, phase="load", token_ns=[], output_tokens=0)
            load.metrics = told
            rows.append(load)
            for number, cell in enumerate(cells):
                for index in range(requests):
                    now = end + random.uniform(0.001, 0.002)
                    end = now + 0.1 * (number + 1) * speed * random.uniform(0.9, 1.2)
                    row = sample(block, engine, cell, index, now, end)
                    row.metrics = {
                        "peak_rss_bytes": float(300 + 5 * number + random.uniform()) * MB,
                        "kv_cache_bytes": 23e3 * (cell.prompt_tokens + cell.output_tokens) + float(random.integers(64)),
                    }
                    rows.append(row)
            now = end + 0.05
    return rows


def loaded(seed: int, blocks: int, cell: Cell, requests: int = 24) -> list[Sample]:
    """Requests under load: two engines that batch and two that queue."""
    random = np.random.default_rng(seed)
    rows, total, warmups = [], requests + cell.concurrency, cell.concurrency
    for block in range(blocks):
        due = np.cumsum(random.exponential(1 / cell.rate_per_second, total)) if cell.arrival else None
        for number, engine in enumerate(ENGINES):
            speed = SPEEDS[engine] * math.exp(0.02 * random.standard_normal())
            if number % 2:
                served = queueing_server(
                    cell.concurrency,
                    total,
                    cell.output_tokens,
                    lambda speed=speed: float(speed * random.gamma(9, 0.02)),  # type: ignore[misc]
                    arrivals=due,
                )
            else:
                served = batching_server(
                    cell.concurrency,
                    total,
                    cell.output_tokens,
                    step=lambda active, speed=speed: float(speed * (0.02 + 0.001 * active) * random.uniform(0.9, 1.1)),  # type: ignore[misc]
                    arrivals=due,
                )
            rows += served.samples(block, engine, cell, warmups=warmups, offset=1000.0 * block + 200.0 * number)
    return rows


def single(folder: Path) -> list[Path]:
    cells = Cell(50, 16), Cell(200, 16), Cell(50, 1)
    limits = {"ttft_seconds": 0.03, "e2e_seconds": 0.15, "tpot_seconds": None}
    return [write(folder, "single", one_user(1, 10, cells, 12), "throughput_tokens_per_second", goodput=limits)]


def sustained(folder: Path) -> list[Path]:
    cells = Cell(50, 16), Cell(50, 16, 4)
    rows = one_user(2, 12, cells[:1], 20) + loaded(3, 12, cells[1])
    return [write(folder, "sustained", rows, "throughput_tokens_per_second")]


def memory(folder: Path) -> list[Path]:
    rows = one_user(4, 10, (Cell(50, 8), Cell(100, 8)), 3)
    return [write(folder, "memory", rows, "peak_rss_above_empty_bytes")]


def closed_loop(folder: Path) -> list[Path]:
    rows = loaded(5, 11, Cell(50, 16, 6))
    for row in rows:
        # One in seven is an error, which costs a user its time.
        if row.phase == "measure" and (row.index + row.block) % 7 == 0:
            row.status, row.error, row.token_ns, row.output_tokens = "error", "lost", [], 0
    return [write(folder, "closed", rows, "ttft_seconds", goodput={"e2e_seconds": 1.0})]


def open_loop(folder: Path) -> list[Path]:
    rows = loaded(6, 10, Cell(50, 16, 4, "poisson", 2.0)) + loaded(7, 10, Cell(50, 16, 4, "gamma", 9.0))
    for row in rows:
        # The second cell is overloaded: the last ones never start.
        if row.cell.arrival == "gamma" and row.index >= 21 and row.phase == "measure":
            row.status, row.error, row.token_ns, row.output_tokens = "timeout", "overload", [], 0
            row.start_ns = row.end_ns = row.intended_ns
    return [write(folder, "open", rows, "e2e_seconds", goodput={"ttft_seconds": 1.5, "tpot_seconds": 0.03})]


def flagged(folder: Path) -> list[Path]:
    rows = one_user(8, 13, (Cell(50, 16), Cell(100, 16)), 14) + loaded(9, 13, Cell(50, 16, 3))
    random = np.random.default_rng(10)
    flags = [["foreign_cpu"], ["stalled", "steal"], ["short_output"], ["foreign_cpu", "tokens_differ"]]
    for row in rows:
        if row.phase == "measure" and random.uniform() < (0.1 if row.cell.concurrency == 1 else 0.01):
            row.flags = flags[int(random.integers(len(flags)))]
    return [write(folder, "flagged", rows, "decode_tokens_per_second")]


def failed_launches(folder: Path) -> list[Path]:
    rows = one_user(11, 14, (Cell(50, 16),), 11)
    lost = {("one", 3), ("two", 5), ("baseline", 9)}
    for row in rows:
        if (row.engine, row.block) in lost and row.phase == "measure":
            row.status, row.error, row.token_ns, row.output_tokens = "crash", "gone", [], 0
        if row.engine == "three" and row.phase == "load" and row.block % 4 == 0:
            row.flags = ["foreign_cpu"]
    return [write(folder, "failed", rows, "tpot_seconds", goodput={"e2e_seconds": 0.11})]


def runs_pooled(folder: Path) -> list[Path]:
    cells = Cell(50, 16), Cell(100, 16)
    sizes = (10, 10, 4)
    return [
        write(folder, f"run-{i}", one_user(20 + i, size, cells, 12, run_effect=0.03), "e2e_seconds")
        for i, size in enumerate(sizes)
    ]


def two_runs(folder: Path) -> list[Path]:
    return [write(folder, f"run-{i}", one_user(30 + i, 7, (Cell(50, 16),), 12), "e2e_seconds") for i in range(2)]


def unpaired(folder: Path) -> list[Path]:
    rows = [row for row in one_user(40, 26, (Cell(50, 16),), 12) if (row.engine == "baseline") == (row.block % 2 == 0)]
    return [write(folder, "unpaired", rows, "e2e_seconds")]


KINDS: list[Callable[[Path], list[Path]]] = [
    single,
    sustained,
    memory,
    closed_loop,
    open_loop,
    flagged,
    failed_launches,
    runs_pooled,
    two_runs,
    unpaired,
]


Expected = dict[str, dict[Any, dict[str, Any]]]


def computed(folders: list[Path]) -> Expected:
    """Return what the report must hold, by kind of record and by engine, cell and metric."""
    primary = json.loads((folders[0] / "manifest.json").read_text())["scenario"]["primary_metric"]
    means = recomputed.launch_values(folders)
    money = recomputed.costs(means, folders, PRICE)
    ratios = again.comparisons(money, "baseline", "cost_per_thousand_requests")
    words = {"faster": ("cheaper", "more"), "slower": ("costlier", "fewer")}
    for (_, _, metric), record in ratios.items():
        record["verdict"] = words.get(record["verdict"], (record["verdict"],) * 2)[metric.startswith("requests_")]
    ranked = again.rankings(means, primary)
    return {
        "summary": again.summaries(means),
        "comparison": again.comparisons(recomputed.with_quantiles(means), "baseline", primary),
        "cost": again.summaries(money),
        "cost ratio": ratios,
        "ranking": {(engine, cell, primary): row for cell, rows in ranked.items() for engine, row in rows.items()},
    }


def differences(report: dict[str, Any], expected: Expected) -> tuple[int, list[str]]:
    """Return how many numbers were compared, and what is not the same."""
    told = {
        "summary": report["summaries"],
        "comparison": report["comparisons"],
        "cost": report["money"]["rows"],
        "cost ratio": report["money"]["comparisons"],
        "ranking": [
            {**row, "cell": ranking["cell"], "metric": ranking["metric"]}
            for ranking in report["rankings"]
            for row in ranking["rows"]
        ],
    }
    count, wrong = 0, []
    for what, records in told.items():
        keys = [(r["engine"], again.cell_of(r), r["metric"]) for r in records]
        wrong += [f"{what} {key}: only one of the two has it" for key in {*keys} ^ {*expected[what]}]
        for key, record in zip(keys, records, strict=True):
            for name, value in expected[what].get(key, {}).items():
                if name in record:
                    count += 1
                    wrong += [] if same(record[name], value) else [f"{what} {key} {name}: {record[name]} and {value}"]
    return count, wrong + [
        text for ranking in report["rankings"] for text in letters_wrong(ranking, expected["ranking"])
    ]


def same(told: Any, expected: Any) -> bool:
    """Return whether two values agree to a billionth; what is no number is null."""
    if isinstance(expected, float) and not math.isfinite(expected):
        return told is None
    if isinstance(expected, float):
        return told is not None and math.isclose(told, expected, rel_tol=1e-9, abs_tol=1e-15)
    return bool(told == expected)


def letters_wrong(ranking: dict[str, Any], ours: dict[Any, dict[str, Any]]) -> list[str]:
    """Return the pairs that share a letter although they differ, or share none although they do not."""
    letters = {row["engine"]: set(row["letters"]) for row in ranking["rows"]}
    at = again.cell_of(ranking), ranking["metric"]
    return [
        f"letters of {a} and {b}"
        for a, b in itertools.permutations(letters, 2)
        if bool(letters[a] & letters[b]) == (b in ours[(a, *at)]["differs_from"])
    ]


def stats_of(folders: list[Path], *more: str) -> dict[str, Any]:
    """Return what the command prints."""
    found = CliRunner().invoke(
        command,
        [*map(str, folders), "--json", "--all", "--quantiles", "--price", f"{PRICE}/h", *more],
        catch_exceptions=False,
    )
    assert found.exit_code == 0, found.output
    return json.loads(found.output)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_the_same_a_second_time(kind: Callable[[Path], list[Path]], tmp_path: Path) -> None:
    folders = kind(tmp_path)
    count, wrong = differences(stats_of(folders), computed(folders))
    assert not wrong, "\n".join(wrong[:20])
    assert count > 100


def test_a_number_that_is_off_by_a_millionth_is_found(tmp_path: Path) -> None:
    folders = memory(tmp_path)
    report, expected = stats_of(folders), computed(folders)
    for group, name in (("summaries", "ci_high"), ("comparisons", "p_adjusted"), ("summaries", "p50")):
        record = next(r for r in report[group] if isinstance(r[name], float))
        kept = record[name]
        record[name] *= 1 + 1e-6
        assert len(differences(report, expected)[1]) == 1
        record[name] = kept
    lost = report["comparisons"].pop()
    (told,) = differences(report, expected)[1]
    assert lost["engine"] in told
    report["comparisons"].append(lost)
    report["rankings"][0]["rows"][0]["letters"] = "z"
    assert differences(report, expected)[1]
