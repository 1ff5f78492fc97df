"""A first guess at how long launches and the gate take, from the model's size, where no earlier run tells."""

from __future__ import annotations

import functools
import time

from enginecmp.errors import CmpError
from enginecmp.format.records import Cell
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.measure.operand_sizes import LEAST_NS, operand_values
from enginecmp.operands import vectors
from enginecmp.scenarios import Scenario
from enginecmp.types import ModelInfo

_READ_BYTES_PER_SECOND = 4e9
_START_SECONDS = 3.0
_SERVER_START_SECONDS = 60.0
"""A server that is started for a launch brings its libraries and compiles: vLLM on CPUs took 65 s."""
_MEASURE_SECONDS = 0.01
"""What a sample of a plugin's measurement takes beside the model's work, its judge included: nobody knows."""
_PREFILL_SPEEDUP = 8.0
_PROBED_VALUES = 1 << 20


def launch_seconds(scenario: Scenario, model: ModelInfo, config: EngineConfig) -> float:
    """Return seconds of one pass over all cells, as if decoding read every weight once a token from memory."""
    starts = len(scenario.cells) if scenario.launch_per_cell else 1
    seconds = (_START_SECONDS + _server_start(config)) * starts
    for cell in scenario.cells:
        request, prepared = request_seconds(scenario, model, cell)
        n = scenario.requests_in(cell)
        measured = max(n * request, n * _between_seconds(scenario, cell, request), scenario.seconds or 0.0)
        # What users of a closed loop wait for is finished after the measurement.
        users = cell.concurrency if cell.concurrency > 1 and not cell.arrival else 1
        rates = 1.5 * max(3, len(scenario.offered_load)) if scenario.offered_load and not scenario.calibration else 1
        seconds += prepared + rates * ((scenario.warmups_in(cell) + users - 1) * request + measured)
    return seconds


def request_seconds(scenario: Scenario, model: ModelInfo, cell: Cell) -> tuple[float, float]:
    """Return seconds of one request (or sample) of a cell, and of what is made ready before the first one."""
    token_seconds = model.bytes / _READ_BYTES_PER_SECOND
    workload = scenario.workload(cell)
    prompt_tokens, output_tokens = workload.mean_tokens if workload else (cell.prompt_tokens, cell.output_tokens)
    prompt = token_seconds * prompt_tokens / _PREFILL_SPEEDUP
    if scenario.kind != "operation":
        return prompt + token_seconds * output_tokens, 0.0
    if scenario.operation == "sampling":
        return LEAST_NS / 1e9, prompt + token_seconds
    if scenario.measure is not None:
        computed = prompt + token_seconds * output_tokens if scenario.needs_model else 0.0
        return _MEASURE_SECONDS + computed, _START_SECONDS
    try:
        values = operand_values(scenario, cell, model)
    except CmpError:  # a file that does not tell its shapes: the launch says so
        values = 0
    # A call reads every float32 value once; both sides make them, and the host's proof goes over them again.
    return max(LEAST_NS / 1e9, 4 * values / _READ_BYTES_PER_SECOND), 2 * values / values_per_second()


def _between_seconds(scenario: Scenario, cell: Cell, request: float) -> float:
    """Return the least seconds from one request to the next: who sends it comes later, or thinks."""
    workload = scenario.workload(cell)
    if not cell.arrival:
        return (request + (workload.mean_think_seconds if workload else 0.0)) / cell.concurrency
    if cell.rate_per_second:
        return 1 / cell.rate_per_second
    came = workload.trace.seconds if workload and workload.trace else scenario.trace_seconds
    return came[-1] / (len(came) - 1) if len(came) > 1 else 0.0


@functools.cache
def values_per_second() -> float:
    """Return how many random values this machine makes and turns into float64 in a second, measured now."""
    import numpy as np

    began = time.perf_counter()
    for array in vectors(1, _PROBED_VALUES, seed=0):
        array.astype(np.float64)
    return 2 * _PROBED_VALUES / (time.perf_counter() - began)


def gate_seconds(scenario: Scenario, model: ModelInfo, configs: list[EngineConfig]) -> float:
    """Return a first guess at the most that the gate takes: what an earlier gate proved is not asked again.

    The reference is launched once, every engine for each of its two questions; one that runs already has one.
    """
    if not scenario.gate:
        return 0.0
    # Both files are read whole for a chunk of positions; float32 is four bytes a weight.
    one = _START_SECONDS + 4 * model.parameters / _READ_BYTES_PER_SECOND * (
        1 + scenario.score_positions / _PREFILL_SPEEDUP
    )
    asked = sum((1 if config.probed.running else 2) * (one + _server_start(config)) for config in configs)
    return one + asked


def _server_start(config: EngineConfig) -> float:
    return _SERVER_START_SECONDS if config.remote and not config.probed.running else 0.0
