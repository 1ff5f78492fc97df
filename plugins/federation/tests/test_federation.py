"""Aggregators against oracles, compression, nodes over loopback, and a federation through real launches."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from enginecmp import Given, LoadOptions, UnknownOption
from enginecmp.errors import EngineError
from enginecmp.format.records import Sample
from enginecmp_federation import choice, planted, small_model
from enginecmp_federation.aggregators import RULES
from enginecmp_federation.compression import compressed, decompressed
from enginecmp_federation.driver import drive
from enginecmp_federation.judge import TruthJudge
from enginecmp_federation.nodes import Nodes
from enginecmp_federation.numpy_federation import NumpyAggregator, cmp_operation
from enginecmp_federation.settings import AGGREGATORS, Parameters, broken_rule, parameters_of

SMALL = {"nodes": 11, "layers": 1, "hidden": 24, "value_width": 8, "rank": 2, "draw": 5}


def deltas(nodes: int, values: int = 40, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((nodes, values)).astype(np.float32)


def oracle(name: str, rows: Any, f: int, examples: Sequence[int]) -> list[float]:
    """Return an aggregate, coordinate by coordinate in Python's own numbers."""
    nodes = [[float(value) for value in row] for row in rows]

    def mean_of(chosen: Sequence[int]) -> list[float]:
        total = sum(examples[n] for n in chosen)
        return [sum(nodes[n][c] * examples[n] for n in chosen) / total for c in range(len(nodes[0]))]

    def score(n: int, among: Sequence[int]) -> float:
        apart = sorted(sum((a - b) ** 2 for a, b in zip(nodes[n], nodes[m], strict=True)) for m in among if m != n)
        return sum(apart[: max(1, len(among) - f - 2)])

    everyone = list(range(len(nodes)))
    ranked = sorted(everyone, key=lambda n: score(n, everyone))
    columns = [sorted(column) for column in zip(*nodes, strict=True)]
    if name == "fedavg":
        return mean_of(everyone)
    if name == "median":
        half = len(nodes) // 2
        return [column[half] if len(nodes) % 2 else (column[half - 1] + column[half]) / 2 for column in columns]
    if name == "trimmed_mean":
        return [sum(column[f : len(nodes) - f]) / (len(nodes) - 2 * f) for column in columns]
    if name == "krum":
        return nodes[ranked[0]]
    if name == "multi_krum":
        return mean_of(ranked[: len(nodes) - f - 2])
    left, selected = everyone[:], []
    while len(selected) < len(nodes) - 2 * f:
        best = min(left, key=lambda n: score(n, left))
        left.remove(best)
        selected.append(best)
    found = []
    for column in zip(*(nodes[n] for n in selected), strict=True):
        centre = float(np.median(column))
        nearest = sorted(column, key=lambda value: abs(value - centre))[: len(nodes) - 4 * f]
        found.append(sum(nearest) / len(nearest))
    return found


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize(("nodes", "attackers"), [(11, 2), (12, 2), (7, 1), (3, 0), (23, 5)])
def test_an_aggregate_is_that_of_the_oracle(name: str, nodes: int, attackers: int) -> None:
    for seed in range(3):
        rows = deltas(nodes, seed=seed)
        examples = np.random.default_rng(seed).integers(1, 50, nodes).tolist()
        expected = oracle(name, rows, attackers, examples)
        assert np.allclose(RULES[name](rows, attackers, examples), expected, atol=2e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_order_of_nodes_does_not_matter(name: str) -> None:
    rows, examples = deltas(12, seed=3), list(range(1, 13))
    order = np.random.default_rng(4).permutation(12)
    again = RULES[name](rows[order], 2, [examples[n] for n in order])
    assert np.allclose(RULES[name](rows, 2, examples), again, atol=1e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_nodes_that_agree_are_taken_at_their_word(name: str) -> None:
    row = deltas(1, seed=9)[0]
    assert np.allclose(RULES[name](np.tile(row, (11, 1)), 2, [1] * 11), row, atol=1e-6)


def test_without_attackers_trimmed_mean_and_bulyan_are_the_mean() -> None:
    rows = deltas(9)
    for name in ("trimmed_mean", "bulyan", "fedavg"):
        assert np.allclose(RULES[name](rows, 0, [1] * 9), rows.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_only_the_mean_breaks_down_below_the_rule(name: str) -> None:
    """Attackers as many as the rule allows, arbitrarily far away: all but FedAvg stay among the honest."""
    factor = 4 if name == "bulyan" else 2
    rows = deltas(factor * 3 + 3, seed=1)
    rows[:3] = 1e6
    largest = float(np.abs(rows[3:]).max())
    found = float(np.abs(RULES[name](rows, 3, [1] * len(rows))).max())
    assert (found > 1e4) if name == "fedavg" else (found <= largest)


def test_half_of_the_nodes_break_the_median() -> None:
    rows = deltas(10)
    rows[:6] = 1e6
    assert np.abs(RULES["median"](rows, 4, [1] * 10)).max() > 1e5


@pytest.mark.parametrize(
    ("name", "nodes", "attackers", "least"),
    [("krum", 8, 3, 9), ("multi_krum", 8, 3, 9), ("bulyan", 10, 2, 11), ("median", 6, 3, 7), ("trimmed_mean", 6, 3, 7)],
)
def test_a_broken_rule_is_named_in_one_line(name: str, nodes: int, attackers: int, least: int) -> None:
    line = broken_rule(name, nodes, attackers)
    assert f"expected at least {least} nodes for {attackers} attackers, got {nodes}" in line
    assert "\n" not in line
    assert broken_rule(name, least, attackers) == ""
    assert broken_rule("fedavg", nodes, attackers) == ""


def test_an_engine_refuses_what_its_rule_does_not_allow() -> None:
    with pytest.raises(EngineError, match=r"numpy_federation: bulyan needs nodes >= 4 \* attackers \+ 3"):
        cmp_operation(session="bulyan", kind="federation", parameters={"nodes": 10, "attackers": 2})
    assert cmp_operation(session="bulyan", kind="retrieval", parameters={}) is None


@pytest.mark.parametrize(
    ("extra", "wrong"),
    [({"agregator": "krum"}, "unknown option 'agregator'"), ({"aggregator": "crum"}, "expected one of fedavg")],
)
def test_a_wrong_option_is_refused(extra: Mapping[str, str], wrong: str) -> None:
    with pytest.raises(UnknownOption, match=wrong):
        choice.chosen("numpy_federation", LoadOptions(extra=extra))


MATRICES = [deltas(6, 8, seed=1), 1e-3 * deltas(3, 5, seed=2), np.zeros((2, 2), np.float32)]
SHAPES = [matrix.shape for matrix in MATRICES]


@pytest.mark.parametrize("how", ["none", "float16", "int8", "top_k"])
def test_compression_keeps_to_its_bound(how: str) -> None:
    found = decompressed(compressed(MATRICES, how, 0.25), how, SHAPES)
    for before, after in zip(MATRICES, found, strict=True):
        assert (after.shape, after.dtype) == (before.shape, np.float32)
        apart = np.abs(before - after)
        largest = np.abs(before).max()
        if how == "none":
            assert np.array_equal(before, after)
        elif how == "float16":
            assert (apart <= np.maximum(np.abs(before) * 2**-11, 2**-25)).all()
        elif how == "int8":
            assert apart.max() <= largest / 127 / 2 * 1.001
        else:
            kept = max(1, round(0.25 * before.size))
            wanted = np.sort(np.abs(before).ravel())[-kept:]
            assert np.array_equal(np.sort(np.abs(after).ravel())[-kept:], wanted)
            assert np.count_nonzero(after) <= kept


def test_parts_that_do_not_fit_are_refused() -> None:
    parts = compressed(MATRICES, "int8", 0.1)
    with pytest.raises(ValueError, match="expected a delta compressed by int8, matrix 3"):
        decompressed(parts, "int8", [*SHAPES, (1, 1)])
    with pytest.raises(ValueError, match="expected 4 values of matrix 0, got 48"):
        decompressed(parts, "int8", [(2, 2)])


def test_the_gradient_is_that_of_finite_differences() -> None:
    settings, model = Parameters(task="training", rank=2), small_model.model_of(3)
    data = small_model.data_of(model, settings, 3, 1, 0)
    adapter = [matrix + np.float32(0.1) for matrix in small_model.start(settings, 3)]
    found = small_model.gradient(model, adapter, data)
    for number, matrix in enumerate(adapter):
        place = (1, 1)
        ends = []
        for step in (1e-2, -1e-2):
            moved = [each.copy() for each in adapter]
            moved[number][place] += step
            ends.append(small_model.loss(model, moved, data))
        assert found[number].shape == matrix.shape
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(found[number][place]), rel=0.05, abs=2e-4)


class Hook:
    """Calls an aggregator's engine, as the worker's hook relay does."""

    def __init__(self, name: str) -> None:
        self._name = name

    def cmp_operation(self, session: Any, kind: str, parameters: Mapping[str, Any]) -> Any:
        return cmp_operation(session=self._name, kind=kind, parameters=parameters)


def judged(name: str, variant: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
    judge = TruthJudge(variant, Given(seed=3))
    parameters, amount = judge.question()
    assert amount == variant["nodes"]
    call: Any = drive(Hook(name), None, parameters)
    try:
        answer = np.asarray(call())
        metrics = dict(call.metrics)
        assert call.metrics == {}
    finally:
        call._nodes.close()
    return answer, {**metrics, **judge.judge(answer, 1.0, [])}


def sent(settings: Parameters) -> Any:
    """Return what every node of a planted federation sends, made without any node."""
    rows = []
    for node in range(settings.nodes):
        delta = planted.honest(settings, 3, settings.draw, node)
        if planted.is_attacker(settings, 3, settings.draw, node):
            delta = -np.float32(settings.strength) * delta
        rows.append(delta)
    return np.stack(rows)


@pytest.mark.parametrize("name", ["fedavg", "bulyan"])
def test_what_comes_over_the_wire_is_what_was_planted(name: str) -> None:
    variant = {**SMALL, "attackers": 2, "attack": "sign_flip"}
    answer, found = judged(name, variant)
    assert found["engine_cpu_seconds"] > 0
    expected = oracle(name, sent(parameters_of(variant)), 2, [1] * 11)
    assert np.allclose(answer[0, 1:], expected, atol=1e-4)
    truth = planted.truth(parameters_of(variant), 3)
    error = np.linalg.norm(np.asarray(expected) - truth) / np.linalg.norm(truth)
    assert found["relative_error"] == pytest.approx(error, rel=1e-3)
    assert found["node_upload_bytes"] > 4 * parameters_of(variant).values
    assert 0 < found["aggregation_seconds"] < found["round_seconds"]


def test_training_in_rounds_learns_and_an_attack_on_the_mean_undoes_it() -> None:
    variant = {"task": "training", "nodes": 5, "rounds": 20, "draw": 5}
    answer, found = judged("fedavg", variant)
    model = small_model.model_of(3)
    unseen = small_model.held_out(model, 3)
    before = small_model.loss(model, small_model.start(parameters_of(variant), 3), unseen)
    assert answer.shape[0] == 20
    assert found["central_loss"] < found["heldout_loss"] * 1.2
    assert found["heldout_loss"] < 0.95 * before
    again, _ = judged("fedavg", variant)
    assert np.array_equal(answer, again)
    attack = {**variant, "attackers": 1, "attack": "sign_flip"}
    thrown_off = judged("fedavg", attack)[1]["heldout_loss"]
    assert thrown_off > before
    assert judged("median", attack)[1]["heldout_loss"] < thrown_off


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    found = Nodes("federation", NumpyAggregator.node_codec, parameters_of(SMALL), 3, 5)
    yield found
    found.close()


def test_a_node_that_cannot_read_its_request_ends_the_round_with_its_number(nodes: Nodes) -> None:
    with pytest.raises(EngineError, match="node 0 ended without an answer"):
        nodes.ask([b"\x93\x01\x02\x03"] * 11)


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("text", "expected the rounds' vectors, a matrix"),
        (np.zeros((2, 7), np.float32), r"got \(2, 7\)"),
        (np.zeros((1, 161), np.float32), "expected a draw from 1"),
        (np.full((1, 161), np.nan, np.float32), "expected a draw from 1"),
        (np.array([[5.0] + [np.inf] * 160], np.float32), "expected finite numbers, got 160 others"),
    ],
)
def test_what_is_no_answer_is_refused(answer: Any, wrong: str) -> None:
    judge = TruthJudge(SMALL, Given(seed=3))
    judge.question()
    with pytest.raises(ValueError, match=wrong):
        judge.judge(answer, 1.0, [])


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"nodes": 2}, "expected nodes from 3 to 50, got 2"),
        ({"nodes": 51}, "expected nodes from 3 to 50, got 51"),
        ({"attackers": 6, "attack": "noise"}, "expected attackers below half of 11 nodes, got 6"),
        ({"attackers": 1}, 'expected attack = "none" with no attackers'),
        ({"attack": "noise"}, 'expected attack = "none" with no attackers'),
        ({"top_k_share": 0.0}, "expected top_k_share above 0"),
        ({"strength": float("nan")}, "expected strength above 0"),
        ({"compression": "zip"}, "Invalid enum value 'zip'"),
        ({"hidden": 16384, "layers": 256}, "expected at most"),
        ({"node": 3}, "unknown field `node`"),
    ],
)
def test_a_wrong_variant_is_refused(change: Mapping[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        TruthJudge({**SMALL, **change}, Given())


SCENARIO = """
primary_metric = "relative_error"
kind = "operation"
operation = "federation"
launch_per_cell = true
[variants.attacked]
nodes = 5
layers = 1
hidden = 24
value_width = 8
attackers = 1
attack = "scaling"
[[cells]]
prompt_tokens = 1
output_tokens = 0
variant = "attacked"
[profile.quick]
blocks = 1
requests = 2
[validity]
floor_seconds = 1000
"""


def run(folder: Path, engines: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.toml").write_text(SCENARIO)
    line = [str(Path(sys.executable).with_name("cmp")), "run", "--engines", engines, "--scenario", "small.toml"]
    return subprocess.run([*line, "--no-sensors"], cwd=folder, capture_output=True, text=True, check=False)


def test_aggregators_are_compared_like_engines(tmp_path: Path) -> None:
    done = run(tmp_path, "numpy-fedavg,numpy-krum")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("results/*/samples.jsonl")
    samples = [msgspec.json.decode(text, type=Sample) for text in path.read_bytes().splitlines()]
    errors = {sample.engine: sample.metrics["relative_error"] for sample in samples if sample.phase == "measure"}
    assert errors["numpy-krum"] < errors["numpy-fedavg"]
    measured = [sample.metrics for sample in samples if sample.phase == "measure"]
    assert all(metrics["node_upload_bytes"] > 0 for metrics in measured)
    # What the nodes compute is the engine's own.
    assert all(metrics["engine_cpu_seconds"] > 0 for metrics in measured)


def test_a_node_that_is_gone_is_named() -> None:
    judge = TruthJudge(SMALL, Given(seed=3))
    call: Any = drive(Hook("fedavg"), None, judge.question()[0])
    call._nodes._process.kill()
    call._nodes._connections[2].shutdown(socket.SHUT_RDWR)
    try:
        with pytest.raises(EngineError, match="federation: node 2"):
            call()
    finally:
        call._nodes.close()


def test_a_run_with_too_many_attackers_names_the_rule(tmp_path: Path) -> None:
    done = run(tmp_path, "numpy-bulyan")
    assert done.returncode != 0
    assert "bulyan needs nodes >= 4 * attackers + 3: expected at least 7 nodes" in done.stdout + done.stderr
