"""Quality beside speed: numbers against sums done by hand, limits of the gate on the fake engine."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax as scipy_log_softmax

from enginecmp.format.records import Equivalence
from enginecmp.gate.answers import score
from enginecmp.gate.equivalence import run_gate
from enginecmp.gate.gate import Gate
from enginecmp.gate.quality import agreement_tokens, negative_log_likelihoods, quality
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.models.synth import write_synth
from enginecmp.plugins.plugin import Plugin
from enginecmp.prompts import PromptSet
from enginecmp.types import NO_ID, LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines


def test_perplexity_of_three_probabilities_done_by_hand() -> None:
    # The next tokens had probabilities 1/2, 1/4 and 1/8: perplexity (2 * 4 * 8) ** (1/3) = 4.
    rows = np.log(
        [[0.25, 0.5, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125], [0.7, 0.1, 0.1, 0.1]]
    )
    found = negative_log_likelihoods(rows.astype(np.float32) + np.float32(3.0), [0, 1, 2, 3])
    assert found == pytest.approx([math.log(2), math.log(4), math.log(8)], rel=1e-6)
    assert quality(found, found).perplexity == pytest.approx(4.0, rel=1e-6)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_token_that_the_engine_excludes_costs_infinitely_much() -> None:
    rows = np.array([[0.0, -np.inf], [0.0, 0.0]], dtype=np.float32)
    found = negative_log_likelihoods(rows, [0, 1])
    assert found.tolist() == [math.inf]
    cost = quality(np.array([1.0]), found)
    assert cost.perplexity == cost.nll_difference == math.inf
    assert cost.low is None


def test_the_interval_of_the_difference_is_students_t_over_means_of_batches() -> None:
    rng = np.random.default_rng(3)
    reference = rng.exponential(2.0, 48)
    engine = reference + rng.normal(0.01, 0.1, 48)
    found = quality(reference, engine)
    means = (engine - reference).reshape(6, 8).mean(axis=1)  # 48 positions: 6 batches of 8
    low, high = stats.t.interval(0.95, 5, loc=means.mean(), scale=stats.sem(means))
    assert found.nll_difference == pytest.approx((engine - reference).mean())
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_too_few_positions_have_a_difference_and_no_interval() -> None:
    found = quality(np.arange(40.0), np.arange(40.0) + 0.5)
    assert found.nll_difference == 0.5
    assert (found.low, found.high) == (None, None)


def covered(rho: float, *, batches: bool) -> float:
    """Return how often 95 % limits hold the truth for differences that depend on their neighbours."""
    rng = np.random.default_rng(17)
    noise = rng.normal(size=(400, 512))
    for i in range(1, 512):
        noise[:, i] += rho * noise[:, i - 1]
    hits = 0
    for row in noise:
        if batches:
            found = quality(np.zeros(512), row)
            assert found.low is not None
            assert found.high is not None
            hits += found.low <= 0 <= found.high
        else:
            low, high = stats.t.interval(0.95, 511, loc=row.mean(), scale=stats.sem(row))
            hits += low <= 0 <= high
    return hits / 400


def test_the_interval_allows_for_positions_that_depend_on_their_neighbours() -> None:
    assert covered(0.5, batches=True) > 0.90
    assert covered(0.5, batches=False) < 0.80  # the control: positions taken as independent


def test_greedy_agreement_counts_until_the_first_difference() -> None:
    assert agreement_tokens([5, 6, 7, 8], [5, 6, 9, 8]) == 2
    assert agreement_tokens([5, 6], [5, 6]) == 2
    assert agreement_tokens([5, 6], [NO_ID, NO_ID]) is None
    assert agreement_tokens([5, 6], None) is None


def gate_of(fake: Plugin, tiny: ModelInfo, logs: Path, **changes: object) -> Gate:
    fields = {
        "reference": fake,
        "timed": tiny,
        "exact": tiny,
        "token_ids": PromptSet(tiny).score_ids(64),
        "logs": logs,
        "deadlines": Deadlines(),
        "max_kl": 0.02,
    }
    return Gate(**{**fields, **changes})  # type: ignore[arg-type]


def judged(fake: Plugin, gate: Gate, *options: LoadOptions) -> list[Equivalence]:
    configs = [EngineConfig(f"e{number}", fake, some) for number, some in enumerate(options)]
    return run_gate(configs, gate, lambda line: None)


OTHER = LoadOptions(extra={"error": "1"})


def test_the_gates_numbers_are_those_of_the_logits(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    gate = gate_of(fake, tiny, tmp_path, timed_only=True, max_kl=10.0)
    (entry,) = judged(fake, gate, OTHER)
    ids = list(gate.token_ids)
    expected = []
    for options in (LoadOptions(), OTHER):
        logits = score(EngineConfig("e", fake, options), tiny, ids, tmp_path / "log", Deadlines())
        assert logits is not None
        rows = scipy_log_softmax(logits.astype(np.float64), axis=1)
        expected.append(-rows[np.arange(63), ids[1:]])
    reference, engine = expected
    assert entry.perplexity == pytest.approx(float(np.exp(engine.mean())), rel=1e-9)
    assert entry.reference_perplexity == pytest.approx(float(np.exp(reference.mean())), rel=1e-9)
    assert entry.nll_difference == pytest.approx(float((engine - reference).mean()), abs=1e-9)
    assert entry.nll_difference_low is not None
    assert entry.nll_difference_low < entry.nll_difference < (entry.nll_difference_high or 0)
    assert entry.verdict == "equivalent"


def test_a_diffusion_model_is_asked_what_stands_where_the_text_is_masked(fake: Plugin, tmp_path: Path) -> None:
    model = write_synth(tmp_path / "tiny-llada.gguf", "tiny-llada")
    gate = gate_of(fake, model, tmp_path, timed_only=True, max_kl=10.0, mask_id=model.vocabulary - 1)
    (entry,) = judged(fake, gate, OTHER)
    masked = [at for at, token in enumerate(gate.asked_ids) if token == gate.mask_id]
    assert len(masked) == 32
    expected = []
    for options in (LoadOptions(), OTHER):
        logits = score(EngineConfig("e", fake, options), model, gate.asked_ids, tmp_path / "log", Deadlines())
        assert logits is not None
        rows = scipy_log_softmax(logits[masked].astype(np.float64), axis=1)
        expected.append(-rows[np.arange(32), [gate.token_ids[at] for at in masked]])
    reference, engine = expected
    assert entry.positions == 32
    assert entry.perplexity == pytest.approx(float(np.exp(engine.mean())), rel=1e-9)
    assert entry.reference_perplexity == pytest.approx(float(np.exp(reference.mean())), rel=1e-9)


def test_a_text_that_costs_more_than_allowed_is_not_comparable(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    gate = gate_of(fake, tiny, tmp_path, timed_only=True, max_kl=10.0)
    (free,) = judged(fake, gate, OTHER)
    assert free.nll_difference is not None
    assert free.nll_difference > 0
    for share, verdict in ((0.9, "not comparable"), (1.1, "equivalent")):
        limit = share * free.nll_difference
        (entry,) = judged(fake, msgspec.structs.replace(gate, max_nll_increase=limit), OTHER)
        assert entry.verdict == verdict
        assert ("nats more than the reference's" in entry.note) == (verdict == "not comparable")


def test_the_limit_of_the_timed_file_leaves_the_exact_one_alone(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    exact, timed = judged(fake, gate_of(fake, tiny, tmp_path, max_kl=10.0), OTHER)
    assert (exact.threshold, exact.verdict) == (1e-8, "not comparable")
    assert (timed.threshold, timed.verdict) == (10.0, "equivalent")


def test_the_allowed_cost_is_asked_of_the_timed_file_only(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    # Nothing costs a whole nat less than the reference, so every file that is asked fails.
    gate = gate_of(fake, tiny, tmp_path, max_nll_increase=-1.0)
    exact, timed = judged(fake, gate, LoadOptions(extra={"slow": "1"}))
    assert (exact.verdict, timed.verdict) == ("equivalent", "not comparable")


def test_settings_that_differ_in_threads_only_are_scored_once(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    gate = gate_of(fake, tiny, tmp_path, timed_only=True)
    threads = [msgspec.structs.replace(OTHER, threads=number) for number in (1, 2)]
    first, second, third = judged(fake, gate, *threads, LoadOptions())
    assert (first.mean_kl, first.verdict) == (second.mean_kl, second.verdict)
    assert third.mean_kl == 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gate-e0-timed.log", "gate-e2-timed.log", "gate-reference.log",
    ]  # fmt: skip


def test_greedy_text_parts_and_decides_nothing(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    gate = gate_of(fake, tiny, tmp_path, timed_only=True, max_kl=100.0)
    same, other = judged(fake, gate, LoadOptions(), LoadOptions(extra={"error": "3"}))
    assert same.greedy_agreement_tokens == 32
    assert other.greedy_agreement_tokens is not None
    assert other.greedy_agreement_tokens < 32
    assert other.verdict == "equivalent"


def test_a_request_that_fails_leaves_the_agreement_open(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    gate = gate_of(fake, tiny, tmp_path, timed_only=True)
    broken, dead = judged(
        fake, gate, LoadOptions(extra={"fault": "error@decode:1"}), LoadOptions(extra={"fault": "crash@prefill"})
    )
    assert (broken.greedy_agreement_tokens, broken.verdict) == (None, "equivalent")
    assert (dead.greedy_agreement_tokens, dead.verdict) == (None, "equivalent")


@pytest.mark.parametrize("n", [65, 200])
def test_a_longer_text_reads_back_at_every_beginning(tiny: ModelInfo, n: int) -> None:
    prompts = PromptSet(tiny)
    ids = prompts.score_ids(n)
    assert len(ids) == n
    assert ids == prompts.score_ids(n)
    first = len(ids) - (n if prompts.tokenizer.bos_id is None else n - 1)
    text = list(ids[first:])
    assert all(prompts._reads_back(text[:end]) for end in range(1, len(text) + 1))
