"""PyTorch as a rival: eager, eager in a CUDA graph, and compiled in its fastest modes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from enginecmp import read_gguf

from ..config import read_config
from .context import Context, Skip
from .rivals import Cells, Engine, measure_cells
from .torch_llama import Llama

MODES = {
    "torch-compile": ("reduce-overhead", False),
    "torch-compile-int8": ("reduce-overhead", True),
    "torch-max-autotune": ("max-autotune", False),
}
"""Mode of torch.compile, and whether weights are int8, by the part's name."""

WARM_UPS = 3


def measure_torch(context: Context, name: str, cells: Cells) -> None:
    """Measure one way of running PyTorch.

    Raises:
        Skip: not a llama, or no CUDA in this build.
    """
    device = "cuda" if context.device_timed else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        msg = f"torch {torch.__version__} has no CUDA device here"
        raise Skip(msg)
    info = context.model()
    file = read_gguf(info.path)
    if info.architecture != "llama":
        msg = f"the comparison's model is a llama, this one is a {info.architecture}"
        raise Skip(msg)
    mode, int8 = MODES.get(name, ("", False))
    config = read_config(file, cells.room)
    with torch.inference_mode():
        begin = time.perf_counter()
        model = Llama(file, config, cells.room, device, int8)
        context.fact(f"load_seconds of {name}", round(time.perf_counter() - begin, 2))
        if mode:
            measure_cells(context, compiled(context, name, model, mode, device), cells, config.vocabulary)
            return
        measure_cells(context, engine(name, model, model.prefill, model.decode, device), cells, config.vocabulary)
        if device == "cuda":
            step = graphed(model, device)
            measure_cells(
                context, engine("torch-eager-graph", model, model.prefill, step, device), cells, config.vocabulary
            )


def engine(
    name: str,
    model: Llama,
    prefill: Callable[[Any], Any],
    decode: Callable[[Any, Any], Any],
    device: str,
) -> Engine:
    """Return an engine: ids stay on the device from step to step, and come to the host together at the end."""
    state: dict[str, Any] = {}

    def begin(ids: Sequence[int]) -> int:
        state["token"] = prefill(torch.tensor([ids], device=device)).clone()
        state["position"] = len(ids)
        return int(state["token"])

    def more(tokens: int) -> list[int]:
        token, start = state["token"], state["position"]
        found = []
        for place in range(tokens):
            token = decode(token, model.places[start + place : start + place + 1]).clone()
            found.append(token)
        state["token"], state["position"] = token, start + tokens
        return [int(each) for each in torch.cat(found).flatten().tolist()]

    return Engine(name, begin, more)


def compiled(context: Context, name: str, model: Llama, mode: str, device: str) -> Engine:
    """Return an engine of compiled functions; prompts are compiled once for every length."""
    # A rehearsal does without the compiler behind the tracer: on a CPU that takes minutes.
    how: dict[str, Any] = {"mode": mode} if device == "cuda" else {"backend": "aot_eager"}
    if mode == "max-autotune":
        torch._inductor.config.coordinate_descent_tuning = True
    step = torch.compile(model.decode, fullgraph=True, dynamic=False, **how)
    # Graphs of a prompt's length would each hold memory; kernels as such are what counts there.
    how.pop("mode", None)
    whole = torch.compile(model.prefill, fullgraph=True, dynamic=False, **how)

    def decode(token: Any, position: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        # The place is a view of another length each time; a copy has one address.
        return step(token, position.clone())

    begin = time.perf_counter()
    token = torch.zeros((1, 1), dtype=torch.long, device=device)
    for _ in range(WARM_UPS):
        decode(token, model.places[:1])
    if device == "cuda":
        torch.cuda.synchronize()
    context.fact(f"compilation_seconds of {name}", round(time.perf_counter() - begin, 2))
    return engine(name, model, whole, decode, device)


def graphed(model: Llama, device: str) -> Callable[[Any, Any], Any]:
    """Return the eager step, recorded as a CUDA graph."""
    token = torch.zeros((1, 1), dtype=torch.long, device=device)
    position = torch.zeros(1, dtype=torch.long, device=device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            model.decode(token, position)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = model.decode(token, position)

    def decode(given: Any, at: Any) -> Any:
        token.copy_(given)
        position.copy_(at)
        graph.replay()
        return result

    return decode
