from __future__ import annotations

from collections import Counter

from enginecmp.format.records import Cell
from enginecmp.scenarios.plan import cells_in_block, plan_launches, prompt_key


def test_every_block_launches_every_engine_once() -> None:
    plan = plan_launches(["a", "b", "c"], blocks=7, seed=3)
    assert len(plan) == 21
    for block in range(7):
        launches = [launch for launch in plan if launch.block == block]
        assert sorted(launch.engine for launch in launches) == ["a", "b", "c"]
        assert [launch.order for launch in launches] == [0, 1, 2]


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    assert plan_launches(["a", "b"], 20, seed=1) == plan_launches(["b", "a"], 20, seed=1)
    assert plan_launches(["a", "b"], 20, seed=1) != plan_launches(["a", "b"], 20, seed=2)


def test_the_order_is_random_between_blocks() -> None:
    plan = plan_launches(["a", "b"], blocks=400, seed=5)
    first = Counter(launch.engine for launch in plan if launch.order == 0)
    # Binomial(400, 1/2): 5 standard deviations are 50.
    assert 150 < first["a"] < 250


def test_the_plan_of_a_seed_never_changes() -> None:
    # Frozen: a changed order would break `cmp run --resume` of runs made by an earlier version.
    order = "".join(launch.engine for launch in plan_launches(["a", "b", "c"], 6, seed=42))
    assert order == "abcbcabcaacbabcacb"


def test_cells_keep_their_set_and_vary_their_order() -> None:
    cells = [Cell(length, 8) for length in (10, 50, 200)]
    orders = {tuple(cells_in_block(cells, block, seed=0)) for block in range(30)}
    assert all(set(order) == set(cells) for order in orders)
    assert len(orders) == 6


def test_prompts_differ_between_blocks_phases_and_requests() -> None:
    keys = {
        prompt_key(block, cell, phase, index, seed=9)
        for block in range(5)
        for cell in range(3)
        for phase in ("warmup", "measure")
        for index in range(5)
    }
    assert len(keys) == 5 * 3 * 2 * 5
