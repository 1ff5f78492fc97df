"""Comparable on the timed file: near the reference as it is timed, and the exact question has no answer."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from conftest import CommandLine
from helpers import only_run

from enginecmp.format.readers import read_manifest
from enginecmp.format.records import Equivalence, RunEngine
from enginecmp.gate.equivalence import run_gate
from enginecmp.gate.gate import Gate
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import LaunchFailure
from enginecmp.models.synth import write_synth
from enginecmp.plugins.plugin import Plugin
from enginecmp.prompts import PromptSet
from enginecmp.run.estimate import expected_seconds
from enginecmp.run.guess import gate_seconds
from enginecmp.run.request import RunRequest
from enginecmp.run.unproven import after_gate
from enginecmp.run.versions import Versions
from enginecmp.scenarios import load_scenario
from enginecmp.types import LoadOptions, ModelInfo, Probe
from enginecmp.wire.deadlines import Deadlines
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.export import to_json
from enginecmp_analysis.render.first_screen import first_screen
from enginecmp_analysis.render.layout import WIDTH
from enginecmp_analysis.render.table import render

TIMED_ONLY = "comparable on the timed file"


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    """A Q8_0 model, whose exact sibling is another file."""
    path = tmp_path_factory.mktemp("rounded") / "tiny-llama.gguf"
    return write_synth(path, like="tiny-llama", quantization="Q8_0", seed=0)


def verdicts(
    config: EngineConfig, timed: ModelInfo, exact: ModelInfo, logs: Path, **changes: bool
) -> list[tuple[str, str]]:
    """Return (file, verdict) for each entry of a gate whose reference is the engine's own plugin."""
    ids = PromptSet(timed).score_ids(16)
    gate = Gate(
        reference=config.plugin,
        timed=timed,
        exact=exact,
        token_ids=ids,
        logs=logs,
        deadlines=Deadlines(),
        max_kl=0.02,
        **changes,
    )
    return [(e.quantization, e.verdict) for e in run_gate([config], gate, lambda line: None)]


def engine(fake: Plugin, *, running: bool = False, **extra: str) -> EngineConfig:
    return EngineConfig("b", fake, LoadOptions(extra=extra), probed=Probe(ok=True, running=running))


@pytest.mark.parametrize(
    ("error", "exact", "timed"),
    [("0.01", "not proven", TIMED_ONLY), ("3", "not proven", "not comparable")],
)
def test_an_engine_without_exact_numerics_is_graded_by_the_timed_file(
    fake: Plugin, rounded: ModelInfo, tiny: ModelInfo, tmp_path: Path, error: str, exact: str, timed: str
) -> None:
    found = verdicts(engine(fake, exact="0", error=error), rounded, tiny, tmp_path)
    assert found == [("F32", exact), ("Q8_0", timed)]


def test_a_wrong_answer_to_the_exact_question_is_no_missing_one(
    fake: Plugin, rounded: ModelInfo, tiny: ModelInfo, tmp_path: Path
) -> None:
    found = verdicts(engine(fake, error="0.01"), rounded, tiny, tmp_path)
    assert found == [("F32", "not comparable"), ("Q8_0", "equivalent")]
    found = verdicts(engine(fake, nan="3"), rounded, tiny, tmp_path)
    assert {verdict for _, verdict in found} == {"not comparable"}


def test_an_engine_that_cannot_load_the_exact_file_is_graded_alike(
    fake: Plugin, rounded: ModelInfo, tiny: ModelInfo, tmp_path: Path
) -> None:
    assert fake.info is not None
    info = msgspec.structs.replace(fake.info, quantizations=("Q8_0",))
    lesser = msgspec.structs.replace(fake, info=info)
    config = EngineConfig("b", lesser, LoadOptions(extra={"error": "0.01"}))
    assert verdicts(config, rounded, tiny, tmp_path) == [("Q8_0", TIMED_ONLY)]
    # A race among settings asks the timed question alone, by design.
    assert verdicts(config, rounded, tiny, tmp_path, timed_only=True) == [("Q8_0", "equivalent")]


def test_an_engine_that_runs_already_is_not_asked_about_a_file_that_it_does_not_serve(
    fake: Plugin, rounded: ModelInfo, tiny: ModelInfo, tmp_path: Path
) -> None:
    found = verdicts(engine(fake, running=True, error="0.01"), rounded, tiny, tmp_path)
    assert found == [("Q8_0", TIMED_ONLY)]
    assert not (tmp_path / "gate-b-exact.log").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [("0.00001", ["equivalent"] * 2), ("0.01", ["not proven", TIMED_ONLY]), ("3", ["not comparable"] * 2)],
)
def test_where_it_serves_the_exact_file_its_answer_counts(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, error: str, expected: list[str]
) -> None:
    found = verdicts(engine(fake, running=True, error=error), tiny, tiny, tmp_path)
    assert [verdict for _, verdict in found] == expected


def entry(label: str, verdict: str, note: str = "") -> Equivalence:
    return Equivalence(engine=label, mean_kl=0.0, max_kl=0.0, top1=1.0, verdict=verdict, note=note)


@pytest.mark.parametrize(
    ("chosen", "of_a", "of_b", "expected"),
    [
        (False, TIMED_ONLY, "equivalent", "b"),
        (False, "not comparable", TIMED_ONLY, "b"),
        (False, TIMED_ONLY, TIMED_ONLY, "a"),
        (False, "equivalent", "reference", "a"),
        (True, TIMED_ONLY, "equivalent", "a"),
    ],
)
def test_the_default_baseline_is_a_proven_engine(
    fake: Plugin, tiny: ModelInfo, chosen: bool, of_a: str, of_b: str, expected: str
) -> None:
    server = Probe(ok=True, running=True, prove="-o '{label}.start=serve {model}'")
    request = RunRequest(
        scenario=load_scenario("sustained", "quick"),
        model=tiny,
        configs=[EngineConfig("a", fake, LoadOptions(), probed=server), EngineConfig("b", fake, LoadOptions())],
        baseline="a",
        baseline_chosen=chosen,
        seed=1,
    )
    said: list[str] = []
    assert after_gate(request, [entry("a", of_a, "exactness unproven: why"), entry("b", of_b)], said.append) == expected
    assert request.baseline == expected
    proof = [line for line in said if line.endswith("let cmp start it: -o 'a.start=serve {model}'")]
    assert len(proof) == (of_a == TIMED_ONLY)
    assert any(line.startswith("baseline: b, since a ") for line in said) == (expected == "b")


def test_a_version_that_only_the_loaded_engine_tells_is_that_of_the_whole_run(fake: Plugin) -> None:
    engines = [RunEngine(name="a", version="1.0")]
    configs = [EngineConfig("a", fake, LoadOptions())]
    versions = Versions(engines, configs)
    versions.loaded("reference", {"version": "of another"})
    versions.loaded("a", {})
    assert engines[0].version == "1.0"
    versions.loaded("a", {"version": "vLLM 0.32.0"})
    assert engines[0].version == "vLLM 0.32.0"
    for again in (versions, Versions(engines, configs)):
        again.loaded("a", {"version": "vLLM 0.32.0"})
        with pytest.raises(LaunchFailure, match=r"a: expected vLLM 0\.32\.0 .* got vLLM 0\.33"):
            again.loaded("a", {"version": "vLLM 0.33"})


def test_a_run_says_who_runs_there_and_how_to_prove_it(cmp: CommandLine, rounded: ModelInfo, tmp_path: Path) -> None:
    scenario = tmp_path / "mini.toml"
    scenario.write_text(
        'name = "mini"\nprimary_metric = "throughput_tokens_per_second"\n[[cells]]\nprompt_tokens = 8\n'
        "output_tokens = 6\n[profile.full]\nblocks = 10\nrequests = 10\nwarmup_requests = 1\n"
        "[validity]\nfloor_seconds = 1000\nlate_dispatch_seconds = 1000\nlate_dispatch_share = 1e9\n"
    )
    line = ["run", "--scenario", scenario, "--model", rounded.path, "--reference", "fake", "--no-sensors"]
    options = ["-o", "srv.running=served 2.0", "-o", "srv.error=0.01", "-o", "srv.decode_us=2000"]
    done = cmp(*line, "--engines", "srv=fake,other=fake", *options)
    assert done.returncode == 0, done.stderr
    proof = done.stderr.index("let cmp start it: -o 'srv.start=serve {model}'")
    assert done.stderr.index("gate: srv") < proof < done.stderr.index("block 1")
    run = only_run(tmp_path / "results")
    manifest = read_manifest(run)
    served = manifest.engines[0]
    assert (manifest.baseline, served.version, served.options["running"]) == ("other", "served 2.0", True)
    report = json.loads(cmp("stats", "--json", run).stdout)
    [primary] = [c for c in report["comparisons"] if c["primary"]]
    assert (primary["verdict"], primary["unproven"]) == ("slower", ["srv"])
    engines = {metric: {s["engine"] for s in report["summaries"] if s["metric"] == metric} for metric in METRICS}
    assert engines == {"load_seconds": {"other"}, "ttft_seconds": {"srv", "other"}}


METRICS = ("load_seconds", "ttft_seconds")


def test_every_table_says_the_word_beside_the_verdict() -> None:
    analysis = analyse([simulate_run(Design(ratio=0.8), gate=TIMED_ONLY)], Options())
    [primary] = [c for c in analysis.report.comparisons if c.primary]
    assert (primary.verdict, primary.unproven) == ("faster", ["engine"])
    first, whole = ([text for text, _ in lines] for lines in (first_screen(analysis, "x"), render(analysis)))
    assert all(len(text) <= WIDTH for text in [*first, *whole])
    assert "(exactness unproven: engine)." in " ".join(first)
    assert sum("exactness unproven" in text and " first" in text for text in first) == 1
    assert "; exactness unproven: engine" in " ".join(text.strip() for text in whole)
    assert msgspec.json.decode(to_json(analysis.report))["comparisons"][0]["unproven"] == ["engine"]
    proven = analyse([simulate_run(Design(ratio=0.8))], Options())
    assert all(c.unproven is msgspec.UNSET for c in proven.report.comparisons)


def test_a_forecast_holds_the_start_of_servers_and_the_gate(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    assert fake.info is not None
    remote = msgspec.structs.replace(fake, info=msgspec.structs.replace(fake.info, remote=True))
    scenario = load_scenario("sustained", "quick")
    there = Probe(ok=True, running=True, version="served 2.0")
    here = EngineConfig("a", fake, LoadOptions())
    started, running = (EngineConfig("s", remote, LoadOptions(), probed=p) for p in (Probe(ok=True), there))
    own, start, runs = (expected_seconds(scenario, tiny, [c], tmp_path)[0] for c in (here, started, running))
    assert start - own == pytest.approx(60 * scenario.blocks)
    assert runs == own
    gates = [gate_seconds(scenario, tiny, [config]) for config in (here, started, running)]
    assert gates[1] - gates[0] == pytest.approx(2 * 60)
    assert gates[2] == pytest.approx(gates[0] * 2 / 3)
    assert gate_seconds(msgspec.structs.replace(scenario, gate=False), tiny, [here]) == 0.0
