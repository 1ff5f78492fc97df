"""What the host makes of wrong answers of this engine's process: that launch fails, named, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from enginecmp.format.check import checked_line
from enginecmp.format.files import SAMPLES
from enginecmp.format.readers import finished_launches, read_manifest, whole_lines
from enginecmp.format.records import Cell, LaunchRecord, Sample
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.run.execute import execute
from enginecmp.run.request import RunRequest
from enginecmp.scenarios import Scenario
from enginecmp.telemetry.contention import Validity
from enginecmp.testing import damaging_engine
from enginecmp.testing.conftest import DEADLINES, Subject
from enginecmp.wire.deadlines import Deadlines

OUTPUT_TOKENS, REQUESTS = 4, 2
WHOLE = "whole"

# Damage → how the launch ends, and words of its reason.
ANSWERS = {
    "another shape": ("error", "expected object, got str at ok, in the answer to request"),
    "not a number": ("error", "expected finite numbers in metrics, got weights_bytes = nan"),
    "backwards": ("error", "expected start_ns <= token_ns (rising) <= end_ns"),
    "too many tokens": ("error", "at ok.output_tokens"),
    "no such token": ("error", "expected ids in [0, "),
    "the host's reading": ("error", "expected metrics without names that the host writes, got rss_bytes"),
    "nested": ("error", "nested too deep"),
    "too long": ("error", "expected an answer of at most"),
    "twice": ("error", "expected start_ns after the end of the answer before"),
    "dies in the middle": ("crash", "ended early, in the answer to request"),
}
LATE = {"byte by byte": "hung in ", "hangs in the middle": "hung in "}
STEPS = {
    "no list": "cmp_step returned a int, expected a list",
    "a stranger's token": "for request 'nobody', which was never submitted",
    "two tokens at once": "expected one at most",
}

Outcome = dict[str, tuple[LaunchRecord, list[Sample]]]


@pytest.fixture(scope="module")
def run(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Return a function that makes one run: a launch for each damage, and one of the engine as it is."""
    plugin = subject.plugin
    if not plugin.here:
        pytest.skip("an executable, or in an environment of its own: nothing stands between it and the wire")
    assert plugin.info is not None
    environment = {**plugin.info.environment, damaging_engine.MODULE_VARIABLE: plugin.module}
    damaging = msgspec.structs.replace(
        plugin,
        module=f"{damaging_engine.__name__}:engine",
        info=msgspec.structs.replace(plugin.info, environment=environment),
    )

    def measure(damages: Iterable[str], deadlines: Deadlines, concurrency: int, whole: bool) -> Outcome:
        given = {**subject.options.extra, **({"clock": "real"} if plugin.name == "fake" else {})}
        options = msgspec.structs.replace(subject.options, max_sequences=concurrency, extra=given)
        configs = [
            EngineConfig(
                damage, damaging, msgspec.structs.replace(options, extra={**given, damaging_engine.OPTION: damage})
            )
            for damage in damages
        ]
        configs += [EngineConfig(WHOLE, plugin, options)] if whole else []
        scenario = Scenario(
            name="hostile",
            profile="test",
            primary_metric="e2e_seconds",
            cells=(Cell(5, OUTPUT_TOKENS, concurrency),),
            blocks=1,
            requests=REQUESTS,
            deadlines=deadlines,
            validity=Validity(floor_seconds=1000, late_dispatch_seconds=1000, late_dispatch_share=1e9),
            gate=False,
        )
        folder = tmp_path_factory.mktemp("hostile") / "run"
        labels = [config.label for config in configs]
        request = RunRequest(
            scenario=scenario, model=subject.model, configs=configs, baseline=labels[-1], seed=1, sensors=False
        )
        execute(request, folder, say=lambda line: None)
        return _read(folder, labels)

    return measure


def _read(folder: Path, labels: list[str]) -> Outcome:
    """Return label → its launch and samples; whatever stands in the folder obeys the readers' rules."""
    assert read_manifest(folder).status == "complete"
    samples = list(whole_lines(folder / SAMPLES, Sample))
    assert [wrong for sample in samples if (wrong := checked_line(sample)[1])] == []
    (*records,) = finished_launches(folder)
    assert sorted(record.engine for record in records) == sorted(labels)
    return {record.engine: (record, [s for s in samples if s.engine == record.engine]) for record in records}


def require_failed(outcome: Outcome, damage: str, status: str, says: str) -> None:
    record, samples = outcome[damage]
    assert record.status == status, record.error
    assert record.error is not None
    assert record.error.startswith(f"{damage}: "), "the message names the engine first"
    assert says in record.error
    failed = [sample for sample in samples if sample.status != "ok"]
    assert failed[-1].status == status
    assert (failed[-1].error or "").startswith(record.error[:400])
    assert [s for s in samples if s.status == "ok" and s.phase == "measure"] == []


def require_untouched(outcome: Outcome) -> None:
    record, samples = outcome[WHOLE]
    assert record.status == "ok", record.error
    measured = [sample for sample in samples if sample.phase == "measure"]
    assert [(s.status, s.output_tokens) for s in measured] == [("ok", OUTPUT_TOKENS)] * len(measured)
    assert len(measured) >= REQUESTS


@pytest.fixture(scope="module")
def answers(run: Callable[..., Outcome]) -> Outcome:
    return run(ANSWERS, DEADLINES, 1, True)


@pytest.mark.parametrize("damage", ANSWERS)
def test_a_wrong_answer_fails_its_launch_and_is_named(answers: Outcome, damage: str) -> None:
    require_failed(answers, damage, *ANSWERS[damage])


def test_another_engine_of_the_run_is_untouched(answers: Outcome) -> None:
    require_untouched(answers)


def test_an_answer_that_does_not_come_whole_ends_at_the_deadline(run: Callable[..., Outcome]) -> None:
    short = msgspec.structs.replace(DEADLINES, prefill_seconds=1, decode_seconds=1)
    outcome = run(LATE, short, 1, False)
    for damage, says in LATE.items():
        require_failed(outcome, damage, "timeout", says)


def test_a_wrong_step_fails_its_launch_and_is_named(run: Callable[..., Outcome], subject: Subject) -> None:
    if not subject.plugin.batches:
        pytest.skip("the engine has no continuous batching of its own")
    outcome = run(STEPS, DEADLINES, 2, True)
    for damage, says in STEPS.items():
        require_failed(outcome, damage, "error", says)
    require_untouched(outcome)
