"""The small model: its network is the one that engines compute, and its training can be stopped and gone on with."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

import enginecmp_llamacpp
import enginecmp_pytorch_baseline
from enginecmp import ModelError
from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
from enginecmp.testing.sessions import sessions
from enginecmp_diffusion import corpus, file, trained, training
from enginecmp_diffusion.network import Shape

RECIPE = training.Recipe(
    shape=Shape(layers=1, width=32, heads=1, feed_forward=32, vocabulary=270, context=64),
    steps=6,
    easy_steps=2,
    batch=4,
    text_tokens=24,
)


@pytest.fixture(scope="module")
def text() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        # A part of it: what is tested is not how well it learns.
        few = tuple(topics[name] for name in sorted(topics)[:24])
        patch.setattr(corpus, "texts", lambda: few)
        yield corpus.read_corpus(RECIPE.shape.vocabulary)


def test_a_training_in_pieces_is_the_one_in_a_single_piece(text: Any, tmp_path: Path) -> None:
    told: list[int] = []

    def keep(progress: training.Progress) -> None:
        told.append(progress.step)

    whole = training.train(RECIPE, text, tmp_path / "whole", keep)
    pieces = None
    for _ in range(RECIPE.steps):  # one step a call
        assert pieces is None
        pieces = training.train(RECIPE, text, tmp_path / "pieces", keep, most_seconds=0)
    assert whole is not None
    assert pieces is not None
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, pieces.state_dict()[name]), name
    assert told == [6, 1, 2, 3, 4, 5, 6]


def test_another_recipe_does_not_go_on_with_what_is_there(text: Any, tmp_path: Path) -> None:
    training.train(RECIPE, text, tmp_path / "state", lambda _: None)
    other = training.Recipe(shape=RECIPE.shape, steps=6, easy_steps=2, batch=4, text_tokens=24, seed=1)
    told: list[int] = []
    training.train(other, text, tmp_path / "state", lambda progress: told.append(progress.step), most_seconds=0)
    assert told == [1]


@pytest.mark.parametrize("engine", [enginecmp_pytorch_baseline, enginecmp_llamacpp], ids=["pytorch", "llamacpp"])
def test_engines_compute_the_network_that_was_trained(
    engine: Any, text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = training.train(RECIPE, text, tmp_path / "state", lambda _: None)
    assert network is not None
    model = file.write(tmp_path / "small.gguf", network, text, "a test")
    ids = text.held_out[:24].copy()
    ids[5:15] = RECIPE.shape.vocabulary - 1
    with torch.inference_mode():
        wanted = network(torch.from_numpy(ids)[None])[0].numpy()
    for load in sessions(engine, monkeypatch):
        found = engine.cmp_score(load(model, context_tokens=64), ids.tolist())
        np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=0)


def test_the_files_tokenizer_reads_text_as_it_was_cut_for_training(text: Any, tmp_path: Path) -> None:
    network = training.train(RECIPE, text, tmp_path / "state", lambda _: None)
    assert network is not None
    model = file.write(tmp_path / "small.gguf", network, text, "a test")
    tokenizer = IsolatedTokenizer(model.path)
    (end,) = np.flatnonzero(text.held_out == RECIPE.shape.vocabulary - 2)[:1]
    ids = text.held_out[:end].tolist()
    assert tokenizer.encode(corpus.held_out_texts()[0]) == ids
    assert tokenizer.decode(ids) == corpus.held_out_texts()[0]


def test_texts_are_held_out_whole(text: Any) -> None:
    end = RECIPE.shape.vocabulary - 2
    assert corpus.held_out_texts() == [corpus.texts()[0], corpus.texts()[12]]
    assert int((text.held_out == end).sum()) == 2
    assert int((text.train == end).sum()) == 22


def test_docstrings_are_those_of_a_librarys_modules_without_its_tests(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text('"""B."""\nclass C:\n    """C."""\n\n    def d(self):\n        """D."""\n')
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/c.py").write_text('"""Not this."""\n')
    assert list(corpus._docstrings(tmp_path)) == ["B.\n\nC.\n\nD."]


def test_masks_of_easy_steps_are_few_and_each_text_has_one() -> None:
    random = np.random.default_rng(0)
    masked, shares = training._masks(1000, 96, random, 0.1, 0.3)
    assert 0.1 <= float(shares.min()) <= float(shares.max()) <= 0.3
    assert float(masked.float().mean()) == pytest.approx(0.2, abs=0.01)
    masked, shares = training._masks(1000, 24, random)
    assert bool(masked.any(dim=1).all())
    assert float(shares.max()) > 0.99


def test_another_number_of_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="leave the option out"):
        trained.write(path="x.gguf", quantization="F32", seed=0, layers=2)
