"""How many requests a second the load generator sends on time, against the fake engine on this machine.

Each rate runs as any open-loop cell does: Poisson arrivals, one token each, the fake engine's own batching with no
time spent on tokens. The lag of a request is from when it was due to when it was sent. If the target is missed,
lower rates are tried until one holds, and what the processes used of the machine says what the limit is.
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from enginecmp.format.records import Cell, Sample
from enginecmp.launch.launch import Launch
from enginecmp.measure.concurrent import measure as measure_cell
from enginecmp.measure.task import Place, Task
from enginecmp.models.synth import write_synth
from enginecmp.plugins.discovery import examine
from enginecmp.plugins.plugin import Plugin
from enginecmp.prompts import PromptSet
from enginecmp.scenarios import Overload, Scenario
from enginecmp.scenarios.plan import PlannedLaunch
from enginecmp.types import LoadOptions, ModelInfo

RATE = 10_000.0
SECONDS = 10.0
LIMIT_SECONDS = 0.001
STEP = 0.7
"""Each rate that is tried after a miss is that share of the one before."""


def measure() -> dict[str, Any]:
    """Return the lags at the target rate, and the highest rate that was held."""
    plugin = examine("fake", "enginecmp.testing.fake_engine", "", "")
    tried: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="cmp-bench-") as folder:
        model = write_synth(Path(folder) / "tiny.gguf", like="tiny-llama", quantization="F32", seed=0)
        rate = RATE
        while rate > 50:
            tried.append(at_rate(rate, plugin, model, Path(folder) / "log"))
            _print(tried[-1])
            if tried[-1]["held"]:
                break
            rate = float(math.floor(rate * STEP))
    print(_limit(tried))
    return {
        "target": f"{RATE:,.0f} requests/s for {SECONDS:g} s, p99 of the dispatch lag <= {1e3 * LIMIT_SECONDS:g} ms",
        "met": tried[0]["held"],
        "held_requests_per_second": tried[-1]["rate"] if tried[-1]["held"] else 0.0,
        "tried": tried,
    }


def at_rate(rate: float, plugin: Plugin, model: ModelInfo, log: Path) -> dict[str, Any]:
    """Offer one rate and return lags, latencies and CPU time."""
    cell = Cell(4, 1, 64, "poisson", rate)
    scenario = Scenario(
        name="bench",
        profile="bench",
        primary_metric="ttft_seconds",
        cells=(cell,),
        blocks=1,
        requests=1,
        seconds=SECONDS,
        warmup_requests=100,
        overload=Overload(queue_requests=1_000_000),
    )
    samples: list[Sample] = []
    options = LoadOptions(
        context_tokens=16, max_sequences=64, extra={"clock": "real", "prefill_us": "0", "decode_us": "0"}
    )
    place = Place(PlannedLaunch(0, 0, "fake"), "bench", cell)
    with Launch("fake", plugin, log=log, options=options) as launch:
        launch.load(model, 60)
        measure_cell(Task(launch, scenario, model, PromptSet(model), 0, place, samples.append, lambda start, end: []))
    measured = [sample for sample in samples if sample.phase == "measure"]
    lags = np.array([sample.metrics["dispatch_lag_seconds"] for sample in measured])
    answered = [(s.token_ns[0] - s.intended_ns) / 1e9 for s in measured if s.status == "ok"]
    seconds = (measured[-1].intended_ns - measured[0].intended_ns) / 1e9
    window = (max(sample.end_ns for sample in samples) - samples[0].intended_ns) / 1e9
    p50, p99, most = np.quantile(lags, [0.5, 0.99, 1.0]).tolist()
    return {
        "rate": rate,
        "sent": len(measured),
        "seconds": seconds,
        "answered": len(answered),
        "lag_p50_seconds": p50,
        "lag_p99_seconds": p99,
        "lag_max_seconds": most,
        "ttft_p50_seconds": float(np.median(answered)) if answered else None,
        "engine_cores": measured[0].metrics["process_cpu_seconds"] / window,
        "others_cores": measured[0].metrics.get("foreign_cpu_seconds", 0.0) / window,
        "held": p99 <= LIMIT_SECONDS,
    }


def _print(found: dict[str, Any]) -> None:
    lags = "  ".join(f"{name} {1e6 * found[f'lag_{name}_seconds']:,.0f}" for name in ("p50", "p99", "max"))
    print(
        f"{found['rate']:>8,.0f}/s  sent {found['sent']:,} in {found['seconds']:.1f} s, "
        f"answered {found['answered']:,}; "
        f"lag in us: {lags}; engine {found['engine_cores']:.2f} cores, others {found['others_cores']:.2f}"
    )


def _limit(tried: list[dict[str, Any]]) -> str:
    last = tried[-1]
    if last["held"] and len(tried) == 1:
        return "the target rate is held"
    held = f"{last['rate']:,.0f} requests/s are held" if last["held"] else "no rate is held"
    return (
        f"{held}; at the target the engine's process used {tried[0]['engine_cores']:.2f} cores and others than it and "
        f"the generator {tried[0]['others_cores']:.2f}: the generator waits for a core when both are busy"
    )
