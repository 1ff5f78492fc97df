"""What an engine offers by itself must be what it says: `pytest --pyargs enginecmp.testing --engine NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp.launch.launch import Launch
from enginecmp.measure import exact
from enginecmp.measure.operation import ELEMENTWISE_TOLERANCE, LAYER_TOLERANCE, MATMUL_TOLERANCE
from enginecmp.models.tokenizer import load_tokenizer
from enginecmp.operands import matrices
from enginecmp.plugins.plugin import Plugin
from enginecmp.testing.conftest import DEADLINES, Prompts
from enginecmp.types import NO_ID, ModelInfo

DRAWS = 400
TEXT = "Twelve engines, one file: is 3.5 ms a token fast?\n  It depends."
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 3}
CONSTANTS = {"rope_base": 10_000.0, "epsilon": 1e-5, "seed": 5}
ROWS = {"rows": 3, "length": 192, "head_dim": 32, "start": 500, **CONSTANTS}
LAYER = {"width": 96, "heads": 6, "kv_heads": 2, "head_dim": 32, "feed_forward": 160, **CONSTANTS}
KINDS: dict[str, dict[str, Any]] = {
    "tokenize": {"direction": "encode", "text": TEXT},
    "sampling": {"token_ids": [1, 2, 3], **GREEDY},
    "matmul": {"rows": 2, "inner": 32, "columns": 64, "method": "library", "seed": 5},
    "elementwise": {"function": "add", **ROWS},
    "layer": {"rows": 2, "past": 3, **LAYER},
}


def require(plugin: Plugin, kind: str) -> None:
    assert plugin.info is not None
    if kind not in plugin.info.operations:
        pytest.skip(f"the engine does not offer {kind} by itself")


def prepare(launch: Launch, kind: str, parameters: dict[str, Any]) -> bool:
    prepared = launch.call(
        "prepare_operation", DEADLINES.prefill_seconds, kind=kind, parameters=parameters, least_ns=1000
    )
    return prepared is not None


def call(launch: Launch) -> Any:
    return launch.call("operation", DEADLINES.decode_seconds, calls=1)["result"]


def logits_after(launch: Launch, token_ids: Sequence[int]) -> NDArray[np.float64]:
    answer = launch.call("score", DEADLINES.score_seconds, token_ids=list(token_ids))
    if answer["shape"] is None:
        pytest.skip("the engine has no cmp_score")
    rows = np.frombuffer(answer["data"], dtype=np.float32).reshape(answer["shape"])
    return np.asarray(rows[-1], dtype=np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_its_facts_name_what_it_offers_and_nothing_else(launch: Launch, plugin: Plugin, kind: str) -> None:
    assert plugin.info is not None
    if plugin.command:
        pytest.skip("an executable has no cmp_operation")
    offered = prepare(launch, kind, KINDS[kind])
    assert offered == (kind in plugin.info.operations), "name it in EngineInfo.operations exactly if it is there"


def test_text_becomes_the_reference_tokenizers_ids(launch: Launch, plugin: Plugin, model: ModelInfo) -> None:
    require(plugin, "tokenize")
    assert prepare(launch, "tokenize", {"direction": "encode", "text": TEXT})
    assert call(launch) == load_tokenizer(model.path).encode(TEXT)


def test_ids_become_the_text_again(launch: Launch, plugin: Plugin, model: ModelInfo) -> None:
    require(plugin, "tokenize")
    token_ids = load_tokenizer(model.path).encode(TEXT)
    assert prepare(launch, "tokenize", {"direction": "decode", "token_ids": token_ids})
    assert call(launch) == TEXT


@pytest.mark.parametrize("strategy", [{}, {"temperature": 0.7, "top_k": 1}, {"temperature": 0.7, "top_p": 1e-6}])
def test_a_greedy_draw_is_the_first_token_of_a_request(
    launch: Launch, plugin: Plugin, prompts: Prompts, strategy: dict[str, Any]
) -> None:
    require(plugin, "sampling")
    first = launch.request(prompts[1], 1, DEADLINES)["ids"][0]
    if first == NO_ID:
        pytest.skip("the engine hands out text, not ids")
    assert prepare(launch, "sampling", {"token_ids": list(prompts[1]), **GREEDY, **strategy})
    assert {call(launch) for _ in range(5)} == {first}


@pytest.mark.parametrize(
    "strategy", [{}, {"top_k": 5}, {"top_p": 0.5}, {"top_k": 20, "top_p": 0.6}], ids=lambda s: "+".join(s) or "plain"
)
def test_draws_follow_the_distribution_that_is_left(
    launch: Launch, plugin: Plugin, prompts: Prompts, strategy: dict[str, Any]
) -> None:
    require(plugin, "sampling")
    temperature = 0.7
    logits = logits_after(launch, prompts[1])
    chances = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-chances)
    if "top_k" in strategy:
        chances[order[strategy["top_k"] :]] = 0
    chances /= chances.sum()
    if "top_p" in strategy:
        # The fewest most likely ids that reach top_p (Holtzman et al. 2020, eq. 2).
        kept = int(np.searchsorted(np.cumsum(chances[order]), strategy["top_p"])) + 1
        chances[order[kept:]] = 0
        chances /= chances.sum()
    parameters = {**GREEDY, "temperature": temperature, **strategy}
    assert prepare(launch, "sampling", {"token_ids": list(prompts[1]), **parameters})
    drawn = np.bincount([call(launch) for _ in range(DRAWS)], minlength=len(chances))
    if strategy:
        # Where the next id is as likely as the last one kept, to rounding, either may be in.
        assert drawn[chances < 0.9 * chances[chances > 0].min()].sum() == 0
    # Each half of the likely and the unlikely ids gets its share; 5 standard deviations of a binomial.
    likely = order[: max(1, int((chances > 0).sum()) // 2)]
    expected = chances[likely].sum()
    limit = 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1 / DRAWS
    assert abs(drawn[likely].sum() / DRAWS - expected) <= limit


@pytest.mark.parametrize("method", ["naive", "library", "parallel"])
@pytest.mark.parametrize("rows", [1, 7])
def test_products_are_those_of_float64(launch: Launch, plugin: Plugin, method: str, rows: int) -> None:
    require(plugin, "matmul")
    size = {"rows": rows, "inner": 96, "columns": 40, "seed": 11}
    if not prepare(launch, "matmul", {**size, "method": method}):
        pytest.skip(f"the engine does not offer the method {method}")
    answer = call(launch)
    left, right = (matrix.astype(np.float64) for matrix in matrices(**size))
    wanted = left @ right
    got = np.frombuffer(answer["data"], dtype=np.float32).reshape(answer["shape"])
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= MATMUL_TOLERANCE * np.abs(wanted).max()


def worst(answer: Any, wanted: NDArray[np.float64]) -> float:
    """Return the largest deviation as a share of the largest element."""
    got = np.frombuffer(answer["data"], dtype=np.float32).reshape(answer["shape"])
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("function", ["add", "silu_mul", "rms_norm", "softmax", "rope"])
@pytest.mark.parametrize("rows", [1, 19])
def test_functions_of_elements_are_those_of_float64(launch: Launch, plugin: Plugin, function: str, rows: int) -> None:
    require(plugin, "elementwise")
    parameters = {**ROWS, "function": function, "rows": rows}
    assert prepare(launch, "elementwise", parameters)
    wanted = exact.elementwise(parameters)
    # What computes in place must not find its own answer the next time.
    assert max(worst(call(launch), wanted) for _ in range(3)) <= ELEMENTWISE_TOLERANCE


@pytest.mark.parametrize("past", [0, 45])
@pytest.mark.parametrize("rows", [1, 37])
def test_a_layer_is_that_of_float64(launch: Launch, plugin: Plugin, rows: int, past: int) -> None:
    require(plugin, "layer")
    parameters = {**LAYER, "rows": rows, "past": past}
    assert prepare(launch, "layer", parameters)
    wanted = exact.layer(parameters)
    assert max(worst(call(launch), wanted) for _ in range(3)) <= LAYER_TOLERANCE
