"""What every engine must do, ours or not: `pytest --pyargs enginecmp.testing --engine NAME`."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp.gate import answers
from enginecmp.gate.divergence import divergence, exact_threshold
from enginecmp.gate.equivalence import REFERENCE_ENGINE
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.models.synth import write_synth
from enginecmp.plugins.discovery import discover
from enginecmp.plugins.plugin import Plugin
from enginecmp.testing.conftest import DEADLINES, Load, Prompts, Subject
from enginecmp.types import NO_ID, ModelInfo
from enginecmp.wire.answers import Answered

UNITS = (
    *("_bytes", "_seconds", "_tokens", "_per_second", "_per_step", "_joules", "_watts", "_count", "_switches"),
    *("_ratio", "_rate"),
)
COMPONENTS = {"embedding", "norm", "rope", "attention", "ffn", "lm_head", "sampling", "other"}

# Extension modules that discovery may load: the host's own needs and the standard library.
_ALLOWED_NATIVE = ("msgspec", "_", "numpy")

_LIST_NATIVE = """
import importlib, sys, sysconfig
importlib.import_module(sys.argv[1].partition(":")[0])
from enginecmp.plugins.manager import load_object, manager_with
manager_with(load_object(sys.argv[1])).hook.cmp_engine()
stdlib = sysconfig.get_paths()["stdlib"]
for name, module in sorted(sys.modules.items()):
    path = getattr(module, "__file__", None) or ""
    if path.endswith((".so", ".pyd")) and not (path.startswith(stdlib) and "site-packages" not in path):
        print(name)
"""


def logits_of(launch: Launch, token_ids: Sequence[int]) -> NDArray[np.float32] | None:
    return answers.logits_of(launch, token_ids, DEADLINES)


def scored(launch: Launch, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits, or skip the test where the engine scores nothing."""
    logits = logits_of(launch, token_ids)
    if logits is None:
        pytest.skip("the engine has no cmp_score")
    return logits


def generate(launch: Launch, token_ids: tuple[int, ...], output_tokens: int) -> Answered:
    answer = launch.request(token_ids, output_tokens, DEADLINES)
    assert answer["error"] is None, answer["error"]
    return answer


def test_discovery_loads_nothing_native(plugin: Plugin) -> None:
    if plugin.command:
        pytest.skip("an executable: discovery reads engines.toml alone")
    python = plugin.python or sys.executable
    result = subprocess.run(
        [python, "-P", "-c", _LIST_NATIVE, plugin.module], capture_output=True, text=True, check=True
    )
    loaded = [name for name in result.stdout.split() if not name.startswith(_ALLOWED_NATIVE)]
    assert loaded == [], "import native libraries inside cmp_load or cmp_probe, not at module import"


def test_facts_are_complete(plugin: Plugin) -> None:
    info = plugin.info
    assert info is not None
    assert re.fullmatch(r"[a-z][a-z0-9_]*", info.name)
    assert info.version
    assert info.licence
    assert info.devices
    assert info.architectures
    assert info.quantizations
    assert info.max_concurrency >= 1


def test_probe_says_it_can_run_here(subject: Subject) -> None:
    with subject.started() as launch:
        found = launch.probe(30)
    assert found.ok, f"{found.reason}; fix: {found.fix}"


def test_load_reports_metrics_with_units(subject: Subject) -> None:
    with subject.started() as launch:
        loaded = launch.load(subject.model, DEADLINES.load_seconds)
    assert loaded["end_ns"] > loaded["start_ns"]
    for name, value in loaded["metrics"].items():
        assert name.endswith(UNITS), f"metric '{name}' does not end with a unit: {UNITS}"
        assert np.isfinite(value)


@pytest.mark.parametrize("output_tokens", [1, 2, 12])
def test_a_request_gives_exactly_the_tokens_asked_for(launch: Launch, prompts: Prompts, output_tokens: int) -> None:
    answer = generate(launch, prompts[1], output_tokens)
    assert answer["output_tokens"] == output_tokens
    assert 1 <= len(answer["token_ns"]) <= output_tokens


def test_stamps_rise_inside_the_request(launch: Launch, prompts: Prompts) -> None:
    answer = generate(launch, prompts[0], 8)
    stamps = [answer["start_ns"], *answer["token_ns"], answer["end_ns"]]
    assert stamps == sorted(stamps)
    assert answer["token_ns"][0] > answer["start_ns"]


def test_metrics_of_a_request_have_units_and_seconds_of_its_own(launch: Launch, prompts: Prompts) -> None:
    asked = time.monotonic_ns()
    answer = generate(launch, prompts[1], 8)
    waited = (time.monotonic_ns() - asked) / 1e9
    assert [name for name in answer["metrics"] if not name.endswith(UNITS)] == []
    assert np.isfinite(list(answer["metrics"].values())).all()
    # What the engine says of prefill and decode, by its own clock or the device's, lies inside the wait for the answer.
    # (The last token's stamp is no bound on a busy machine: a device's last event can come behind it.)
    parts = [f"{clock}_{part}_seconds" for clock in ("engine", "device") for part in ("prefill", "decode")]
    seconds = [answer["metrics"].get(name, 0.0) for name in parts]
    assert min(seconds) >= 0
    assert max(sum(seconds[:2]), sum(seconds[2:])) <= waited


def test_decoded_tokens_are_the_most_likely_ones(launch: Launch, prompts: Prompts) -> None:
    answer = generate(launch, prompts[1], 8)
    if NO_ID in answer["ids"]:
        pytest.skip("the engine hands out text, not ids")
    generated = answer["ids"]
    logits = scored(launch, [*prompts[1], *generated[:-1]])
    rows = logits[len(prompts[1]) - 1 :]
    chosen = rows[np.arange(len(rows)), generated]
    # Two logits may tie to rounding; the chosen one must not be clearly below the best.
    np.testing.assert_allclose(chosen, rows.max(axis=1), atol=1e-3, rtol=0)


def test_reset_leaves_nothing_of_the_last_request(subject: Subject, prompts: Prompts) -> None:
    with subject.launched() as launch:
        fresh = generate(launch, prompts[0], 8)
        generate(launch, prompts[2], 12)
        after = generate(launch, prompts[0], 8)
        again = generate(launch, prompts[0], 8)
    assert after["ids"] == fresh["ids"]
    assert again["ids"] == fresh["ids"]


def test_logits_have_one_finite_row_per_position(launch: Launch, model: ModelInfo, prompts: Prompts) -> None:
    logits = logits_of(launch, prompts[1])
    if logits is None:
        pytest.skip("the engine has no cmp_score: every run will call it not comparable")
    assert logits.shape == (len(prompts[1]), model.vocabulary)
    assert np.isfinite(logits.max(axis=1)).all()
    assert not np.isnan(logits).any()


def test_logits_do_not_look_ahead(launch: Launch, prompts: Prompts) -> None:
    whole, part = scored(launch, prompts[1]), scored(launch, prompts[1][:9])
    assert divergence(whole[:9], part).max_kl < 1e-6


def failure_of(action: Callable[[], object]) -> LaunchFailure | None:
    """Return how a launch went wrong; None where it did not."""
    try:
        action()
    except LaunchFailure as failure:
        return failure
    return None


def refusal(launch: Launch, token_ids: tuple[int, ...], output_tokens: int) -> tuple[str, str]:
    """Return (class, message) of a request that must fail, before its clock started or after."""
    try:
        answer = launch.request(token_ids, output_tokens, DEADLINES)
    except LaunchFailure as failure:
        if failure.fatal:
            raise
        return failure.kind, str(failure)
    assert answer["error"] is not None, "expected an error, got tokens"
    return answer["error"]["type"], answer["error"]["message"]


def test_too_long_a_request_is_refused_and_the_engine_lives_on(launch: Launch, prompts: Prompts) -> None:
    kind, message = refusal(launch, prompts[2] * 3, 4)
    assert kind == "ContextOverflow"
    assert re.search(r"\d+", message), "say how many tokens came and how many fit"
    assert generate(launch, prompts[0], 4)["output_tokens"] == 4


def test_an_unknown_option_is_refused(subject: Subject) -> None:
    with pytest.raises(LaunchFailure) as failure, subject.launched(extra={"no_such_option": "1"}):
        pass
    assert failure.value.kind == "UnknownOption"
    assert "no_such_option" in str(failure.value)


def test_an_architecture_it_cannot_load_is_refused(plugin: Plugin, load: Load, tmp_path: Path) -> None:
    assert plugin.info is not None
    others = [a for a in ("gpt2", "phi3", "qwen2", "llama") if a not in plugin.info.architectures]
    if not others:
        pytest.skip("the engine loads every architecture that can be synthesized here")
    model = write_synth(tmp_path / "other.gguf", like=f"tiny-{others[0]}", quantization="F32", seed=0)
    with pytest.raises(LaunchFailure) as failure:
        load(model)
    assert failure.value.status == "error"


def test_batched_requests_give_the_same_tokens_as_single_ones(several: Launch, prompts: Prompts) -> None:
    single = [generate(several, prompt, 6)["ids"] for prompt in prompts]
    requests = [
        {"id": str(number), "token_ids": list(prompt), "output_tokens": 6} for number, prompt in enumerate(prompts)
    ]
    batched = several.call("batch", DEADLINES.decode_seconds, requests=requests)
    if batched is None:
        pytest.skip("the engine has no continuous batching of its own")
    assert [batched[str(number)] for number in range(len(prompts))] == single


def test_profile_names_known_components(launch: Launch, prompts: Prompts) -> None:
    found = launch.call("profile", DEADLINES.decode_seconds, token_ids=list(prompts[1]), n_tokens=4)
    if found is None:
        pytest.skip("the engine cannot tell its components apart")
    assert set(found["seconds"]) <= COMPONENTS
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert 0 < sum(found["seconds"].values()) <= 1.01 * (found["end_ns"] - found["start_ns"]) / 1e9


def test_unloading_ends_the_process_cleanly(subject: Subject, prompts: Prompts) -> None:
    with subject.launched() as launch:
        generate(launch, prompts[0], 2)
    assert launch.returncode == 0


def test_it_computes_what_the_reference_computes(
    subject: Subject, launch: Launch, prompts: Prompts, tmp_path: Path
) -> None:
    reference = next((p for p in discover() if p.name == REFERENCE_ENGINE and p.error is None), None)
    if reference is None or subject.plugin.name in (REFERENCE_ENGINE, "fake"):
        pytest.skip("nothing to compare with")
    if subject.model.quantization != "F32":
        pytest.skip("the engine cannot load a float32 file, so exactness cannot be shown")
    options = msgspec.structs.replace(subject.options, device="cpu", extra={})
    wanted = answers.score(
        EngineConfig("reference", reference, options), subject.model, prompts[2], tmp_path / "reference.log", DEADLINES
    )
    got = scored(launch, prompts[2])
    assert wanted is not None
    assert divergence(wanted, got).mean_kl < exact_threshold(subject.model)
