"""What an engine that samples, or ends at end-of-sequence, must do: its own softmax, its seed, its last id."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.plugins.plugin import Plugin
from enginecmp.testing.conftest import DEADLINES, Prompts
from enginecmp.testing.test_conformance import logits_of, scored
from enginecmp.types import GREEDY, NO_ID, Decoding

REQUESTS = 200
"""Single draws, each with a seed of its own, always the same ones: what passes once passes always."""

BINS = 8
LEAST_P = 1e-5

STRATEGIES = {"temperature": {}, "top_k": {"top_k": 12}, "all": {"top_k": 40, "top_p": 0.8}}


def require(plugin: Plugin, what: str) -> None:
    """Skip where the engine does not offer it."""
    assert plugin.info is not None
    if what not in plugin.info.decoding:
        pytest.skip(f"the engine does not offer {what} (EngineInfo.decoding)")


def ids_of(launch: Launch, prompt: tuple[int, ...], tokens: int, decoding: Decoding = GREEDY) -> list[int]:
    answer = launch.request(prompt, tokens, DEADLINES, decoding)
    assert answer["error"] is None, answer["error"]
    if NO_ID in answer["ids"]:
        pytest.skip("the engine hands out text, not ids")
    assert answer["output_tokens"] == len(answer["ids"])
    return answer["ids"]


def chances_of(logits: NDArray[np.float32], decoding: Decoding) -> NDArray[np.float64]:
    """Return the distribution (vocabulary,) that a draw must have, in float64.

    Temperature, then top-k, then the fewest most likely ids that reach top_p (Holtzman et al. 2020, eq. 2).
    """
    chances = np.exp((logits.astype(np.float64) - logits.max()) / decoding.temperature)
    order = np.argsort(-chances, kind="stable")
    if decoding.top_k:
        chances[order[decoding.top_k :]] = 0
    chances /= chances.sum()
    before = np.concatenate(([0.0], np.cumsum(chances[order])[:-1]))
    chances[order[before >= decoding.top_p]] = 0
    return np.asarray(chances / chances.sum())


def flattening(logits: NDArray[np.float32]) -> float:
    """Return a temperature at which no id has more than a third of the chance, so that draws tell something."""
    return next(
        t for t in (0.7, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0) if chances_of(logits, Decoding(temperature=t)).max() < 1 / 3
    )


def bins_of(chances: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Return the ids that can be drawn in bins of about equal chance, the most likely ones first.

    By rank, so that a wrong temperature, which moves chance from likely ids to unlikely ones, fills the wrong bins.
    """
    order = np.argsort(-chances, kind="stable")
    order = order[chances[order] > 0]
    edges = np.floor(BINS * (np.cumsum(chances[order]) - chances[order] / 2)).astype(int)
    return [order[edges == number] for number in np.unique(edges)]


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_sampled_ids_follow_the_softmax_of_the_engine_s_own_logits(
    launch: Launch, plugin: Plugin, prompts: Prompts, strategy: dict[str, Any]
) -> None:
    """Pearson's chi-square of many requests' first ids."""
    from scipy import stats

    require(plugin, "sampling")
    logits = scored(launch, prompts[0])
    decoding = Decoding(temperature=flattening(logits[-1]), **strategy)
    chances = chances_of(logits[-1], decoding)
    drawn = [
        ids_of(launch, prompts[0], 1, msgspec.structs.replace(decoding, seed=1 + seed))[0] for seed in range(REQUESTS)
    ]
    counts = np.bincount(drawn, minlength=len(chances))
    # Where the next id is as likely as the last one kept, to rounding, either may be in.
    assert counts[chances < 0.9 * chances[chances > 0].min()].sum() == 0, "ids that top-k or top-p leave out"
    bins = bins_of(chances)
    assert len(bins) >= 3, "the distribution is too narrow to tell anything"
    expected = np.array([chances[ids].sum() for ids in bins])
    seen = np.array([counts[ids].sum() for ids in bins])
    p = float(stats.chisquare(seen, expected / expected.sum() * seen.sum()).pvalue)
    assert p >= LEAST_P, f"chi-square over {len(bins)} bins of {REQUESTS} draws: p = {p:.2g}"


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_later_ids_are_drawn_from_their_own_distributions(
    launch: Launch, plugin: Plugin, prompts: Prompts, strategy: dict[str, Any]
) -> None:
    """The surprise of all ids together has the entropy of their distributions as its mean, within 5 deviations."""
    require(plugin, "sampling")
    first = scored(launch, prompts[0])
    excess = variance = 0.0
    for seed in range(6):
        decoding = Decoding(temperature=flattening(first[-1]), **strategy, seed=100 + seed)
        ids = ids_of(launch, prompts[seed % 2], 16, decoding)
        logits = logits_of(launch, [*prompts[seed % 2], *ids[:-1]])
        assert logits is not None
        for token, row in zip(ids, logits[-len(ids) :], strict=True):
            chances = chances_of(row, decoding)
            assert chances[token] > 0 or row[token] >= row[chances > 0].min() - 1e-3, "an id that is cut off"
            surprise = -np.log(np.maximum(chances, 1e-300))
            entropy = float((chances * surprise).sum())
            excess += min(surprise[token], 50.0) - entropy
            variance += float((chances * surprise**2).sum()) - entropy**2
    assert abs(excess) <= 5 * np.sqrt(variance)


def test_the_same_seed_gives_the_same_ids_and_another_one_others(
    launch: Launch, plugin: Plugin, prompts: Prompts
) -> None:
    require(plugin, "sampling")
    decoding = Decoding(temperature=1.0, seed=11)
    first, again = (ids_of(launch, prompts[1], 12, decoding) for _ in range(2))
    other = ids_of(launch, prompts[1], 12, msgspec.structs.replace(decoding, seed=12))
    assert first == again
    assert first != other


def test_a_request_without_a_decoding_is_greedy_again(launch: Launch, plugin: Plugin, prompts: Prompts) -> None:
    require(plugin, "sampling")
    greedy = ids_of(launch, prompts[1], 12)
    sampled = ids_of(launch, prompts[1], 12, Decoding(temperature=1.5, seed=5))
    assert sampled != greedy
    assert ids_of(launch, prompts[1], 12) == greedy


def test_one_id_left_by_top_k_or_top_p_is_the_greedy_one(launch: Launch, plugin: Plugin, prompts: Prompts) -> None:
    require(plugin, "sampling")
    greedy = ids_of(launch, prompts[1], 8)
    for strategy in ({"top_k": 1}, {"top_p": 1e-6}):
        assert ids_of(launch, prompts[1], 8, Decoding(temperature=0.7, seed=2, **strategy)) == greedy


def test_a_request_ends_with_the_first_end_id(launch: Launch, plugin: Plugin, prompts: Prompts) -> None:
    require(plugin, "end_of_sequence")
    greedy = ids_of(launch, prompts[1], 12)
    for place in (0, 3, 11):
        last = greedy.index(greedy[place])
        assert ids_of(launch, prompts[1], 12, Decoding(end_ids=(greedy[place],))) == greedy[: last + 1]
    assert ids_of(launch, prompts[1], 12) == greedy


def test_an_end_id_that_never_comes_changes_nothing(launch: Launch, plugin: Plugin, prompts: Prompts) -> None:
    require(plugin, "end_of_sequence")
    greedy = ids_of(launch, prompts[1], 12)
    absent = next(token for token in range(100) if token not in greedy)
    assert ids_of(launch, prompts[1], 12, Decoding(end_ids=(absent,))) == greedy


def test_a_batch_samples_and_ends_as_single_requests_do(several: Launch, plugin: Plugin, prompts: Prompts) -> None:
    assert plugin.info is not None
    for what in ("sampling", "end_of_sequence"):
        require(plugin, what)
    plain = [Decoding(temperature=1.0, seed=70 + number) for number in range(len(prompts))]
    free = [ids_of(several, prompt, 9, decoding) for prompt, decoding in zip(prompts, plain, strict=True)]
    # One ends early, one is greedy, one goes on to its last token.
    decodings = [msgspec.structs.replace(plain[0], end_ids=(free[0][4],)), GREEDY, plain[2]]
    single = [ids_of(several, prompt, 9, decoding) for prompt, decoding in zip(prompts, decodings, strict=True)]
    requests = [
        {"id": str(n), "token_ids": list(ids), "output_tokens": 9, "decoding": msgspec.to_builtins(decoding)}
        for n, (ids, decoding) in enumerate(zip(prompts, decodings, strict=True))
    ]
    answer = several.call("batch", DEADLINES.decode_seconds, requests=requests, every=0)
    if answer is None:
        pytest.skip("the engine has no continuous batching of its own")
    assert [answer[str(number)] for number in range(len(prompts))] == single


def test_what_an_engine_does_not_offer_it_refuses(launch: Launch, plugin: Plugin, prompts: Prompts) -> None:
    assert plugin.info is not None
    if plugin.info.decoding or plugin.command:
        pytest.skip("the engine offers some")
    with pytest.raises(LaunchFailure) as refused:
        launch.request(prompts[0], 2, DEADLINES, Decoding(temperature=1.0))
    assert "cmp_decoding" in str(refused.value)
