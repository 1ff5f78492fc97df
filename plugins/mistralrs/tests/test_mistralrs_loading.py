"""What the wheel loads and refuses, and what the process' environment does to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginecmp import ModelInfo
from enginecmp.models.quantize import FILE_TYPES
from enginecmp_mistralrs.facts import ARCHITECTURES

Run = Callable[..., Any]
Tiny = Callable[..., ModelInfo]


def test_the_listed_architectures_are_the_ones_that_the_wheel_knows(scenario: Run, tiny: Tiny, variant: Run) -> None:
    others = ("gpt2", "bert", "mamba", "falcon", "bloom", "rwkv6")
    models = [
        msgspec.structs.replace(variant(tiny(), {"general.architecture": ("STRING", name)}), architecture=name)
        for name in (*ARCHITECTURES, *others)
    ]
    said = scenario("architectures", models=models)
    unknown = {name for name, message in said.items() if "Unknown normal-model GGUF architecture" in message}
    assert unknown.isdisjoint(ARCHITECTURES)
    assert unknown == set(others)


def test_every_quantization_that_can_be_derived_loads_and_generates(
    scenario: Run, tiny: Tiny, prompt: list[int]
) -> None:
    models = [tiny("llama", name) for name in FILE_TYPES]
    found = scenario("quantizations", models=models, token_ids=prompt)
    assert found == dict.fromkeys(FILE_TYPES, 5)


def test_an_architecture_of_no_loader_is_unsupported_in_one_line(scenario: Run, tiny: Tiny) -> None:
    kind, message = scenario("refused_load", model=tiny("gpt2"))
    assert kind == "UnsupportedModel"
    assert message.startswith("mistralrs: could not load 'gpt2-F32.gguf' (gpt2, F32): Unknown")
    assert "\n" not in message


def test_a_missing_tensor_is_unsupported_and_named_without_the_native_trace(
    scenario: Run, tiny: Tiny, variant: Run
) -> None:
    kind, message = scenario("refused_load", model=variant(tiny(), {}, tensors_without="blk.1.attn_q.weight"))
    assert kind == "UnsupportedModel"
    assert "self_attn.q_proj" in message
    assert "\n" not in message


@pytest.mark.parametrize("threads", [1, 3])
def test_the_engine_computes_with_as_many_threads_as_asked(
    scenario: Run, tiny: Tiny, prompt: list[int], threads: int
) -> None:
    names = scenario("thread_names", threads=threads, model=tiny(), token_ids=prompt)
    # The caller computes too: the pool of Candle's kernels has one thread less.
    assert [name for name in names if name.startswith("candle-bp")] == [f"candle-bp-{n}" for n in range(threads - 1)]


def test_no_prompt_is_kept_for_the_next_request(scenario: Run, tiny: Tiny, prompt: list[int], tmp_path: Path) -> None:
    scenario("request", environment={"RUST_LOG": "info"}, model=tiny(), token_ids=prompt, output_tokens=3)
    log = (tmp_path / "stdout.txt").read_text()
    # The engine says so when it keeps prompts; without that line its log must be there at all.
    assert "mistral.rs version: " in log
    assert "Prefix caching enabled" not in log


def test_one_process_has_one_kv_cache_type(scenario: Run, tiny: Tiny) -> None:
    kind, message = scenario("two_kv_types", model=tiny())
    assert kind == "EngineError"
    assert message.endswith("already runs with KV cache 'f32', 'auto' was asked for; start a new process")


def test_a_path_with_spaces_and_semicolons_loads(scenario: Run, tiny: Tiny, prompt: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a folder; with" / "two words;.gguf"
    path.parent.mkdir()
    path.hardlink_to(tiny().path)
    model = msgspec.structs.replace(tiny(), path=str(path))
    assert scenario("request", model=model, token_ids=prompt, output_tokens=3)["total"] == 2


def test_a_model_that_names_its_base_on_a_hub_loads_offline(
    scenario: Run, tiny: Tiny, variant: Run, prompt: list[int]
) -> None:
    model = variant(
        tiny(),
        {
            "general.base_model.count": ("UINT32", 1),
            "general.base_model.0.repo_url": ("STRING", "https://huggingface.co/owner/some-model"),
        },
    )
    assert scenario("request", model=model, token_ids=prompt, output_tokens=3)["total"] == 2
