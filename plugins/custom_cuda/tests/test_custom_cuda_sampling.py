"""The sampling kernels against their definition in custom_cuda_oracle: which ids stay, which is drawn, how often."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from custom_cuda_oracle import sampling as oracle
from numpy.typing import NDArray
from scipy import stats

from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.engine.sampling.sampling import BINS, CUT_BYTES, Draws, Sampler, SamplingParams, Strategy

VOCABULARY = 613  # not a multiple of anything


class Rows:
    """Rows of logits on a device, and a sampler over them."""

    def __init__(self, device: Device, logits: NDArray[np.float32], count: Any = 0, position: Any = 0) -> None:
        self.device = device
        self.rows, self.vocabulary = logits.shape
        self._memory = []
        self.logits = self.put(logits)
        self.position = self.put(np.broadcast_to(np.int32(position), self.rows))
        self.count = self.put(np.broadcast_to(np.int32(count), self.rows))
        self.best = self.put(np.zeros(self.rows, np.uint64))
        self.sampler = Sampler(
            device,
            logits=self.logits,
            largest=self.best,
            position=self.position,
            count=self.count,
            best=self.best,
            rows=self.rows,
            vocabulary=self.vocabulary,
        )

    def put(self, array: Any) -> int:
        array = np.ascontiguousarray(array)
        self._memory.append(self.device.allocate(array.nbytes, "a test"))
        self.device.upload(self._memory[-1].address, array)
        return self._memory[-1].address

    def run(self, strategy: Strategy, *, undrawn: bool = False) -> NDArray[np.int64]:
        """Return the ids that a strategy draws; `undrawn` stops before."""
        launches = self.sampler.launches(strategy)
        for launch in launches[: -1 if undrawn else None]:
            launch.launch()
        best = self.device.download(self.best, self.rows, np.uint64)
        return 0xFFFFFFFF - (best & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def kept(self, strategy: Strategy) -> list[NDArray[np.bool_]]:
        """Return which ids of each row may be drawn, as the kernels before the draw have found."""
        self.run(Strategy(temperature=0))
        self.run(strategy, undrawn=True)
        cut = self.device.download(self.sampler._scratch["cut"].address, (self.rows, CUT_BYTES // 8), np.uint64)
        logits = self.device.download(self.logits, (self.rows, self.vocabulary), np.float32)
        self.clean()
        return [codes(row / np.float32(strategy.temperature)) >= each[0] for row, each in zip(logits, cut, strict=True)]

    def clean(self) -> None:
        for memory in self.sampler._scratch.values():
            self.device.fill(memory.address, memory.nbytes)

    def close(self) -> None:
        self.sampler.close()
        for memory in self._memory:
            memory.free()


@pytest.fixture
def rows(device: Device) -> Any:
    made: list[Rows] = []

    def make(logits: NDArray[Any], **more: Any) -> Rows:
        made.append(Rows(device, np.asarray(logits, np.float32), **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def codes(scores: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Rank as in the kernels: ordered bits above, inverted id below."""
    bits = (scores + np.float32(0)).view(np.uint32)  # the two zeros are equal
    order = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000)).astype(np.uint64)
    return (order << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - np.arange(len(scores), dtype=np.uint64))


def logits_like(kind: str, vocabulary: int = VOCABULARY) -> NDArray[np.float32]:
    random = np.random.default_rng(len(kind) + vocabulary)
    normal = random.standard_normal(vocabulary)
    made = {
        "normal": normal * 2.5,
        "peaked": np.where(np.arange(vocabulary) % 97 == 5, normal + 20, normal),
        "ties": np.round(normal * 2),
        "equal": np.full(vocabulary, -3.25),
        "wide": normal * 1e4,
        "narrow": 1000 + normal * 1e-2,
        "masked": np.where(np.arange(vocabulary) % 3, normal, -np.inf),
    }[kind]
    return np.asarray(made, np.float32)


KINDS = ("normal", "peaked", "ties", "equal", "wide", "narrow", "masked")


def test_the_mirror_of_the_parameters_is_as_large_as_the_kernels_say(device: Device) -> None:
    from enginecmp_custom_cuda.device import build

    for name in ("histogram", "gather", "cut", "draw"):
        size = build(device, "sampling", {}).kernel(f"sampling_{name}").parameter_bytes
        assert size in (None, ctypes.sizeof(SamplingParams))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 2, 40, VOCABULARY - 1, VOCABULARY, 10**6])
def test_top_k_keeps_exactly_the_most_likely(rows: Any, kind: str, top_k: int) -> None:
    logits = logits_like(kind)
    for temperature in (0.7, 30.0):
        (kept,) = rows(logits[None]).kept(Strategy(temperature=temperature, top_k=top_k))
        wanted = oracle.candidates(logits / np.float32(temperature), top_k, 1.0)
        assert np.flatnonzero(kept).tolist() == np.flatnonzero(wanted).tolist()


def boundary_is_clear(scores: NDArray[np.float32], top_k: int, top_p: float) -> bool:
    """Whether float32's last digits cannot change which ids reach top_p."""
    return bool(
        (oracle.candidates(scores, top_k, top_p * (1 - 1e-5)) == oracle.candidates(scores, top_k, top_p)).all()
        and (oracle.candidates(scores, top_k, top_p * (1 + 1e-5)) == oracle.candidates(scores, top_k, top_p)).all()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [0, 1, 25, 500])
def test_top_p_keeps_the_fewest_that_reach_it_whole_vocabulary_included(rows: Any, kind: str, top_k: int) -> None:
    logits = logits_like(kind)
    over = rows(logits[None])
    checked = 0
    for temperature, top_p in ((1.0, 1e-6), (0.8, 0.3), (1.0, 0.5003), (1.3, 0.9007), (50.0, 0.999), (1.0, 0.99)):
        scores = logits / np.float32(temperature)
        if not boundary_is_clear(scores, top_k, top_p):
            continue
        (kept,) = over.kept(Strategy(temperature=temperature, top_k=top_k, top_p=top_p))
        wanted = oracle.candidates(scores, top_k, top_p)
        assert np.flatnonzero(kept).tolist() == np.flatnonzero(wanted).tolist(), (temperature, top_p)
        checked += 1
    assert checked >= 3


def test_a_nucleus_can_be_the_whole_vocabulary(rows: Any) -> None:
    logits = np.linspace(0, 0.5, VOCABULARY, dtype=np.float32)
    top_p = 1 - 0.5 / VOCABULARY / 2  # the last one is needed, and no more than it
    assert oracle.candidates(logits, 0, top_p).all()
    (kept,) = rows(logits[None]).kept(Strategy(temperature=1.0, top_p=top_p))
    assert kept.all()


STRATEGIES = (
    Strategy(temperature=0.7, seed=3),
    Strategy(temperature=1.0, seed=2**63 + 5),
    Strategy(temperature=1.0, top_k=7, seed=9),
    Strategy(temperature=1.2, top_p=0.6, seed=11),
    Strategy(temperature=0.9, top_k=30, top_p=0.8, seed=2**40),
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "masked"])
def test_ids_are_those_that_the_oracle_draws(rows: Any, strategy: Strategy, kind: str) -> None:
    """Every row is a step of its own; equal up to the last digits of the two largest noisy scores."""
    steps = np.arange(12) * 5 + 1
    logits = logits_like(kind)
    over = rows(np.tile(logits, (len(steps), 1)), count=steps)
    over.run(Strategy(temperature=0))
    drawn = over.run(strategy)
    scores = logits / np.float32(strategy.temperature)
    kept = oracle.candidates(scores, strategy.top_k, strategy.top_p)
    for step, got in zip(steps, drawn, strict=True):
        noisy = scores + oracle.gumbel(oracle.uniforms(strategy.seed, int(step), len(logits)))
        wanted = oracle.sample(logits, strategy.temperature, strategy.top_k, strategy.top_p, strategy.seed, int(step))
        assert kept[got]
        assert got == wanted or noisy[got] > noisy[wanted] - 1e-5
    assert len(set(drawn.tolist())) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_zero_takes_the_largest_and_the_lowest_of_equals(rows: Any, kind: str) -> None:
    logits = logits_like(kind)
    assert rows(logits[None]).run(Strategy(temperature=0, top_k=3, top_p=0.1)).tolist() == [int(np.argmax(logits))]


def test_rows_do_not_touch_each_other_and_an_empty_one_is_left_alone(rows: Any) -> None:
    logits = np.stack([logits_like(kind) for kind in ("normal", "peaked", "ties", "narrow")])
    strategy = Strategy(temperature=0.9, top_k=50, top_p=0.9, seed=1)
    together = rows(logits, count=4, position=[3, -1, 0, 9])
    greedy = together.run(Strategy(temperature=0))
    drawn = together.run(strategy)
    assert greedy[1] == drawn[1] == 0xFFFFFFFF, "best of the empty row was written"
    for row in (0, 2, 3):
        single = rows(logits[row][None], count=4)
        assert single.run(Strategy(temperature=0))[0] == greedy[row]
        assert single.run(strategy)[0] == drawn[row]


def test_the_scratch_memory_is_clean_after_every_draw(rows: Any) -> None:
    over = rows(logits_like("normal")[None])
    for strategy in STRATEGIES:
        over.run(Strategy(temperature=0))
        first = over.run(strategy)
        over.run(Strategy(temperature=0))
        assert over.run(strategy) == first, "the same seed and step draw the same id"
        scratch = over.sampler._scratch
        assert "bins" not in scratch or not over.device.download(scratch["bins"].address, (BINS, 2), np.uint64).any()
        assert not over.device.download(scratch["arrived"].address, 1, np.uint32).any()
        assert not over.device.download(scratch["drawn"].address, 1, np.uint64).any()


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(temperature=0.7, seed=77),
        Strategy(temperature=1.0, top_k=12, seed=78),
        Strategy(temperature=1.1, top_p=0.7, seed=79),
        Strategy(temperature=0.8, top_k=20, top_p=0.8, seed=80),
    ],
)
def test_draws_have_the_distribution_that_the_oracle_says(rows: Any, strategy: Strategy) -> None:
    logits = logits_like("normal", 60)
    scores = logits.astype(np.float64) / strategy.temperature
    chances = np.where(oracle.candidates(scores, strategy.top_k, strategy.top_p), np.exp(scores - scores.max()), 0)
    chances /= chances.sum()
    draws, each = 16, 128
    over = rows(np.tile(logits, (each, 1)))
    counts = np.zeros(len(logits))
    for number in range(draws):
        over.device.upload(over.count, np.arange(each, dtype=np.int32) + number * each)
        over.run(Strategy(temperature=0))
        counts += np.bincount(over.run(strategy), minlength=len(logits))
    assert counts[chances == 0].sum() == 0
    expected = chances * draws * each
    common = expected >= 8
    seen = [*counts[common], counts[~common].sum()]
    wanted = [*expected[common], expected[~common].sum()]
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    assert stats.chisquare(seen, wanted).pvalue > 1e-3


def test_a_held_draw_goes_on_in_the_noise_and_repeats_with_its_seed(device: Device) -> None:
    logits = logits_like("normal")
    memory = device.allocate(logits.nbytes, "logits")
    device.upload(memory.address, logits)
    strategy = Strategy(temperature=1.0, top_k=50, seed=21)
    first, second = (Draws(device, memory.address, len(logits), strategy) for _ in range(2))
    memory.free()
    drawn = [first.draw() for _ in range(8)]
    assert drawn == [second.draw() for _ in range(8)]
    assert drawn == [oracle.sample(logits, 1.0, 50, 1.0, 21, step) for step in range(8)]
    assert len(set(drawn)) > 1
