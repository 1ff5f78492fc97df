"""The part "prepare": the model's file; the kernels that it and the checks take, compiled beside one another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from enginecmp import read_gguf

from ..compiling import EMULATED, cache, compile_now, entry, sources
from ..config import read_config
from ..engine.decode import BATCHES, defines
from ..engine.gemm import TENSOR_CORES
from . import correctness
from .context import Context, one_line

CONTEXT_TOKENS = 512


def run(context: Context) -> None:
    """Write the model where it is not there, and compile; both are timed."""
    begin = time.perf_counter()
    info = context.model()
    context.fact("model", info.name)
    context.fact("model_bytes", info.bytes)
    context.fact("model_seconds", round(time.perf_counter() - begin, 2))
    with context.device() as device:
        architecture, kind = device.architecture, info.quantization
        bulk = architecture == EMULATED or device.capability >= (9, 0)
    head_dim = read_config(read_gguf(info.path), CONTEXT_TOKENS).head_dim
    ring = "RING_BULK" if bulk else "RING_ASYNC"
    wanted: list[tuple[str, dict[str, str]]] = []
    for each in chain(modules(kind, head_dim, ring), correctness.modules(ring)):
        if each not in wanted and not (context.dry and wanted):
            wanted.append(each)
    begin = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda each: compiled(each[0], each[1], architecture), wanted))
    context.fact("compilation_seconds", round(time.perf_counter() - begin, 2))
    context.fact("compilation", [text for text in found if text])
    for (name, macros), text in zip(wanted, found, strict=True):
        if "error" in text:
            context.note(f"{name} {macros}: {text}")


def modules(kind: str, head_dim: int, ring: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every kernel file that a model of one kind takes, with its definitions, the slowest first."""
    step = {batch: defines(kind, False, "f16", head_dim, batch) for batch in BATCHES}
    shape = {"KV": "KV_F16", "HEAD_DIM": str(head_dim)}
    weight = {"WEIGHT": f"WEIGHT_{kind}"}
    yield "gemm_mma" if kind in TENSOR_CORES else "gemm_f32", shape | weight
    yield "persistent", step[1] | {"RING": ring}
    for batch in reversed(BATCHES):
        yield "decode", step[batch]
    yield "flash_f16", shape
    yield "attention_split", shape | {"BATCH": "8"}
    yield "prefill", shape | weight
    yield "sampling", {}
    yield "expand", weight


def compiled(name: str, macros: dict[str, str], architecture: str) -> str:
    """Compile a file now, put it into the cache, and return a line on it."""
    begin = time.perf_counter()
    try:
        source = sources.find(name)
        code = compile_now(source, macros, architecture)
    except Exception as error:  # the engine compiles it again, and says what is wrong
        return f"{name}: error {one_line(error)}"
    cache.write(entry(source, macros, architecture), code)
    batch = f" batch {macros['BATCH']}" if "BATCH" in macros else ""
    return f"{name}{batch}: {time.perf_counter() - begin:.2f} s, {len(code)} bytes"
