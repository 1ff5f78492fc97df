"""What an engine cannot do it refuses in one line, and goes on: requests, files, options."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.prompts import PromptSet
from enginecmp.testing.conftest import Load, Prompts, Subject, Tiny
from enginecmp.testing.test_conformance import failure_of, generate, logits_of, refusal
from enginecmp.testing.tiny_models import changed_model
from enginecmp.types import ModelInfo


def cut(model: ModelInfo, folder: Path, size_bytes: int) -> ModelInfo:
    path = folder / "cut.gguf"
    path.write_bytes(Path(model.path).read_bytes()[:size_bytes])
    return msgspec.structs.replace(model, path=str(path))


BROKEN: dict[str, Callable[[ModelInfo, Path], ModelInfo]] = {
    "not there": lambda model, folder: msgspec.structs.replace(model, path=str(folder / "nowhere.gguf")),
    "no GGUF": lambda model, folder: cut(model, folder, 3),
    "header cut off": lambda model, folder: cut(model, folder, 1000),
    "last weights cut off": lambda model, folder: cut(model, folder, model.bytes - 1000),
    "a tensor missing": lambda model, _: changed_model(model, without=["blk.1.attn_q.weight"]),
    "another width than its tensors": lambda model, _: changed_model(
        model, {"llama.embedding_length": ("UINT32", 128)}
    ),
    "more layers than its tensors": lambda model, _: changed_model(model, {"llama.block_count": ("UINT32", 3)}),
    "heads that cannot be shared out": lambda model, _: changed_model(
        model, {"llama.attention.head_count_kv": ("UINT32", 3)}
    ),
}


@pytest.mark.parametrize("outside", [-1, "vocabulary", 2**40])
def test_an_id_outside_the_vocabulary_is_refused_and_the_engine_lives_on(
    launch: Launch, prompts: Prompts, model: ModelInfo, outside: Any
) -> None:
    before = generate(launch, prompts[0], 4)["ids"]
    kind, message = refusal(launch, (*prompts[0], model.vocabulary if outside == "vocabulary" else outside), 4)
    assert kind in ("EngineError", "RoundTripError"), message
    assert generate(launch, prompts[0], 4)["ids"] == before


def test_an_empty_prompt_is_refused_and_the_engine_lives_on(launch: Launch, prompts: Prompts) -> None:
    kind, message = refusal(launch, (), 4)
    assert kind in ("EngineError", "RoundTripError"), message
    assert generate(launch, prompts[0], 4)["output_tokens"] == 4


def test_a_request_may_fill_the_context_and_no_more(launch: Launch, subject: Subject, model: ModelInfo) -> None:
    context = subject.options.context_tokens
    prompt = PromptSet(model).take(context - 7, key=0, seed=1)
    # The last token of an answer is never run, so it needs no place.
    assert generate(launch, prompt, 8)["output_tokens"] == 8
    kind, message = refusal(launch, prompt, 9)
    assert kind == "ContextOverflow"
    assert re.search(rf"\b{context}\b", message), f"say that the context holds {context}: {message}"


def test_a_prompt_to_score_may_fill_the_context_and_no_more(
    launch: Launch, subject: Subject, model: ModelInfo, prompts: Prompts
) -> None:
    context = subject.options.context_tokens
    if logits_of(launch, prompts[0]) is None:
        pytest.skip("the engine has no cmp_score")
    ids = PromptSet(model).score_ids(context + 1)
    logits = logits_of(launch, ids[:context])
    assert logits is not None
    assert len(logits) == context
    with pytest.raises(LaunchFailure, match=rf"\b{context}\b") as refused:
        logits_of(launch, ids)
    assert refused.value.kind == "ContextOverflow"


def test_a_context_that_no_memory_holds_is_no_crash(subject: Subject, prompts: Prompts) -> None:
    """An engine may cut it down to what the model has, grow its cache as it goes, or refuse; never die of it."""

    def run() -> None:
        with subject.launched(context_tokens=10**15) as launch:
            generate(launch, prompts[0], 2)

    refused = failure_of(run)
    assert refused is None or refused.status == "error", refused


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_and_the_next_one_loads(
    what: str, subject: Subject, tiny: Tiny, load: Load, prompts: Prompts, tmp_path: Path
) -> None:
    if subject.plugin.name == "fake":
        pytest.skip("the fake engine reads no file")
    model = tiny("llama")
    launch = load(model)
    broken = BROKEN[what](model, tmp_path)
    if refused := failure_of(lambda: load(broken)):
        assert refused.status == "error", refused
        kind, message = refused.kind, str(refused)
    else:  # weights that do not fit together may show when they are multiplied, an end that is missing must not
        assert not what.endswith("cut off"), "it loads a file whose end is missing"
        kind, message = refusal(launch, prompts[0], 2)
    assert kind in ("UnsupportedModel", "ModelError", "EngineError"), message
    assert load(model) is launch
    assert generate(launch, prompts[0], 2)["output_tokens"] == 2


def test_an_option_misspelt_names_the_right_one(subject: Subject) -> None:
    assert subject.plugin.info is not None
    tunables = {name.partition(":")[::2] for name in subject.plugin.info.tunables}
    names = [option or name for name, option in tunables if not option or name == subject.options.device]
    name = next((name for name in sorted(names) if name != "threads"), None)
    if name is None:
        pytest.skip("the engine names no option of its own in EngineInfo.tunables")
    with pytest.raises(LaunchFailure, match=rf"\b{name}\b") as refused, subject.launched(extra={f"{name}x": "1"}):
        pass
    assert refused.value.kind == "UnknownOption"
