"""Runs that never happened, with a truth that is known: for tests, calibration and teaching.

A design says how requests, launches and blocks vary and what ratio is planted; `draw` gives bare seconds for
thousands of repetitions at once, `simulate_run` and `write_run` give one repetition as a run like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.format.files import MANIFEST, SAMPLES
from enginecmp.format.records import SCHEMA, Cell, Equivalence, Manifest, RunEngine, RunModel, Sample, Status
from enginecmp_analysis.data.columns import FAILED, KEPT, LOAD, MEASURE, PHASES, Columns
from enginecmp_analysis.data.load import Run

Floats = NDArray[np.float64]

Noise = Literal["normal", "lognormal", "pareto", "bimodal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What varies in a simulated run.

    Attributes:
        blocks: blocks B.
        requests: requests n of each launch.
        seconds: mean time of a request of the baseline.
        ratio: true engine / baseline of the request time, the same for every other engine.
        noise: distribution of requests around their launch, mean 1: normal with coefficient of variation 0.1,
            lognormal with sigma 0.5, Pareto with `tail`, or bimodal (one in five takes twice as long).
        tail: tail index of the Pareto noise; its variance is infinite up to 2.
        rho: lag-1 correlation of requests inside a launch (normal noise only).
        launch_spread: standard deviation of the log of each launch's own speed.
        slow_launches: share of launches that are 10 % slower as a whole.
        drift: growth of all times from the first launch of the run to the last, e.g. 0.03.
        tick_seconds: resolution of the clock; 0 is perfect.
        fewer_requests: every engine but the baseline makes half the requests.
        missing_launch: one launch of every engine but the baseline is missing, in a random block.
        runs: runs that are pooled, each with its share of the blocks.
        run_spread: standard deviation of the log of what each engine's speed has of its own in each run.
        nodes: nodes that the runs are of, each with its share of them.
        node_spread: standard deviation of the log of each node's speed, the same for all engines.
        interaction: standard deviation of the log of what each engine's speed has of its own on each node.
    """

    blocks: int = 10
    requests: int = 10
    seconds: float = 0.1
    ratio: float = 1.0
    noise: Noise = "normal"
    tail: float = 2.5
    rho: float = 0.0
    launch_spread: float = 0.02
    slow_launches: float = 0.0
    drift: float = 0.0
    tick_seconds: float = 0.0
    fewer_requests: bool = False
    missing_launch: bool = False
    runs: int = 1
    run_spread: float = 0.0
    nodes: int = 1
    node_spread: float = 0.0
    interaction: float = 0.0


def draw(design: Design, rng: np.random.Generator, repetitions: int = 1, engines: int = 2) -> Floats:
    """Return request times in seconds, shape (repetitions, engines, blocks, requests); engine 0 is the baseline.

    Requests and launches that the design leaves out are NaN.
    """
    shape = (repetitions, engines, design.blocks, design.requests)
    launch = np.exp(design.launch_spread * rng.standard_normal(shape[:3]))
    launch *= np.where(rng.random(shape[:3]) < design.slow_launches, 1.1, 1.0)
    if design.run_spread:
        effects = np.exp(design.run_spread * rng.standard_normal((repetitions, engines, design.runs)))
        launch *= effects[:, :, run_of_blocks(design)]
    if design.node_spread or design.interaction:
        of_node = design.node_spread * rng.standard_normal((repetitions, 1, design.nodes))
        own = design.interaction * rng.standard_normal((repetitions, engines, design.nodes))
        launch *= np.exp(of_node + own)[:, :, node_of_blocks(design)]
    # The order inside a block is drawn anew for every block, as in a real run.
    order = np.argsort(rng.random((repetitions, engines, design.blocks)), axis=1)
    position = (np.arange(design.blocks) * engines + order) / (design.blocks * engines)
    seconds = design.seconds * _noise(design, rng, shape)
    seconds *= (launch * (1 + design.drift * position))[..., np.newaxis]
    seconds[:, 1:] *= design.ratio
    if design.tick_seconds:
        # Both ends of an interval fall on ticks: it is long by up to a tick or short by one.
        phase = rng.random(shape)
        seconds = np.floor(seconds / design.tick_seconds + phase) * design.tick_seconds
    if design.fewer_requests:
        seconds[:, 1:, :, (design.requests + 1) // 2 :] = np.nan
    if design.missing_launch:
        lost = rng.integers(design.blocks, size=(repetitions, engines - 1))
        np.put_along_axis(seconds[:, 1:], lost[:, :, np.newaxis, np.newaxis], np.nan, axis=2)
    return seconds


def run_of_blocks(design: Design) -> NDArray[np.int64]:
    """Return (blocks,) the run of each block."""
    return np.arange(design.blocks) * design.runs // design.blocks


def node_of_blocks(design: Design) -> NDArray[np.int64]:
    """Return (blocks,) the node of each block."""
    return run_of_blocks(design) * design.nodes // design.runs


def _noise(design: Design, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    match design.noise:
        case "normal":
            # Five standard deviations down a time is still positive; what lies beyond is clipped.
            return np.maximum(1 + 0.1 * _correlated(design.rho, rng, shape), 0.5)
        case "lognormal":
            return np.exp(0.5 * rng.standard_normal(shape) - 0.125)
        case "pareto":
            return (1 + rng.pareto(design.tail, shape)) * (design.tail - 1) / design.tail
        case "bimodal":
            return np.where(rng.random(shape) < 0.2, 2.0, 1.0) / 1.2 * (1 + 0.02 * rng.standard_normal(shape))


def _correlated(rho: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Return standard normal AR(1) series along the last axis, started in their stationary state."""
    z = rng.standard_normal(shape)
    scale = np.sqrt(1 - rho**2)
    for i in range(1, shape[-1] if rho else 1):
        z[..., i] = rho * z[..., i - 1] + scale * z[..., i]
    return z


def simulate_run(
    design: Design | None = None,
    *,
    seed: int = 1,
    engines: tuple[str, ...] = ("baseline", "engine"),
    cells: tuple[Cell, ...] = (Cell(50, 16, 1),),
    gate: str = "equivalent",
    run_id: str | None = None,
) -> Run:
    """Return one simulated run in memory: a closed loop, a fifth of each request before its first token.

    Args:
        design: what varies; every cell is drawn anew from it.
        seed: decides everything random.
        engines: labels, the baseline first.
        cells: points of the grid.
        gate: equivalence verdict of every engine but the baseline.
        run_id: name; "sim-SEED" if not given.
    """
    design = design or Design()
    rng = np.random.default_rng(seed)
    seconds = np.stack([draw(design, rng, 1, len(engines))[0] for _ in cells], axis=2)
    load = 1.0 + 0.05 * rng.random((len(engines), design.blocks))
    order = np.argsort(rng.random((len(engines), design.blocks)), axis=0)
    rows = [
        (engine, block, cell, index, seconds[engine, block, cell, index])
        for block in range(design.blocks)
        for engine in np.argsort(order[:, block]).tolist()
        for cell, index in [(-1, 0), *np.ndindex(len(cells), design.requests)]
        if cell < 0 or np.isfinite(seconds[engine, block, cell, index])
        if np.isfinite(seconds[engine, block]).any()
    ]
    engine, block, cell, index = (np.array([row[i] for row in rows], dtype=np.int64) for i in range(4))
    phase = np.where(cell < 0, LOAD, MEASURE)
    cell = np.maximum(cell, 0)
    tokens = np.where(phase == LOAD, 0, np.array([c.output_tokens for c in cells])[cell])
    spent = np.where(phase == LOAD, load[engine, block], np.array([row[4] for row in rows], dtype=np.float64))
    spent_ns = np.rint(spent * 1e9).astype(np.int64)
    # A millisecond between two requests, as a host needs it.
    end = 1_000_000_000 + np.cumsum(spent_ns + 1_000_000)
    start = end - spent_ns
    offsets = np.r_[0, np.cumsum(tokens)]
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], tokens)
    share = 0.2 + 0.8 * place / np.maximum(np.repeat(tokens, tokens) - 1, 1)
    stamps = np.repeat(start, tokens) + np.rint(np.repeat(spent_ns, tokens) * share).astype(np.int64)
    names = tuple(f"b{b}-{engines[e]}" for e, b in np.ndindex(len(engines), design.blocks))
    columns = Columns(
        engines=engines,
        launches=names,
        cells=cells,
        reasons=("",),
        engine=engine,
        launch=engine * design.blocks + block,
        cell=cell,
        block=block,
        order=order[engine, block],
        index=index,
        phase=phase,
        excluded=np.full(len(engine), KEPT),
        intended_ns=start,
        start_ns=start,
        end_ns=end,
        prompt_tokens=np.where(phase == LOAD, 0, np.array([c.prompt_tokens for c in cells])[cell]),
        output_tokens=tokens,
        offsets=offsets,
        token_ns=stamps,
    )
    return Run(_manifest(design, seed, engines, cells, gate, run_id or f"sim-{seed}"), columns)


def _manifest(
    design: Design, seed: int, engines: tuple[str, ...], cells: tuple[Cell, ...], gate: str, run_id: str
) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        run_id=run_id,
        created_utc=f"2026-01-01T00:00:{seed % 60:02d}Z",
        status="complete",
        seed=seed,
        scenario={
            "name": "simulated",
            "profile": "quick",
            "primary_metric": "throughput_tokens_per_second",
            "cells": [msgspec.to_builtins(cell) for cell in cells],
            "blocks": design.blocks,
            "requests": design.requests,
        },
        model=RunModel(name="simulated-model", sha256="0" * 64, quantization="Q8_0"),
        baseline=engines[0],
        engines=[RunEngine(name=name, version="1.0") for name in engines],
        environment={"cpu": "simulated", "cores": 2},
        equivalence=[
            Equivalence(
                engine=name, mean_kl=0.0, max_kl=0.0, top1=1.0, verdict="reference" if name == engines[0] else gate
            )
            for name in engines
        ],
    )


def samples(columns: Columns) -> list[Sample]:
    """Return columns as the samples that would have made them."""
    found = []
    for i in range(len(columns)):
        reason = columns.reasons[int(columns.excluded[i])]
        failed = reason in FAILED
        found.append(
            Sample(
                block=int(columns.block[i]),
                order=int(columns.order[i]),
                launch=columns.launches[int(columns.launch[i])],
                engine=columns.engines[int(columns.engine[i])],
                cell=columns.cells[int(columns.cell[i])],
                index=int(columns.index[i]),
                phase=PHASES[int(columns.phase[i])],
                intended_ns=int(columns.intended_ns[i]),
                start_ns=int(columns.start_ns[i]),
                token_ns=columns.token_ns[columns.offsets[i] : columns.offsets[i + 1]].tolist(),
                end_ns=int(columns.end_ns[i]),
                prompt_tokens=int(columns.prompt_tokens[i]),
                output_tokens=int(columns.output_tokens[i]),
                status=cast(Status, reason) if failed else "ok",
                flags=[] if failed or not reason else reason.split("+"),
            )
        )
    return found


def write_run(run: Run, folder: Path) -> Path:
    """Write a run as format version 1 into `folder / run_id` and return that folder."""
    home = folder / run.manifest.run_id
    home.mkdir(parents=True)
    (home / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(run.manifest)))
    encode = msgspec.json.Encoder().encode
    with (home / SAMPLES).open("wb") as file:
        file.writelines(encode(sample) + b"\n" for sample in samples(run.columns))
    return home
