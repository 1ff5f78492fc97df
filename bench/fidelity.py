"""Is an engine driven by `cmp` as fast as the same engine driven by itself?

`python -m bench fidelity` asks of every engine that has something to hold it against; `python -m bench fidelity candle
burn` of those two. Same file, same prompt, same threads, same context length, decode rate only:

- Candle, Burn, custom_cpu and the PyTorch baseline against a bare loop over the same code (`bench.bare_loops`), both
  alive at the same time, one request each in turn (`bench.in_turn`); the Rust engines also tell what their own calls
  took inside the requests through `cmp`, which is the sharper number where a machine's speed changes within a second;
- llama.cpp against its own llama-bench, which loads and measures in one go: fresh processes in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from enginecmp.errors import UsageError
from enginecmp.models.store import resolve
from enginecmp.plugins.discovery import discover, find
from enginecmp.plugins.plugin import Plugin
from enginecmp.prompts import PromptSet
from enginecmp.types import ModelInfo

THREADS = 1
PROMPT_TOKENS = 50
BAND = (0.99, 1.01)

# In turn: launches of both sides, and pairs of requests in each.
LAUNCHES = 10
PAIRS = 10
OUTPUT_TOKENS = {"pytorch_baseline": 16, "candle": 24, "custom_cpu": 24, "burn": 16}

# Fresh processes: rounds of one launch of each side, and requests in a launch.
ROUNDS = 8
REPETITIONS = 5

ENGINES = ("llamacpp", *OUTPUT_TOKENS)
COMPILED = ("candle", "custom_cpu", "burn")
"""Left out without a word where they are not installed."""


def measure(*engines: str, launches: int = LAUNCHES, pairs: int = PAIRS) -> dict[str, Any]:
    """Return rates and ratios of the named engines; without names of all that are installed."""
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        msg = f"fidelity: unknown engine '{unknown[0]}'; known: {', '.join(ENGINES)}"
        raise UsageError(msg)
    plugins = discover()
    installed = [plugin.name for plugin in plugins]
    chosen = engines or [name for name in ENGINES if name in installed or name not in COMPILED]
    model = resolve("smollm2-135m-instruct:q8_0", fetch=True)
    prompt = PromptSet(model).take(PROMPT_TOKENS, key=0, seed=0)
    result = {}
    for name in chosen:
        plugin = find(name, plugins)
        if name == "llamacpp":
            result["llamacpp / llama-bench"] = against_llama_bench(plugin, model, prompt)
        else:
            result[f"{name} / bare loop"] = against_bare_loop(plugin, model, prompt, launches, pairs)
    return {
        "target": f"decode rate through cmp over its own, where it tells the engine's share: {BAND[0]} to {BAND[1]}",
        "met": all(map(_met, result.values())),
        **result,
    }


def _met(found: dict[str, Any]) -> bool:
    """Return whether an engine's share is in the band, which is the sharper number; else whether its ratio is."""
    ratio: float = found.get("engine_share", found["ratio"])
    return BAND[0] <= ratio <= BAND[1]


def against_bare_loop(
    plugin: Plugin, model: ModelInfo, prompt: tuple[int, ...], launches: int, pairs: int
) -> dict[str, Any]:
    """Compare an engine with the bare loop over its own code, request by request."""
    from bench.bare_loops import command_of
    from bench.in_turn import bare, take_turns, through_cmp
    from enginecmp.launch.process import engine_environment
    from enginecmp.types import LoadOptions

    n_tokens = OUTPUT_TOKENS[plugin.name]
    environment = engine_environment(plugin, LoadOptions(threads=THREADS))
    with command_of(plugin.name, model, prompt, n_tokens, THREADS) as command:
        return take_turns(
            f"{plugin.name} / bare loop",
            lambda: through_cmp(plugin, model, prompt, n_tokens, THREADS),
            lambda: bare(f"{plugin.name}'s bare loop", command, environment),
            launches,
            pairs,
        )


def against_llama_bench(plugin: Plugin, model: ModelInfo, prompt: tuple[int, ...]) -> dict[str, Any]:
    """Compare llama.cpp with its own benchmark, round by round."""
    from bench.in_turn import summarize, through_cmp
    from bench.llama_bench import build, run_llama_bench

    binary = build()

    def ours() -> float:
        with through_cmp(plugin, model, prompt, 64, THREADS) as request:
            answers = [request() for _ in range(REPETITIONS + 1)]
        return statistics.median(answer.decode_tokens_per_second for answer in answers[1:])

    def theirs() -> float:
        # Its generation starts with an empty step at `depth`; ours with the token that prefill gave.
        found = run_llama_bench(
            binary, model.path, threads=THREADS, n_gen=63, depth=PROMPT_TOKENS, repetitions=REPETITIONS
        )
        return float(statistics.median(found[0]["samples_ts"]))

    return summarize("llamacpp / llama-bench", [[_round(ours, theirs, number)] for number in range(ROUNDS)])


def _round(ours: Callable[[], float], theirs: Callable[[], float], number: int) -> tuple[float, float]:
    """Run both, the other one first in every other round."""
    if number % 2:
        other = theirs()
        return ours(), other
    return ours(), theirs()
