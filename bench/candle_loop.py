"""Candle's own model code in a bare Rust loop, against the same code driven by `cmp`.

The loop is the example `bare_loop` of plugins/candle, built by cargo with the profile of the extension, so both
sides run the same machine code. `python -m bench.candle_loop` makes this one comparison of the fidelity part.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from enginecmp.errors import CmpError
from enginecmp.plugins import Plugin
from enginecmp.process import engine_environment
from enginecmp.types import LoadOptions, ModelInfo

CRATE = Path(__file__).parents[1] / "plugins" / "candle"


def build() -> Path:
    """Return the path of the loop, compiled where it is out of date (minutes, when nothing of Candle is).

    Raises:
        CmpError: there is no cargo, or it fails.
    """
    if shutil.which("cargo") is None:
        msg = "bare_loop: expected cargo, found none; install Rust"
        raise CmpError(msg)
    command = ["cargo", "build", "--release", "--locked", "--example", "bare_loop", "--message-format=json"]
    # In the crate's folder, so that its .cargo/config.toml counts.
    done = subprocess.run(command, cwd=CRATE, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        msg = f"bare_loop: cargo fails: {lines[-1] if lines else 'it gave no reason'}; run it in {CRATE}"
        raise CmpError(msg)
    messages = map(json.loads, done.stdout.splitlines())
    return next(Path(message["executable"]) for message in messages if message.get("executable"))


def run(loop: Path, plugin: Plugin, model: ModelInfo, prompt: Sequence[int], n_tokens: int, repetitions: int) -> float:
    """Return the loop's median decode rate on one thread, tokens per second, after one repetition to warm up."""
    command = [os.fspath(loop), model.path, str(n_tokens), str(repetitions), *map(str, prompt)]
    environment = {**os.environ, **engine_environment(plugin, LoadOptions(threads=1))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(statistics.median(json.loads(done.stdout)["decode_tokens_per_second"]))


def pair(
    plugin: Plugin, model: ModelInfo, prompt: Sequence[int], n_tokens: int, repetitions: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return the two sides of the comparison: through `cmp`, and bare; each call is one fresh process.

    Raises:
        CmpError: see `build`.
    """
    from bench.fidelity import through_cmp

    loop = build()
    return (
        lambda: through_cmp(plugin, model, prompt, 1, n_tokens, repetitions),
        lambda: run(loop, plugin, model, prompt, n_tokens, repetitions),
    )


def main() -> int:
    """Compare on the embedded model and print the ratio."""
    from bench.fidelity import BAND, PROMPT_TOKENS, REPETITIONS, compare
    from enginecmp.models.store import resolve
    from enginecmp.plugins import discover, find
    from enginecmp.prompts import PromptSet

    model = resolve("smollm2-135m-instruct:q8_0", fetch=True)
    prompt = PromptSet(model).take(PROMPT_TOKENS, key=0, seed=0)
    sides = pair(find("candle", discover()), model, prompt, 64, REPETITIONS)
    found = compare("candle / bare Rust loop", *sides)
    return 0 if BAND[0] <= found["ratio"] <= BAND[1] else 1


if __name__ == "__main__":
    sys.exit(main())
