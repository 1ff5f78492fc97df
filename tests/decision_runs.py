"""Runs whose every stamp is known, for the tests of what leads to a decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import msgspec

from enginecmp.format.records import Cell, RunEngine, Sample
from enginecmp_analysis.data.columns import ColumnBuilder
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import simulate_run

S = 1_000_000_000
CELL = Cell(100, 5)


def request(
    start: float,
    end: float,
    first: float | None = None,
    *,
    engine: str = "baseline",
    cell: Cell = CELL,
    block: int = 0,
    index: int = 0,
    status: str = "ok",
) -> Sample:
    """Return a request that starts, gives its first token and ends at these seconds; tokens come evenly."""
    tokens = cell.output_tokens
    stamps = []
    if first is not None:
        stamps = [round((first + (end - first) * i / max(1, tokens - 1)) * S) for i in range(tokens)]
    return msgspec.convert(
        {
            "block": block,
            "order": 0,
            "launch": f"b{block}-{engine}",
            "engine": engine,
            "cell": msgspec.to_builtins(cell),
            "index": index,
            "phase": "measure",
            "intended_ns": round(start * S),
            "start_ns": round(start * S),
            "token_ns": stamps,
            "end_ns": round(end * S),
            "prompt_tokens": cell.prompt_tokens,
            "output_tokens": tokens,
            "status": status,
            "error": None if status == "ok" else "lost",
        },
        Sample,
    )


def run_of(
    samples: Iterable[Sample],
    *,
    engines: tuple[str, ...] = ("baseline",),
    devices: Mapping[str, str] | None = None,
    primary_metric: str = "e2e_seconds",
    environment: Mapping[str, object] | None = None,
    **scenario: object,
) -> Run:
    """Return a run of the samples; the first engine is the baseline."""
    builder = ColumnBuilder()
    for sample in samples:
        builder.add(sample)
    manifest = simulate_run(engines=engines).manifest
    manifest.engines = [
        RunEngine(name=name, version="1.0", device=(devices or {}).get(name, "cpu")) for name in engines
    ]
    manifest.scenario |= {"primary_metric": primary_metric, **scenario}
    manifest.environment |= environment or {}
    return dataclasses.replace(simulate_run(engines=engines), manifest=manifest, columns=builder.build())


def ladder(
    slow: Mapping[str, Mapping[float, int | list[int]]],
    *,
    blocks: int = 10,
    requests: int = 40,
    failed: Mapping[tuple[str, float], int] | None = None,
) -> Run:
    """Return an open-loop sweep in which so many requests of every launch take 0.5 s to the first token, not 0.1.

    Args:
        slow: engine → requests per second → slow requests of each launch, or of all launches alike.
        blocks: launches of each engine.
        requests: requests of each launch and rate.
        failed: (engine, rate) → requests of each launch that fail on top.
    """
    samples = []
    for engine, rates in slow.items():
        for rate, counts in rates.items():
            cell = Cell(100, 5, 8, "poisson", rate)
            for block in range(blocks):
                many = counts if isinstance(counts, int) else counts[block]
                for i in range(requests):
                    first = i + (0.5 if i < many else 0.1)
                    samples.append(request(i, first + 0.1, first, engine=engine, cell=cell, block=block, index=i))
                for i in range((failed or {}).get((engine, rate), 0)):
                    samples.append(
                        request(i, i + 5, engine=engine, cell=cell, block=block, index=requests + i, status="timeout")
                    )
    return run_of(samples, engines=tuple(slow))
