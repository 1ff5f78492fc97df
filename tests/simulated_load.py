"""Runs under load that never happened, event by event, so that their truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell, Manifest, RunModel, Sample
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.columns import ColumnBuilder
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import simulate_run
from enginecmp_analysis.data.telemetry import Telemetry
from enginecmp_analysis.render.table import render
from enginecmp_analysis.schema.stats import Finding

S = 1_000_000_000

SHAPE = {"layers": 30, "kv_heads": 3, "head_dim": 64, "value_dim": 64}
"""Of SmolLM2-135M: 2 x 30 x 3 x 64 values a token."""


def run_of(
    rows: Iterable[Sample],
    *,
    engines: Sequence[str] = ("baseline", "engine"),
    scenario: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    telemetry: Telemetry | None = None,
) -> Run:
    builder = ColumnBuilder()
    for row in rows:
        builder.add(row)
    manifest = simulate_run(engines=tuple(engines)).manifest
    raw = msgspec.to_builtins(manifest)
    raw["scenario"] = {"name": "simulated", "primary_metric": "throughput_tokens_per_second", **(scenario or {})}
    raw["environment"] |= environment or {}
    found = msgspec.convert(raw, Manifest)
    found.model = RunModel(name="simulated-model", sha256="0" * 64, quantization="Q8_0", shape=SHAPE)
    return Run(found, builder.build(), telemetry=telemetry)


def sample(block: int, engine: str, cell: Cell, index: int, start_s: float, end_s: float, **more: Any) -> Sample:
    """One request from start to end in seconds, its tokens spread evenly over the last four fifths."""
    start, end = round(start_s * S), round(end_s * S)
    shares = 0.2 + 0.8 * np.arange(cell.output_tokens) / max(1, cell.output_tokens - 1)
    stamps = (start + np.rint((end - start) * shares)).astype(np.int64).tolist()
    values: dict[str, Any] = {
        "block": block,
        "order": 0,
        "launch": f"b{block}-{engine}",
        "engine": engine,
        "cell": cell,
        "index": index,
        "phase": "measure",
        "intended_ns": start,
        "start_ns": start,
        "token_ns": stamps,
        "end_ns": end,
        "prompt_tokens": cell.prompt_tokens,
        "output_tokens": cell.output_tokens,
        "status": "ok",
    }
    return Sample(**(values | more))


@dataclass
class Served:
    """Requests that went through a server; times in seconds, all shapes (n,) or (n, tokens)."""

    sent: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    tokens: list[list[float]] = field(default_factory=list)

    def samples(self, block: int, engine: str, cell: Cell, warmups: int, offset: float = 0.0) -> list[Sample]:
        rows = []
        for i in np.argsort(np.array(self.sent), kind="stable").tolist():
            stamps = [round((t + offset) * S) for t in self.tokens[i]]
            number = len(rows)
            rows.append(
                sample(
                    block,
                    engine,
                    cell,
                    number if number < warmups else number - warmups,
                    0,
                    0,
                    phase="warmup" if number < warmups else "measure",
                    intended_ns=round((self.sent[i] + offset) * S),
                    start_ns=round((self.start[i] + offset) * S),
                    token_ns=stamps,
                    end_ns=stamps[-1],
                )
            )
        return rows


def batching_server(
    users: int,
    total: int,
    tokens: int,
    *,
    prefill: float = 0.02,
    step: Callable[[int], float] = lambda active: 0.01 + 0.001 * active,
    arrivals: NDArray[np.float64] | None = None,
) -> Served:
    """A server that advances all requests in flight by one token a step.

    Args:
        users: a closed loop of so many, or with `arrivals` the most it takes at once.
        total: requests of a closed loop in all.
        tokens: of each request.
        prefill: seconds that a new request stops all others.
        step: seconds of a step by the number of requests in it.
        arrivals: when requests of an open loop are sent.
    """
    done = Served()
    closed = arrivals is None
    waiting = [0.0] * users if closed else np.asarray(arrivals).tolist()
    active: list[tuple[float, float, list[float]]] = []
    now, sent = 0.0, len(waiting) if closed else 0
    while waiting or active:
        if not active and waiting and waiting[0] > now:
            now = waiting[0]
        while waiting and waiting[0] <= now and len(active) < users:
            began = now
            now += prefill
            active.append((waiting.pop(0), began, []))
        now += step(len(active))
        for _, _, stamps in active:
            stamps.append(now)
        over = [request for request in active if len(request[2]) == tokens]
        active = [request for request in active if len(request[2]) < tokens]
        for at, began, stamps in over:
            done.sent.append(at)
            done.start.append(began)
            done.tokens.append(stamps)
            if closed and sent < total:
                waiting.append(now)
                sent += 1
    return done


def queueing_server(
    users: int,
    total: int,
    tokens: int,
    service: Callable[[], float],
    arrivals: NDArray[np.float64] | None = None,
) -> Served:
    """A server that takes one request at a time, first in first out; the first token comes after half its service."""
    done = Served()
    waiting = [0.0] * users if arrivals is None else np.asarray(arrivals).tolist()
    sent, now = len(waiting), 0.0
    while waiting:
        at = waiting.pop(0)
        began, spent = max(now, at), service()
        now = began + spent
        done.sent.append(at)
        done.start.append(began)
        done.tokens.append((began + spent * np.linspace(0.5, 1, tokens)).tolist())
        if arrivals is None and sent < total:
            waiting.append(now)
            sent += 1
    return done


def readings(name: str, times_s: NDArray[np.float64], values: NDArray[np.float64]) -> Telemetry:
    """Telemetry of one series."""
    return Telemetry({name: (np.rint(times_s * S).astype(np.int64), np.asarray(values, dtype=np.float64))})


def findings_of(run: Run, topic: str) -> list[Finding]:
    """What the report finds on one topic."""
    return [finding for finding in analyse([run]).report.findings or [] if finding.topic == topic]


def shown(run: Run) -> str:
    """What the table says, in one line."""
    return " ".join(" ".join(text for text, _ in render(analyse([run]))).split())
