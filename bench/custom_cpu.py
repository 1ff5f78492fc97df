"""How fast is the engine custom_cpu against llama.cpp on the same file, with the same threads, on this machine?

Both engines are launched through `cmp` and live at the same time; they answer the same request in turn (A B B A ...),
so that a machine's drift is in both. A row's ratio is over launch means, its interval Student's t on their logarithms.
Read bandwidth is measured beside decoding.

Rows: decode-1, decode-all, prompt-200, prompt-512, users-8, users-32, decode-q4_k_m, prompt-q4_k_m, decode-1b,
decode-4k, decode-busy; load-q8_0 and load-1b, seconds of a warm load of ours alone; products-128, the share of the
register peak that the integer products of 128 rows reach (needs cargo). All take about a quarter of an hour on two
idle cores; BENCH_ROWS=decode-1,users-8 picks some.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bench.bare_loops import PLUGINS, build_example
from bench.in_turn import summarize
from bench.llama_bench import cache_folder
from enginecmp.errors import CmpError, UsageError
from enginecmp.launch.launch import Launch
from enginecmp.models.info import describe
from enginecmp.models.store import resolve
from enginecmp.models.synth import write_synth
from enginecmp.plugins.discovery import discover, find
from enginecmp.plugins.plugin import Plugin
from enginecmp.prompts import PromptSet
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines

ENGINES = ("custom_cpu", "llamacpp")
DEADLINES = Deadlines(load_seconds=300, prefill_seconds=600, decode_seconds=600)

Rate = Callable[[Launch], float]


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        goal: least ratio of rates, custom_cpu over llama.cpp.
        model: name of one of `MODELS`.
        prompt: tokens in.
        output: tokens out.
        threads: of both engines; 0 is one a core.
        users: requests in flight at once.
        of_prompt: the rate is that of the prompt, not that of the tokens after the first.
        beside_busy: beside a busy loop on every core.
        launches: pairs of fresh processes.
        pairs: requests of each side in one launch, after one each to warm up.
    """

    goal: float
    model: str
    prompt: int = 50
    output: int = 33
    threads: int = 1
    users: int = 1
    of_prompt: bool = False
    beside_busy: bool = False
    launches: int = 4
    pairs: int = 3


ROWS = {
    "decode-1": Row(1.6, "q8_0"),
    "decode-all": Row(1.4, "q8_0", threads=0),
    "prompt-200": Row(3.0, "q8_0", prompt=200, output=1, of_prompt=True),
    "prompt-512": Row(3.0, "q8_0", prompt=512, output=1, of_prompt=True, pairs=2),
    "users-8": Row(2.5, "q8_0", output=32, threads=0, users=8, launches=3, pairs=2),
    "users-32": Row(2.5, "q8_0", output=32, threads=0, users=32, launches=3, pairs=1),
    "decode-q4_k_m": Row(1.3, "q4_k_m"),
    "prompt-q4_k_m": Row(2.0, "q4_k_m", prompt=200, output=1, of_prompt=True),
    "decode-1b": Row(1.3, "llama-3.2-1b", output=17, launches=3, pairs=2),
    "decode-4k": Row(1.5, "q8_0", prompt=4096, output=17, launches=3, pairs=1),
    "decode-busy": Row(5.0, "q8_0", threads=0, prompt=20, output=9, beside_busy=True, launches=3, pairs=2),
}
LOADS = {"load-q8_0": ("q8_0", "load", 0.05), "load-1b": ("llama-3.2-1b", "first_use", 0.2)}
"""Models, option `packing`, and the seconds that a warm load may take."""
PRODUCTS = "products-128"
LEAST_PEAK = 0.5
"""Of the register peak, in row `PRODUCTS`."""
READS_WEIGHTS = ("decode-1", "decode-1b")
LEAST_SHARE = 0.85
"""Of the read bandwidth, in rows of `READS_WEIGHTS`."""


def measure() -> dict[str, Any]:
    """Return ratio, interval and goal of every row.

    Raises:
        UsageError: BENCH_ROWS names a row that is not there.
        CmpError: an engine is not installed, or fails.
    """
    known = [*ROWS, *LOADS, PRODUCTS]
    names = [name for name in os.environ.get("BENCH_ROWS", "").split(",") if name] or known
    if unknown := [name for name in names if name not in known]:
        msg = f"custom_cpu: expected rows among {', '.join(known)}, got '{unknown[0]}'; correct BENCH_ROWS"
        raise UsageError(msg)
    plugins = discover()
    ours, theirs = (find(name, plugins) for name in ENGINES)
    found = {}
    for name in names:
        if name in ROWS:
            found[name] = _row(name, ROWS[name], ours, theirs)
        elif name in LOADS:
            found[name] = _load(name, ours)
        else:
            found[name] = _products()
    return {
        "target": "every row's goal",
        "met": all(row["met"] for row in found.values()),
        "rows": found,
    }


def _row(name: str, row: Row, ours: Plugin, theirs: Plugin) -> dict[str, Any]:
    model = _model(row.model)
    rate = _users(model, row) if row.users > 1 else _single(model, row)
    options = LoadOptions(
        threads=row.threads or len(os.sched_getaffinity(0)),
        context_tokens=row.prompt + row.output,
        max_sequences=row.users,
    )
    with ExitStack() as stack:
        if row.beside_busy:
            stack.enter_context(_busy_loops())
        rates = [
            _launch(rate, (ours, theirs), model, options, row.pairs, swapped=number % 2 == 1)
            for number in range(row.launches)
        ]
    result = {**summarize(f"{name}: custom_cpu / llamacpp", rates), "goal": row.goal}
    result["met"] = result["ratio"] >= row.goal
    if name in READS_WEIGHTS:
        bandwidth = read_bandwidth()
        mean = sum(a for pairs in rates for a, _ in pairs) / (row.launches * row.pairs)
        result |= {"read_bytes_per_second": bandwidth, "share": mean * model.bytes / bandwidth}
        result["met"] = result["met"] and result["share"] >= LEAST_SHARE
        print(f"{name}: {result['share']:.2f} of the {bandwidth / 1e9:.1f} GB/s that one thread reads", flush=True)
    return result


def _launch(
    rate: Rate, plugins: tuple[Plugin, Plugin], model: ModelInfo, options: LoadOptions, pairs: int, *, swapped: bool
) -> list[tuple[float, float]]:
    """Return pairs of rates, ours first, of one launch of each engine."""
    with ExitStack() as stack:
        launches = [
            stack.enter_context(_loaded(plugin, model, options))
            for plugin in (reversed(plugins) if swapped else plugins)
        ]
        for launch in launches:
            rate(launch)
        found = []
        for number in range(pairs):
            forward = number % 2 == 0
            first, second = (rate(launch) for launch in (launches if forward else reversed(launches)))
            found.append((first, second) if forward != swapped else (second, first))
        return found


def _load(name: str, plugin: Plugin) -> dict[str, Any]:
    """Return the least seconds of a load on all threads, the file in the system's cache, by the engine's own stamps."""
    (model_name, packing, goal), launches = LOADS[name], 5
    model = _model(model_name)
    threads = len(os.sched_getaffinity(0))
    options = LoadOptions(threads=threads, context_tokens=64, max_sequences=1, extra={"packing": packing})
    seconds = []
    for _ in range(launches + 1):
        with _loaded(plugin, model, options) as launch:
            metrics = launch.loaded["metrics"]
            seconds.append(sum(metrics[f"load_{phase}_seconds"] for phase in ("parse", "map", "init")))
    least = min(seconds[1:])
    print(f"{name}: {1e3 * least:.0f} ms, goal {1e3 * goal:.0f}", flush=True)
    return {"seconds": seconds[1:], "least": least, "goal": goal, "met": least <= goal}


def _products() -> dict[str, Any]:
    """Return the share of the register peak that the model's integer products of 128 rows reach on one thread."""
    example = build_example(PLUGINS / "custom_cpu" / "kernels", "kernels")
    said = subprocess.run([example, "1", "smollm2", "Q8_0"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"n 128:.* ([0-9.]+) GMAC/s \( *([0-9]+) %", said)
    assert found is not None, said
    share = float(found[2]) / 100
    print(f"{PRODUCTS}: {share:.2f} of the register peak, {found[1]} GMAC/s", flush=True)
    return {"share": share, "macs_per_second": float(found[1]) * 1e9, "goal": LEAST_PEAK, "met": share >= LEAST_PEAK}


@contextmanager
def _loaded(plugin: Plugin, model: ModelInfo, options: LoadOptions) -> Iterator[Launch]:
    with (
        TemporaryDirectory(prefix="cmp-bench-") as folder,
        Launch(plugin.name, plugin, log=Path(folder) / "log", options=options) as launch,
    ):
        launch.load(model, DEADLINES.load_seconds)
        yield launch


def _single(model: ModelInfo, row: Row) -> Rate:
    prompt = PromptSet(model).take(row.prompt, key=0, seed=0)

    def rate(launch: Launch) -> float:
        answer = launch.request(prompt, row.output, DEADLINES)
        if answer["error"] is not None:
            msg = f"{launch.label}: {answer['error']['message']}"
            raise CmpError(msg)
        stamps: Sequence[int] = answer["token_ns"]
        if row.of_prompt:
            return row.prompt / (stamps[0] - answer["start_ns"]) * 1e9
        return (len(stamps) - 1) / (stamps[-1] - stamps[0]) * 1e9

    return rate


def _users(model: ModelInfo, row: Row) -> Rate:
    """Return what has twice as many requests as users answered, and gives output tokens a second."""
    prompts = PromptSet(model)
    requests = [
        {"id": str(n), "token_ids": list(prompts.take(row.prompt, key=n, seed=0)), "output_tokens": row.output}
        for n in range(2 * row.users)
    ]

    def rate(launch: Launch) -> float:
        start = time.perf_counter()
        launch.call("batch", DEADLINES.decode_seconds, requests=requests)
        return len(requests) * row.output / (time.perf_counter() - start)

    return rate


@contextmanager
def _busy_loops() -> Iterator[None]:
    """Keep every core busy."""
    command = [sys.executable, "-I", "-S", "-c", "while True: pass"]
    loops = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def read_bandwidth(threads: int = 1, repeats: int = 10) -> float:
    """Return the best rate, bytes a second, at which threads read arrays far larger than a cache."""
    import numpy as np

    arrays = [np.ones(1 << 26, np.int64) for _ in range(threads)]
    best = 0.0
    for _ in range(repeats):
        readers = [threading.Thread(target=np.bitwise_or.reduce, args=(array,)) for array in arrays]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - start))
    return best


def _model(name: str) -> ModelInfo:
    """Return a file, made once where it is not the embedded model's."""
    if name == "q8_0":
        return resolve("smollm2-135m-instruct:q8_0", fetch=True)
    path = cache_folder() / f"{name}.gguf"
    if path.exists():
        return describe(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "q4_k_m":
        _quantize(Path(resolve("smollm2-135m-instruct:f32", fetch=True).path), path)
        return describe(path)
    return write_synth(path, like=name, quantization="Q8_0", seed=0)


def _quantize(source: Path, path: Path) -> None:
    """Write a Q4_K_M file as llama.cpp mixes its types.

    Raises:
        CmpError: llama.cpp refuses.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    part = path.with_suffix(".part")
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(part), parameters):
        msg = f"custom_cpu: expected llama.cpp to write {path}, it failed; see what it said above"
        raise CmpError(msg)
    part.replace(path)
