"""Scores against their own libraries, comparisons against what is known, generated code against its jail."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from enginecmp.errors import CmpError, UsageError
from enginecmp.models.synth import write_synth
from enginecmp_text_quality.compare import Difference, Score, compare
from enginecmp_text_quality.generate import cut, until
from enginecmp_text_quality.items import Item, read_items
from enginecmp_text_quality.sandbox import passes
from enginecmp_text_quality.scores import Scored, pass_at_k, score_code, score_texts

ITEMS = [
    Item(id="a", prompt="p", references=("the cat sat on the mat", "a cat was on the mat")),
    Item(id="b", prompt="p", references=("rain falls from dark clouds",)),
    Item(id="c", prompt="p", references=("bees make honey from nectar",)),
]
TEXTS = ["the cat sat on a mat", "rain comes from the clouds", "bees make  honey\nfrom nectar"]


def jailed() -> bool:
    """Say whether this machine can lock a process up."""
    try:
        return passes("x = 1", "assert x == 1")
    except CmpError:
        return False


needs_jail = pytest.mark.skipif(not jailed(), reason="no user namespaces here")


def test_corpus_scores_are_those_of_sacrebleu() -> None:
    texts = [" ".join(text.split()) for text in TEXTS]
    columns = [["the cat sat on the mat", "rain falls from dark clouds", "bees make honey from nectar"]]
    columns.append(["a cat was on the mat", None, None])  # type: ignore[list-item]
    bleu, chrf, _ = score_texts(ITEMS, TEXTS)
    assert bleu.value == pytest.approx(BLEU().corpus_score(texts, columns).score)
    assert chrf.value == pytest.approx(CHRF().corpus_score(texts, columns).score)
    assert "version:" in bleu.signature
    assert "nrefs:var" in bleu.signature


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    rouge = score_texts(ITEMS, TEXTS)[2]
    # the cat sat on mat: 5 of 6 and 6 words; rain from clouds: 3 of 5 and 5; all.
    expected = [5 / 6, 3 / 5, 1.0]
    assert rouge.per_item[:, 0].tolist() == pytest.approx(expected)
    assert rouge.value == pytest.approx(100 * sum(expected) / 3)


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 1), (1, 1, 1), (5, 2, 1), (5, 2, 3), (4, 4, 2), (6, 1, 6)])
def test_pass_at_k_is_the_share_of_draws_with_one_that_passes(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def means(values: Sequence[float]) -> Scored:
    per_item = np.array([[value, 1.0] for value in values])
    return Scored("ROUGE-L", "test", per_item, lambda sums: float(100 * sums[0] / sums[1]))


def compared(
    values: Mapping[str, Sequence[float]], floor: float = 0.0, same: bool = False
) -> tuple[dict[str, Score], dict[str, Difference]]:
    found = {label: means(list(of)) for label, of in values.items()}
    floors = {label: means([floor] * len(of)) for label, of in values.items()}
    texts = {label: [f"{'' if same else label}{n}" for n in range(len(of))] for label, of in values.items()}
    scores, differences = compare(found, floors, texts, next(iter(values)), seed=1)
    return {score.engine: score for score in scores}, {d.engine: d for d in differences}


def test_an_engine_that_is_better_in_every_item_is_told() -> None:
    base = np.random.default_rng(2).random(60)
    _, differences = compared({"base": base, "up": np.minimum(1, base + 0.1), "down": np.maximum(0, base - 0.1)})
    assert (differences["up"].verdict, differences["down"].verdict) == ("better", "worse")
    assert differences["up"].low > 0
    assert differences["up"].p_adjusted >= differences["up"].p_value


def test_noise_is_not_told_apart_and_the_limits_are_those_of_the_mean() -> None:
    random = np.random.default_rng(3)
    scores, differences = compared({"base": random.random(200), "other": random.random(200)})
    assert differences["other"].verdict == "not told apart"
    half = 196 * np.sqrt(1 / 12 / 200)
    assert (scores["base"].high - scores["base"].low) / 2 == pytest.approx(half, rel=0.15)


def test_false_alarms_keep_their_rate() -> None:
    random = np.random.default_rng(4)
    alarms = 0
    for _ in range(60):
        _, found = compared({"base": random.random(40), "other": random.random(40)})
        alarms += found["other"].verdict in ("better", "worse")
    assert alarms <= 9  # of 60 at 5 %: more has a probability of 0.001


def test_a_score_near_the_floor_is_never_ranked() -> None:
    random = np.random.default_rng(5)
    low, lower = 0.02 + 0.02 * random.random(60), 0.01 * random.random(60)
    scores, differences = compared({"base": low, "other": lower}, floor=0.02)
    assert scores["other"].near_floor
    assert differences["other"].verdict == "near the floor"
    assert differences["other"].p_value < 0.05  # that it would have been told apart without the rule


def test_the_same_texts_are_identical() -> None:
    _, differences = compared({"base": [0.5] * 10, "other": [0.5] * 10}, same=True)
    assert differences["other"].verdict == "identical"


def test_text_ends_at_the_first_stop_and_at_the_end_id() -> None:
    assert cut("a\nb###c", ["###", "\n"]) == "a"
    assert cut("abc", ["x"]) == "abc"
    assert until([5, 6, 2, 7], 2) == [5, 6]
    assert until([5, 6], None) == [5, 6]


@pytest.mark.parametrize("name", ["text", "code"])
def test_bundled_items_are_well_formed(name: str) -> None:
    items = read_items(name)
    assert len(items) >= 16
    assert len(read_items(name, 3)) == 3


LINE = {"id": "a", "prompt": "p", "references": ["r"]}


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "expected at least one item"),
        (["{"], "line 1: "),
        ([{**LINE, "x": 1}], "unknown field `x`"),
        ([{"id": "a", "prompt": "p"}], "expected references or tests, got neither"),
        ([{**LINE, "tests": "t"}], "expected references or tests, got both"),
        ([LINE, LINE], "line 2: expected an id of its own"),
        ([{**LINE, "output_tokens": 0}], "output_tokens from 1"),
        ([{**LINE, "prompt": ""}], "expected a prompt"),
        ([LINE, {"id": "b", "prompt": "p", "tests": "t"}], "got both; make two files of them"),
    ],
)
def test_a_wrong_file_is_one_line(lines: list[object], error: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(UsageError) as wrong:
        read_items(str(path))
    assert error in str(wrong.value)
    assert str(path) in str(wrong.value)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'code'"):
        read_items("coed")


@needs_jail
@pytest.mark.parametrize(
    ("program", "passing"),
    [
        ("def f(x):\n    return x + 1", True),
        ("import math\ndef f(x):\n    return math.floor(x + 1.5)", True),
        ("def f(x):\n    return x", False),
        ("def f(x:", False),
        ("import sys\nsys.exit(0)", False),
        ("import os\nos._exit(0)", False),
        ("while True: pass", False),
        ("x = [0] * (1 << 28)\ndef f(x):\n    return x + 1", False),
        ("open('/etc/passwd')\ndef f(x):\n    return x + 1", False),
        ("open('/tmp/x', 'w')\ndef f(x):\n    return x + 1", False),
        ("import os\nos.listdir('/usr')\ndef f(x):\n    return x + 1", False),
        ("import os\nassert os.listdir('/') == []\ndef f(x):\n    return x + 1", False),
        ("import os\nos.fork()\ndef f(x):\n    return x + 1", False),
        ("import os\nos.chroot('/')\ndef f(x):\n    return x + 1", False),
        ("import socket\ndef f(x):\n    return x + 1", False),
        ("import subprocess\ndef f(x):\n    return x + 1", False),
    ],
    ids=range(16),
)
def test_generated_code_is_run_locked_up(program: str, passing: bool) -> None:
    assert passes(program, "assert f(1) == 2") is passing


@needs_jail
def test_reference_solutions_pass_their_tests() -> None:
    add, *_ = read_items("code")
    assert score_code([add, add], ["    return a + b\n", "    return a - b\n"])[0].value == 50.0


@pytest.mark.parametrize("tasks", ["text", pytest.param("code", marks=needs_jail)])
def test_the_command_compares_engines(tasks: str, tmp_path: Path) -> None:
    model = write_synth(tmp_path / "tiny.gguf", like="tiny-llama", quantization="F32").path
    cmp = str(Path(sys.executable).with_name("cmp"))
    line = [cmp, "quality", "--engines", "one=fake,two=fake", "--tasks", tasks, "--model", model, "--seed", "1"]
    env = {**os.environ, "CMP_PLUGINS": "enginecmp.testing.fake_engine"}
    done = subprocess.run(
        [*line, "--limit", "3", "--answers", "a.jsonl", "--json"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {d["verdict"] for d in told["differences"]} == {"identical"}
    assert all(score["near_floor"] for score in told["scores"])
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 6


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    cmp = str(Path(sys.executable).with_name("cmp"))
    done = subprocess.run(
        [cmp, "quality", "--tasks", "none.jsonl"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "cmp: --tasks none.jsonl: No such file or directory\n")
