"""How fast `cmp stats` reads and judges: simulated runs, whole processes, time and peak memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from enginecmp.format.records import SCHEMA, Cell, Manifest, RunEngine, RunModel, Sample

CMP = os.path.join(os.path.dirname(sys.executable), "cmp")
CASES = {
    # name: (requests in all, tokens, cells, limit in seconds, limit in bytes)
    "100,000 requests of 64 tokens": (100_000, 64, 1, 3.0, None),
    "10 million token stamps": (78_125, 128, 1, 10.0, 2 * 2**30),
    "20 million token stamps": (156_250, 128, 1, None, None),
    "500 cells": (100_000, 8, 500, 10.0, None),
}
BLOCKS, ENGINES = 10, ("a", "b")


def measure() -> dict[str, Any]:
    """Return seconds and peak memory of `cmp stats` on each case."""
    found: dict[str, Any] = {}
    met = True
    for name, (requests, tokens, cells, limit_seconds, limit_bytes) in CASES.items():
        with TemporaryDirectory(prefix="cmp-bench-") as folder:
            _write(Path(folder) / "run", requests, tokens, cells)
            start = time.perf_counter()
            process = subprocess.Popen([CMP, "stats", folder, "--json"], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = _peak(usage)
        good = process.returncode == 0 and (limit_seconds is None or seconds <= limit_seconds)
        good = good and (limit_bytes is None or peak <= limit_bytes)
        met = met and good
        limit = "" if limit_seconds is None else f", limit {limit_seconds:g} s"
        print(f"{name:<32} {seconds:6.2f} s{limit}, {peak / 2**20:.0f} MB")
        found[name] = {"seconds": seconds, "peak_bytes": peak}
    growth = found["20 million token stamps"]["seconds"] / found["10 million token stamps"]["seconds"]
    print(f"twice the stamps take {growth:.2f} times as long")
    return {"target": "3 s, 10 s in 2 GB, 10 s for 500 cells, linear in size", "met": met and growth < 2.4, **found}


def _peak(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * 1024


def _write(folder: Path, requests: int, tokens: int, n_cells: int) -> None:
    """Write a run of two engines in ten blocks with the given number of requests in all."""
    folder.mkdir()
    cells = [Cell(10 + number, tokens) for number in range(n_cells)]
    per_cell = requests // (BLOCKS * len(ENGINES) * n_cells)
    manifest = Manifest(
        schema=SCHEMA,
        run_id="run",
        created_utc="2026-01-02T03:04:05Z",
        status="complete",
        seed=0,
        scenario={"name": "speed", "primary_metric": "decode_tokens_per_second"},
        model=RunModel(name="m", sha256="0" * 64),
        baseline="a",
        engines=[RunEngine(name=name, version="1") for name in ENGINES],
    )
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    encoder = msgspec.json.Encoder()
    with open(folder / "samples.jsonl", "wb") as file:
        for block in range(BLOCKS):
            for order, engine in enumerate(ENGINES):
                step = 1_000_000 + 10_000 * order + 1_000 * (block % 3)
                now = 10**12
                for cell in cells:
                    for index in range(per_cell):
                        # A little different from request to request, or there is nothing to estimate.
                        stamps = list(range(now + step, now + (tokens + 1) * step, step + index % 7))[:tokens]
                        sample = Sample(
                            block=block,
                            order=order,
                            launch=f"b{block}-{engine}",
                            engine=engine,
                            cell=cell,
                            index=index,
                            phase="measure",
                            intended_ns=now,
                            start_ns=now,
                            token_ns=stamps,
                            end_ns=stamps[-1],
                            prompt_tokens=cell.prompt_tokens,
                            output_tokens=len(stamps),
                            status="ok",
                        )
                        file.write(encoder.encode(sample) + b"\n")
                        now = stamps[-1] + 1000
