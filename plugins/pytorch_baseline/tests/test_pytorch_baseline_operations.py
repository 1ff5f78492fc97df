"""Operations leave threads as they want them, and a naive product is the loop that it says it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from enginecmp import ModelInfo
from enginecmp_pytorch_baseline import cmp_decode, cmp_operation, cmp_prefill, cmp_reset

SIZE = {"rows": 2, "inner": 8, "columns": 5, "seed": 1}


@pytest.fixture
def threads() -> Any:
    """Leave torch's thread count as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_library_product_runs_on_one_thread_and_a_parallel_one_on_all(
    tiny: Callable[[str], ModelInfo], load: Any
) -> None:
    session = load(tiny("llama"), threads=2)
    cmp_operation(session, "matmul", {**SIZE, "method": "library"})
    assert torch.get_num_threads() == 1
    cmp_operation(session, "matmul", {**SIZE, "method": "parallel"})
    assert torch.get_num_threads() == 2


def test_a_naive_product_is_one_dot_product_for_each_output(
    tiny: Callable[[str], ModelInfo], load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply = cmp_operation(load(tiny("llama")), "matmul", {**SIZE, "method": "naive"})
    assert multiply is not None
    dots = []
    plain = torch.Tensor.dot
    monkeypatch.setattr(torch.Tensor, "dot", lambda a, b: dots.append(len(a)) or plain(a, b))
    assert np.asarray(multiply()).shape == (2, 5)
    assert dots == [8] * 10


def test_draws_are_the_same_for_the_same_seed(tiny: Callable[[str], ModelInfo], load: Any) -> None:
    session = load(tiny("llama"))

    def draws(seed: int) -> list[int]:
        cmp_reset(session)
        parameters = {"token_ids": [1, 2, 3], "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": seed}
        draw = cmp_operation(session, "sampling", parameters)
        assert draw is not None
        return [draw() for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


def test_requests_go_on_as_before_after_an_operation(tiny: Callable[[str], ModelInfo], load: Any) -> None:
    session = load(tiny("llama"))
    before = [cmp_prefill(session, [5, 6, 7], 6), *cmp_decode(session, 5)]
    cmp_reset(session)
    greedy = {"token_ids": [5, 6, 7], "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    draw = cmp_operation(session, "sampling", greedy)
    assert draw is not None
    assert draw() == before[0]
    cmp_reset(session)
    assert [cmp_prefill(session, [5, 6, 7], 6), *cmp_decode(session, 5)] == before


def test_an_operation_that_is_not_there_is_none(tiny: Callable[[str], ModelInfo], load: Any) -> None:
    assert cmp_operation(load(tiny("llama")), "quantize", {}) is None
