"""The measurement by itself, through real launches of two engines, and what is read from its runs."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from enginecmp import EngineError, Given, ModelInfo
from enginecmp.format.records import Sample
from enginecmp.testing.tiny_models import tiny_model
from enginecmp_diffusion.bound import cost, mean_of, questions
from enginecmp_diffusion.driver import drive
from enginecmp_diffusion.judge import TextJudge
from enginecmp_diffusion.overtake import read, table

PROMPT, OUTPUT = tuple(range(1, 9)), 8
CMP = str(Path(sys.executable).with_name("cmp"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return tiny_model(tmp_path_factory.mktemp("model"), "llada", "F32")


@pytest.fixture
def ask(model: ModelInfo) -> Callable[..., tuple[TextJudge, Mapping[str, Any]]]:
    def made(**variant: Any) -> tuple[TextJudge, Mapping[str, Any]]:
        judge = TextJudge(variant, Given(seed=1, token_ids=PROMPT, output_tokens=OUTPUT, model=model))
        parameters, amount = judge.question()
        assert amount == OUTPUT * variant.get("batch", 1)
        return judge, parameters

    return made


class Hook:
    """Stands for the worker's hook relay: calls one engine's functions, and keeps in which order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.given: dict[str, Any] = {}
        self.cmp_denoise = _Denoise(self)

    def cmp_reset(self, session: Any) -> None:
        self.calls.append("reset")

    def cmp_prefill(self, session: Any, token_ids: list[int], output_tokens: int) -> int:
        self.calls.append(f"prefill {len(token_ids)} {output_tokens}")
        return 100

    def cmp_decode(self, session: Any, n_tokens: int) -> Iterator[int]:
        self.calls.append(f"decode {n_tokens}")
        yield from range(101, 101 + n_tokens)


class _Denoise:
    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def get_hookimpls(self) -> list[int]:
        return [1]

    def __call__(self, session: Any, **given: Any) -> Iterator[list[tuple[int, int, int]]]:
        self._hook.calls.append("denoise")
        self._hook.given = given
        sequences, output = range(len(given["token_ids"])), given["output_tokens"]
        each = output // given["steps"]
        for step in range(given["steps"]):
            yield [(s, len(PROMPT) + step * each + n, 100) for s in sequences for n in range(each)]


def test_denoising_is_asked_for_as_the_variant_says_and_every_step_is_a_yield(ask: Any) -> None:
    judge, parameters = ask(steps=4, batch=2)
    hook = Hook()
    call = drive(hook, 1, parameters)
    assert call is not None
    answer = list(call())
    assert hook.calls == ["reset", "denoise"]
    assert hook.given["token_ids"] == [list(PROMPT), [*PROMPT[4:], *PROMPT[:4]]]
    assert answer[0] == [0, 8, 100, 0, 9, 100, 1, 8, 100, 1, 9, 100]
    told = judge.judge(answer, 1.0, [0.1, 0.3, 0.4, 0.5])
    assert told == {
        "forward_pass_seconds": pytest.approx(0.1),
        "tokens_per_forward_pass": 4.0,
        "same_ids_share": 1.0,
    }


def test_one_token_after_the_other_is_prefill_and_decode(ask: Any) -> None:
    judge, parameters = ask(decoding="autoregressive")
    hook = Hook()
    call = drive(hook, 1, parameters)
    assert call is not None
    answer = list(call())
    assert hook.calls == ["reset", "prefill 8 8", "decode 7"]
    assert answer[1] == [0, 9, 101]
    # The prompt's pass is another length than those of the tokens after it.
    told = judge.judge(answer, 1.0, [9.0, *(9.0 + 0.5 * n for n in range(1, 8))])
    assert told["forward_pass_seconds"] == 0.5
    assert told["tokens_per_forward_pass"] == 1.0


def test_ids_are_held_against_those_of_the_first_text(ask: Any) -> None:
    judge, _ = ask(steps=1)
    text = [[number for place in range(8, 16) for number in (0, place, 100)]]
    assert judge.judge(text, 1.0, [1.0])["same_ids_share"] == 1.0
    text[0][2] = 7
    assert judge.judge(text, 1.0, [1.0])["same_ids_share"] == 7 / 8


def test_an_engine_without_the_hook_does_not_offer_it_and_another_model_says_what_to_make(ask: Any) -> None:
    _, parameters = ask(steps=4)
    hook = Hook()
    with pytest.raises(EngineError, match=r"expected a diffusion model.*got one of llama; make one.*diffusion-small"):
        drive(hook, 1, {**parameters, "architecture": "llama"})
    hook.cmp_denoise.get_hookimpls = list  # type: ignore[method-assign]
    assert drive(hook, 1, parameters) is None


def text_of(*steps: tuple[int, ...]) -> list[list[int]]:
    return [[number for place in step for number in (0, place, 100)] for step in steps]


WHOLE = text_of((8, 9, 10, 11), (12, 13, 14, 15))


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("text", "expected a list of .sequence, position, id. for each forward pass"),
        ([[0, 8], [0, 9, 1]], "expected a list of .sequence, position, id. for each forward pass"),
        (text_of(tuple(range(8, 16))), "expected 2 forward passes, got 1"),
        (text_of(tuple(range(8, 16)), ()), "expected forward pass 1 to commit something, got nothing"),
        (text_of((8, 9, 10, 11), (12, 13, 14, 8)), "expected one id for position 8 of sequence 0, got a second one"),
        (text_of((8, 9, 10, 11), (12, 13, 14)), "expected ids of all 8 positions, got 7"),
        (text_of((7, 9, 10, 11), (12, 13, 14, 15)), "positions 8 to 15 of sequences 0 to 0, got position 7"),
        ([[1, 8, 100], WHOLE[1]], "got position 8 of sequence 1"),
        ([[0, 8, 315], WHOLE[1]], r"expected an id in \[0, 315\) that is not the mask, got 315"),
        ([[0, 8, 314], WHOLE[1]], "that is not the mask, got 314"),
    ],
)
def test_what_is_no_text_is_refused(answer: Any, wrong: str, ask: Any) -> None:
    judge, _ = ask(steps=2)
    assert judge.judge(WHOLE, 1.0, [0.5, 1.0])
    with pytest.raises(ValueError, match=wrong):
        judge.judge(answer, 1.0, [0.5, 1.0])


def test_a_later_block_is_not_committed_before_its_turn(ask: Any) -> None:
    judge, _ = ask(steps=2, block_tokens=4)
    assert judge.judge(WHOLE, 1.0, [0.5, 1.0])
    with pytest.raises(ValueError, match="expected forward pass 0 to commit positions 8 to 11"):
        judge.judge(text_of((8, 9, 10, 12), (11, 13, 14, 15)), 1.0, [0.5, 1.0])


@pytest.mark.parametrize(
    ("variant", "wrong"),
    [
        ({}, "expected steps >= 1"),
        ({"steps": 0}, "expected steps >= 1"),
        ({"steps": 8, "batch": 0}, "Expected `int` >= 1"),
        ({"decoding": "else"}, "Invalid enum value 'else'"),
        ({"decoding": "autoregressive", "steps": 8}, "expected no steps"),
        ({"decoding": "autoregressive", "batch": 2}, "expected no steps, block_tokens or batch"),
        ({"step": 8}, "unknown field `step`"),
    ],
)
def test_a_wrong_variant_is_refused(variant: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        TextJudge(variant, Given())


@pytest.mark.parametrize(
    ("variant", "wrong"),
    [
        ({"steps": 16}, "at most 8, the output tokens; got 16"),
        ({"steps": 4, "block_tokens": 3}, "expected output_tokens to be whole blocks of 3, got 8"),
        ({"steps": 3, "block_tokens": 4}, "expected steps to be a multiple of 2, the blocks"),
    ],
)
def test_steps_that_do_not_share_out_the_output_are_refused(variant: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        TextJudge(variant, Given(token_ids=PROMPT, output_tokens=OUTPUT)).question()


def cell(variant: str) -> str:
    return f'[[cells]]\nprompt_tokens = 8\noutput_tokens = 8\nvariant = "{variant}"\n'


SCENARIO = f"""
primary_metric = "operation_seconds"
kind = "operation"
operation = "denoise"
[variants.in_turn]
decoding = "autoregressive"
[variants.4_steps]
steps = 4
[variants.4_steps_batch3]
steps = 4
batch = 3
{"".join(map(cell, ("in_turn", "4_steps", "4_steps_batch3")))}
[profile.quick]
blocks = 2
requests = 1
[validity]
floor_seconds = 1000
"""


def test_engines_are_compared_and_what_overtakes_is_read_from_the_run(model: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SCENARIO)
    line = [CMP, "run", "--engines", "llamacpp,pytorch_baseline", "--scenario", "small.toml", "--no-sensors"]
    line += ["--model", str(model.path)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("results/*/samples.jsonl")
    samples = [msgspec.json.decode(text, type=Sample) for text in path.read_bytes().splitlines()]
    measured = [sample for sample in samples if sample.phase == "measure"]
    assert [sample.status for sample in measured] == ["ok"] * 12
    of = {(sample.engine, sample.cell.variant): sample.metrics for sample in measured}
    for engine in ("llamacpp", "pytorch_baseline"):
        assert of[engine, "4_steps_batch3"]["tokens_per_forward_pass"] == 6.0
        assert of[engine, "in_turn"]["tokens_per_forward_pass"] == 1.0
        # Random weights in float32: engines that compute the same commit the same, near ties aside.
        assert of[engine, "4_steps"]["same_ids_share"] >= 0.75
        assert 0 < of[engine, "4_steps"]["forward_pass_seconds"] < of[engine, "4_steps"]["operation_seconds"]
    rows = read(path.parent)
    assert [row.where for row in rows] == [("llamacpp", 8, 8), ("pytorch_baseline", 8, 8)]
    for row in rows:
        assert list(row.denoised_seconds) == [4]
        assert row.low < row.steps < row.high
        assert row.launches == 2
        own = [sample for sample in measured if sample.engine == row.where[0]]
        times = {
            variant: [s.metrics["operation_seconds"] for s in own if s.cell.variant == variant]
            for variant in ("in_turn", "4_steps")
        }
        ratios = [4 * turn / steps for turn, steps in zip(times["in_turn"], times["4_steps"], strict=True)]
        assert row.steps == pytest.approx(math.sqrt(math.prod(ratios)))
    said = list(table(rows))
    assert said[0].startswith("llamacpp, 8 + 8 tokens: denoising takes less time in fewer than ")


def test_a_run_of_another_scenario_is_refused(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "enginecmp_diffusion", "overtake", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("enginecmp-diffusion: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_bound_of_a_model_that_knows_nothing_is_the_logarithm_of_its_vocabulary() -> None:
    texts = np.arange(40).reshape(2, 20) % 7
    asked = questions(texts, 5, seed=0)
    assert sorted({question.text for question in asked}) == [0, 1]
    assert all(cost(question, np.zeros((20, 7), np.float32)) == pytest.approx(math.log(7)) for question in asked)
    right = np.full((20, 7), -100.0, np.float32)
    right[np.arange(20), texts[0]] = 0
    assert cost(asked[0], right) == pytest.approx(0, abs=1e-6)


def test_masks_are_of_every_size_and_the_same_for_a_seed() -> None:
    texts = np.zeros((400, 16), np.int64)
    asked = questions(texts, 4, seed=3)
    sizes = np.bincount([len(question.masked) for question in asked], minlength=17)
    assert sizes[0] == 0
    assert 70 <= sizes[1:].min() <= sizes[1:].max() <= 130  # 1600 draws over 16 sizes
    again = questions(texts, 4, seed=3)
    assert all(np.array_equal(a.masked, b.masked) for a, b in zip(asked, again, strict=True))
    assert not all(np.array_equal(a.masked, b.masked) for a, b in zip(asked, questions(texts, 4, seed=4), strict=True))


def test_the_interval_of_a_mean_is_students() -> None:
    middle, half = mean_of(np.array([1.0, 2.0, 3.0]))
    assert middle == 2.0
    assert half == pytest.approx(4.302652729911275 / math.sqrt(3))  # t(0.975, 2) of published tables
