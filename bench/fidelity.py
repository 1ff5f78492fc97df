"""Is an engine driven by `cmp` as fast as the same engine driven by itself?

llama.cpp against its own llama-bench, PyTorch against a bare loop over the same module, Candle against a bare Rust
loop over the same crate: same file, same threads, same context lengths, fresh processes, in turn (A B B A ...),
decode rate only. The ratio is taken round by round, because these machines drift; its mean and t interval are on
logs.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scipy.special import stdtrit

from enginecmp.deadlines import Deadlines
from enginecmp.launch import Launch
from enginecmp.models.store import resolve
from enginecmp.plugins import Plugin, discover, find
from enginecmp.process import engine_environment
from enginecmp.prompts import PromptSet
from enginecmp.types import LoadOptions, ModelInfo

ROUNDS = 8
PROMPT_TOKENS = 50
REPETITIONS = 5
BAND = (0.99, 1.01)


def measure() -> dict[str, Any]:
    """Return rates and ratios of every comparison; Candle's only where its plugin is installed."""
    from bench import candle_loop
    from bench.llama_bench import build, run_llama_bench

    model = resolve("smollm2-135m-instruct:q8_0", fetch=True)
    prompt = PromptSet(model).take(PROMPT_TOKENS, key=0, seed=0)
    threads = 1
    binary = build()
    plugins = discover()
    llamacpp, pytorch = find("llamacpp", plugins), find("pytorch_baseline", plugins)

    def llama_bench() -> float:
        # Its generation starts with an empty step at `depth`; ours with the token that prefill gave.
        found = run_llama_bench(
            binary, model.path, threads=threads, n_gen=63, depth=PROMPT_TOKENS, repetitions=REPETITIONS
        )
        return float(statistics.median(found[0]["samples_ts"]))

    def bare_loop() -> float:
        command = [sys.executable, "-m", "bench.bare_loop", model.path, str(threads), "16", "4", *map(str, prompt)]
        environment = {**os.environ, **engine_environment(pytorch, LoadOptions(threads=threads))}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return statistics.median(map(float, done.stdout.split()))

    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "llamacpp / llama-bench": (lambda: through_cmp(llamacpp, model, prompt, threads, 64, REPETITIONS), llama_bench),
        "pytorch_baseline / bare loop": (lambda: through_cmp(pytorch, model, prompt, threads, 16, 4), bare_loop),
    }
    if any(plugin.name == "candle" for plugin in plugins):
        sides = candle_loop.pair(find("candle", plugins), model, prompt, 64, REPETITIONS)
        pairs["candle / bare Rust loop"] = sides
    result = {name: compare(name, *pair) for name, pair in pairs.items()}
    return {
        "target": f"decode rate through cmp over its own: {BAND[0]} to {BAND[1]}",
        "met": all(BAND[0] <= found["ratio"] <= BAND[1] for found in result.values()),
        **result,
    }


def through_cmp(
    plugin: Plugin, model: ModelInfo, prompt: Sequence[int], threads: int, n_tokens: int, repetitions: int
) -> float:
    """Return the median decode rate of one launch, tokens per second, after one request to warm up."""
    rates = []
    with TemporaryDirectory(prefix="cmp-bench-") as folder:
        options = LoadOptions(threads=threads, context_tokens=len(prompt) + n_tokens)
        with Launch(plugin.name, plugin, log=Path(folder) / "log", options=options) as launch:
            launch.load(model, 120)
            for repetition in range(repetitions + 1):
                stamps = launch.request(tuple(prompt), n_tokens, Deadlines())["token_ns"]
                if repetition:
                    rates.append((len(stamps) - 1) / (stamps[-1] - stamps[0]) * 1e9)
    return float(statistics.median(rates))


def compare(name: str, ours: Callable[[], float], theirs: Callable[[], float]) -> dict[str, Any]:
    """Run both sides in turn, print one line and return ratio, interval and rates."""
    rates: list[tuple[float, float]] = []
    for number in range(ROUNDS):
        if number % 2:
            other = theirs()
            rates.append((ours(), other))
        else:
            rates.append((ours(), theirs()))
    logs = [math.log(a / b) for a, b in rates]
    mean, spread = statistics.mean(logs), statistics.stdev(logs)
    half = float(stdtrit(ROUNDS - 1, 0.975)) * spread / math.sqrt(ROUNDS)
    ratio, low, high = math.exp(mean), math.exp(mean - half), math.exp(mean + half)
    left, right = (statistics.median(side) for side in zip(*rates, strict=True))
    print(f"{name}: {left:.2f} / {right:.2f} tok/s, ratio {ratio:.4f} [{low:.4f}, {high:.4f}], {ROUNDS} rounds")
    return {"ratio": ratio, "ci_low": low, "ci_high": high, "rates": rates}
