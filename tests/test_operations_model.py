"""The engines' single operations on real trained weights, against values that anybody can look up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginecmp.launch.launch import Launch
from enginecmp.models.store import resolve
from enginecmp.plugins.discovery import discover, find
from enginecmp.types import LoadOptions, ModelInfo

pytestmark = pytest.mark.model

TEXT = "The capital of France is"
IDS = [504, 3575, 282, 4649, 314]  # by the model's own tokenizer.json
PARIS = 7042  # " Paris"


@pytest.fixture(scope="module")
def q8_0() -> ModelInfo:
    return resolve("smollm2-135m-instruct:q8_0", fetch=True)


def results(launch: Launch, kind: str, **parameters: Any) -> list[Any]:
    """Prepare an operation and return what three calls of it give."""
    prepared = launch.call("prepare_operation", 60, kind=kind, parameters=parameters, least_ns=1)
    assert prepared is not None
    return [launch.call("operation", 60, calls=1)["result"] for _ in range(3)]


@pytest.mark.parametrize("engine", ["llamacpp", "mistralrs", "pytorch_baseline"])
def test_an_engine_offers_what_its_facts_say(engine: str, q8_0: ModelInfo, tmp_path: Path) -> None:
    plugin = find(engine, discover())
    assert plugin.info is not None
    options = LoadOptions(threads=1, context_tokens=64)
    with Launch(engine, plugin, log=tmp_path / "log", options=options) as launch:
        launch.load(q8_0, 120)
        assert results(launch, "tokenize", direction="encode", text=TEXT) == [IDS] * 3
        assert results(launch, "tokenize", direction="decode", token_ids=IDS) == [TEXT] * 3
        if "sampling" in plugin.info.operations:
            greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 1}
            assert results(launch, "sampling", token_ids=IDS, **greedy) == [PARIS] * 3
        if "profile" in plugin.info.operations:
            found = launch.call("profile", 60, token_ids=IDS, n_tokens=2)
            seconds = found["seconds"]
            wall_seconds = (found["end_ns"] - found["start_ns"]) / 1e9
            assert 0 < sum(seconds.values()) <= wall_seconds
            # Two thirds of the model's weights are in its feed-forward layers.
            assert seconds["ffn"] == max(seconds.values())
