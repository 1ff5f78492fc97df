"""The measurement by itself, and the three indexes through real launches."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from enginecmp import Given, LoadOptions
from enginecmp.format.records import Sample
from enginecmp.plugins.discovery import discover, find
from enginecmp_retrieval.driver import drive
from enginecmp_retrieval.judge import RecallJudge
from enginecmp_retrieval.patterns import QUERIES, Parameters, bank, keys, parameters_of, true_neighbours

SMALL = {"patterns": 800, "dimension": 16, "data": "clustered", "clusters": 10}
ENGINES = {"usearch": "usearch", "hnswlib": "hnswlib", "faiss_flat": "faiss"}
MODULES = {"usearch": "usearch_graph", "hnswlib": "hnswlib_graph", "faiss_flat": "faiss_flat"}


def require(engine: str) -> None:
    if importlib.util.find_spec(ENGINES[engine]) is None:
        pytest.skip(f"{ENGINES[engine]} is not installed: make retrieval")


def exact(parameters: Mapping[str, Any]) -> Any:
    """Return an exact search over whole keys, in numpy."""
    stored = parameters["keys"].astype(np.float64)

    def search(queries: Any) -> Any:
        distances = ((queries[:, None, :] - stored[None]) ** 2).sum(-1)
        return np.argsort(distances, axis=1)[:, : parameters["k"]]

    return search


class Hook:
    """Calls one engine's `cmp_operation`, as the worker's hook relay does."""

    def __init__(self, operation: Any) -> None:
        self._operation = operation

    def cmp_operation(self, session: Any, kind: str, parameters: Mapping[str, Any]) -> Any:
        assert kind == "retrieval"
        return self._operation(parameters)


def judged(variant: Mapping[str, Any], operation: Any, calls: int) -> Mapping[str, float]:
    judge = RecallJudge(variant, Given(seed=3))
    parameters, amount = judge.question()
    assert amount == variant.get("batch", 1)
    call = drive(Hook(operation), 1, parameters)
    assert call is not None
    for _ in range(calls):
        answer = call()
    assert set(call.metrics) == {"index_build_seconds", "index_growth_bytes"}  # type: ignore[attr-defined]
    return judge.judge([list(one) for one in answer], 1.0, [])


@pytest.mark.parametrize("data", ["clustered", "gaussian"])
@pytest.mark.parametrize("batch", [1, 32])
def test_exact_search_over_keys_finds_the_true_neighbours_of_the_step(data: str, batch: int) -> None:
    found = judged({**SMALL, "data": data, "batch": batch}, exact, calls=8)
    assert found == {"recall_share": 1.0, "timestep_share": 1.0}


def test_without_weight_the_step_is_not_kept() -> None:
    found = judged({**SMALL, "timestep_weight": 0.0}, exact, calls=16)
    assert found["timestep_share"] < 0.5
    assert found["recall_share"] < 0.5


def test_true_neighbours_are_those_of_brute_force() -> None:
    parameters = Parameters(patterns=200, dimension=8, data="gaussian", steps=4)
    made = bank(parameters, 7)
    nearest = true_neighbours(made, 5)
    for query in range(0, QUERIES, 17):
        of_step = [n for n in range(200) if made.steps[n] == made.query_steps[query]]
        distance = {n: float(np.sum((made.patterns[n] - made.queries[query]) ** 2)) for n in of_step}
        assert sorted(nearest[query].tolist()) == sorted(sorted(of_step, key=distance.__getitem__)[:5])


def test_a_bank_is_the_same_for_a_seed_and_another_for_another() -> None:
    parameters = parameters_of(SMALL)
    first, again, other = bank(parameters, 1), bank(parameters, 1), bank(parameters, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.patterns, other.patterns)
    assert np.allclose(np.linalg.norm(first.patterns, axis=1), 1, atol=1e-5)
    assert np.bincount(first.steps).tolist() == [100] * 8
    whole = keys(first.patterns, first.steps, parameters)
    assert whole.shape == (800, 24)
    assert (whole[:, 16:].argmax(axis=1) == first.steps).all()


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ([], "expected a list of ids for each batch"),
        ("text", "expected a list of ids for each batch"),
        ([[0, 1, 2, 3, 4]], "expected 5 ids for each of 1 queries from 0 on, got 4"),
        ([[256, 1, 2, 3, 4, 5]], "from 256 on"),
        ([[0, 1, 2, 3, 4, 800]], r"expected ids in \[0, 800\), got 1 to 800"),
        ([[0, 1, 1, 2, 3, 4]], "expected 5 different patterns for query 0"),
    ],
)
def test_what_is_no_answer_is_refused(answer: Any, wrong: str) -> None:
    judge = RecallJudge(SMALL, Given(seed=3))
    judge.question()
    with pytest.raises(ValueError, match=wrong):
        judge.judge(answer, 1.0, [])


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"patterns": 0}, "expected patterns from 1"),
        ({"data": "else"}, "Invalid enum value 'else'"),
        ({"batch": 3}, "expected a batch that divides 256, got 3"),
        ({"k": 101}, "expected k up to patterns / steps = 100, got 101"),
        ({"timestep_weight": -1.0}, "expected timestep_weight from 0 to 100"),
        ({"patterns": 1 << 24, "dimension": 100}, "expected at most"),
        ({"pattern": 1}, "unknown field `pattern`"),
    ],
)
def test_a_wrong_variant_is_refused(change: Mapping[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        RecallJudge({**SMALL, **change}, Given())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 32])
def test_an_index_finds_what_is_near(engine: str, batch: int) -> None:
    require(engine)
    module = importlib.import_module(f"enginecmp_retrieval.{MODULES[engine]}")
    found = judged(
        {**SMALL, "batch": batch, "ef": 200},
        lambda parameters: module.cmp_operation(session=1, kind="retrieval", parameters=parameters),
        calls=8,
    )
    assert found["recall_share"] >= (1.0 if engine == "faiss_flat" else 0.8)
    assert found["timestep_share"] >= (1.0 if engine == "faiss_flat" else 0.9)
    assert module.cmp_operation(session=1, kind="matmul", parameters={}) is None


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_is_not_installed_says_what_brings_it(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginecmp_retrieval.index.find_spec", lambda name: None)
    module = importlib.import_module(f"enginecmp_retrieval.{MODULES[engine]}")
    probe = module.cmp_probe(options=LoadOptions())
    assert (probe.ok, probe.fix.startswith("pip install ")) == (False, True)
    assert find(engine, discover()).info is not None


SCENARIO = """
primary_metric = "operation_seconds"
kind = "operation"
operation = "retrieval"
launch_per_cell = true
[variants.small]
patterns = 800
dimension = 16
data = "clustered"
ef = 200
[[cells]]
prompt_tokens = 1
output_tokens = 0
variant = "small"
[profile.quick]
blocks = 1
requests = 3
[validity]
floor_seconds = 1000
"""


def test_indexes_are_compared_with_recall_beside(tmp_path: Path) -> None:
    engines = [name for name, module in ENGINES.items() if importlib.util.find_spec(module)]
    if not engines:
        pytest.skip("no index library is installed: make retrieval")
    (tmp_path / "small.toml").write_text(SCENARIO)
    cmp = str(Path(sys.executable).with_name("cmp"))
    line = [cmp, "run", "--engines", ",".join(engines), "--scenario", "small.toml", "--no-sensors"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("results/*/samples.jsonl")
    samples = [msgspec.json.decode(text, type=Sample) for text in path.read_bytes().splitlines()]
    measured = [sample for sample in samples if sample.phase == "measure"]
    assert {sample.engine for sample in measured} == set(engines)
    for sample in measured:
        assert 0.8 <= sample.metrics["recall_share"] <= 1
        assert sample.metrics["index_build_seconds"] > 0
        assert sample.prompt_tokens == 1
    told = subprocess.run([cmp, "stats", str(path.parent)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "recall_share: " in told.stdout
