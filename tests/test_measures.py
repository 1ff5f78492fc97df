"""Measurements and models that plugins bring: the example of the documents, run, judged and analysed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import msgspec
import pytest
from conftest import CommandLine
from helpers import only_run, read_samples

from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.measures import Measure, MeasuredMetric
from enginecmp.measure.judged import JudgeError, JudgeProcess
from enginecmp.plugins.brought import brought
from enginecmp.plugins.discovery import bringing, discover
from enginecmp.plugins.facts import Facts, wrong_facts
from enginecmp.run.options import RunOptions
from enginecmp.run.prepare import make_scenario
from enginecmp.types import Given, ModelInfo
from enginecmp.wire.protocol import Progress
from enginecmp.worker.operations import Operations
from enginecmp_analysis.data.metrics import METRICS, learn

DOC = (Path(__file__).parent.parent / "docs" / "measures.md").read_text(encoding="utf-8")
(PLUGIN,) = re.findall(r"^```python\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)
(SCENARIO,) = re.findall(r"^```toml\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)
QUIET = "\n[validity]\nfloor_seconds = 1000\n"
"""Whose samples count however busy the machine is."""

OTHER = PLUGIN.partition("@hookimpl\ndef cmp_measures")[0].replace("full_sort", "guesses")
OTHER = OTHER.replace('np.argsort(values)[-parameters["k"] :]', 'np.arange(parameters["k"])')

Develop = Callable[..., None]


@pytest.fixture
def develop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Develop:
    """Make the plugin of the documents importable, with changes, beside others."""

    def make(*changes: tuple[str, str], scenario: str = SCENARIO + QUIET, **others: str) -> None:
        text = PLUGIN
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        for name, source in {"largest_numbers": text, **others}.items():
            (tmp_path / f"{name}.py").write_text(source)
        (tmp_path / "largest.toml").write_text(scenario)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("CMP_PLUGINS", ",".join(["largest_numbers", *others]))

    return make


def environment(tmp_path: Path, *modules: str) -> dict[str, str]:
    return {"PYTHONPATH": str(tmp_path), "CMP_PLUGINS": ",".join(modules), "ENGINECMP_CACHE": str(tmp_path / "cache")}


def test_the_example_of_the_documents_runs_and_is_analysed_without_it(
    develop: Develop, cmp: CommandLine, tmp_path: Path
) -> None:
    develop(guesses=OTHER)
    env = environment(tmp_path, "largest_numbers", "guesses")
    line = ["run", "--engines", "full_sort,guesses", "--scenario", "largest", "--no-sensors", "--blocks", "2"]
    done = cmp(*line, "--requests", "3", env=env)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    measured = [s for s in read_samples(run) if s.phase == "measure"]
    assert len(measured) == 2 * 2 * 2 * 3
    assert {s.metrics["found_share"] for s in measured if s.engine == "full_sort"} == {1.0}
    assert max(s.metrics["found_share"] for s in measured if s.engine == "guesses") < 0.5
    assert {s.prompt_tokens for s in measured} == {1000, 20000}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["scenario"]["measure"]["metrics"][0]["what"] == "largest numbers that were found / k"
    # Nothing of the plugin is there any more.
    alone = cmp("stats", str(run), env={"CMP_PLUGINS": "", "PYTHONPATH": ""})
    assert alone.returncode == 0, alone.stderr
    told = re.findall(r"found_share: full_sort 1.00, guesses|found_share: guesses \S+, full_sort 1.00", alone.stdout)
    assert len(told) == 2
    assert "answers judged" in alone.stdout
    assert "not checked" not in alone.stdout + alone.stderr


def test_a_wrong_answer_ends_the_launch_in_one_line(develop: Develop, cmp: CommandLine, tmp_path: Path) -> None:
    develop(('[-parameters["k"] :]', "[:1]"))
    line = ["run", "--engines", "full_sort", "--scenario", "largest", "--no-sensors", "--max-extra", "0"]
    done = cmp(*line, "--blocks", "1", "--requests", "1", env=environment(tmp_path, "largest_numbers"))
    assert "full_sort: largest (" in done.stderr
    assert "expected 10 places, got [" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_variant_is_refused_before_anything_starts(develop: Develop) -> None:
    develop(scenario=SCENARIO.replace("values = 1000", "values = 5"))
    with pytest.raises(UsageError, match=r"\[variants.small\]: largest: expected values >= k >= 1, got values = 5"):
        make_scenario(RunOptions(scenario="largest"))


def test_what_a_plugin_brings_is_named_by_the_child(develop: Develop) -> None:
    develop()
    found = brought()
    assert found.measures["largest"].judge == "largest_numbers:Judge"
    assert any(path.endswith("/largest.toml") for path in found.scenarios)
    assert "largest_numbers" not in sys.modules


def test_a_plugin_may_bring_no_engine(develop: Develop) -> None:
    develop((PLUGIN[PLUGIN.index("@hookimpl\ndef cmp_engine") : PLUGIN.index("@hookimpl\ndef cmp_measures")], ""))
    assert "largest" in brought().measures
    (plugin,) = (p for p in bringing() if p.module == "largest_numbers")
    assert plugin.info is None
    assert "largest_numbers" not in {p.module for p in discover()}


def facts(**changes: object) -> Facts:
    measure = msgspec.structs.replace(Measure(name="m", judge="a.b:C"), **changes)
    return Facts(hooks=("cmp_measures",), measures=(measure,))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"name": "Bad name"}, "expected a name of up to 64 lower case letters"),
        ({"judge": "no place"}, "expected 'package.module:name', got 'no place'"),
        ({"driver": "a:b:c"}, "expected 'package.module:name', got 'a:b:c'"),
        ({"metrics": (MeasuredMetric(name="rss_bytes", what=""),)}, "which the host writes itself"),
        ({"metrics": (MeasuredMetric(name="a", what=""),) * 2}, "expected metrics named once"),
        ({"metrics": (MeasuredMetric(name="a", what="\x1b"),)}, "expected one line of printable text"),
    ],
)
def test_wrong_facts_of_a_measurement_are_named(changes: dict[str, object], wrong: str) -> None:
    assert wrong in next(wrong_facts(facts(**changes)))
    assert list(wrong_facts(facts())) == []


JUDGES = """
import os, time

class Judge:
    def __init__(self, parameters, given):
        pass
    def question(self):
        return {}, 1
    def judge(self, answer, seconds, marks):
        return eval(answer)
"""


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("{'other': 1.0}", "expected numbers named in its metrics, got other"),
        ("os._exit(3)", "exited with code 3"),
        ("{'share': 'x'}", "judge returned a str for 'share'"),
        ("[1]", "judge returned a list"),
        ("None.x", "AttributeError"),
    ],
)
def test_a_judge_that_says_something_else_is_named(
    answer: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cmp_test_judges.py").write_text(JUDGES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    metrics = (MeasuredMetric(name="share", what=""),)
    judge = JudgeProcess(Measure(name="odd", judge="cmp_test_judges:Judge", metrics=metrics), tmp_path / "log")
    try:
        assert judge.question("0", {}, Given()).amount == 1
        assert judge.judge("0", "{'share': len(answer)}", 1.0, []).judgement.metrics == {"share": 22.0}
        with pytest.raises(JudgeError, match=f"^odd: .*{re.escape(error)}"):
            judge.judge("0", answer, 1.0, [])
        # It starts again when it is asked again.
        assert judge.question("0", {}, Given()).amount == 1
    finally:
        judge.close()


def test_metrics_of_a_measurement_take_no_place_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginecmp_analysis.data.metrics.METRICS", dict(METRICS))

    def measure(name: str, **changes: bool) -> Measure:
        return Measure(name="m", judge="a:B", metrics=(MeasuredMetric(name=name, what="it", **changes),))

    learn(measure("new_share"))
    learn(measure("new_share"))
    with pytest.raises(ResultsError, match="is not another run's of that name"):
        learn(measure("new_share", higher_is_better=True))
    with pytest.raises(ResultsError, match="is not cmp's own of that name"):
        learn(measure("ttft_seconds"))


DRIVEN = """
from enginecmp import Measure, MeasuredMetric, hookimpl

@hookimpl
def cmp_measures():
    metrics = (MeasuredMetric(name="first_step_seconds", what="start to the first step"),
               MeasuredMetric(name="steps", what="steps of a call", compared=False),
               MeasuredMetric(name="index_build_seconds", what="what only the driver can time"))
    return [Measure(name="walk", judge="walks:Judge", driver="walks:walk", metrics=metrics, of_every_engine=True)]

class Walk:
    metrics = {"index_build_seconds": 0.5}
    def __init__(self, hook, session, token_ids):
        self.hook, self.session, self.token_ids = hook, session, token_ids
    def __call__(self):
        self.hook.cmp_reset(session=self.session)
        yield [self.hook.cmp_prefill(session=self.session, token_ids=self.token_ids, output_tokens=4)]
        for token in self.hook.cmp_decode(session=self.session, n_tokens=3):
            yield [token]

def walk(hook, session, parameters):
    return Walk(hook, session, parameters["token_ids"])

class Judge:
    def __init__(self, parameters, given):
        self.given = given
    def question(self):
        assert self.given.model.vocabulary
        return {"token_ids": list(self.given.token_ids)}, len(self.given.token_ids)
    def judge(self, answer, seconds, marks):
        assert len(answer) == len(marks) == 4 and 0 < marks[0] < marks[-1] <= seconds
        return {"first_step_seconds": marks[0], "steps": len(marks)}
"""

WALK = """
primary_metric = "first_step_seconds"
kind = "operation"
operation = "walk"
[variants.all]
[[cells]]
prompt_tokens = 7
output_tokens = 4
variant = "all"
[profile.quick]
blocks = 1
requests = 2
"""


def test_a_driver_makes_an_operation_of_every_engines_hooks(cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "walks.py").write_text(DRIVEN)
    (tmp_path / "walk.toml").write_text(WALK + QUIET)
    env = environment(tmp_path, "walks", "enginecmp.testing.fake_engine")
    line = ["run", "--engines", "fake", "--scenario", str(tmp_path / "walk.toml"), "--model", tiny.path]
    done = cmp(*line, "--no-gate", "--no-sensors", env=env)
    assert done.returncode == 0, done.stderr
    measured = [s for s in read_samples(only_run(tmp_path / "results")) if s.phase == "measure"]
    assert len(measured) == 2
    for sample in measured:
        assert sample.metrics["steps"] == 4
        assert sample.metrics["index_build_seconds"] == 0.5
        assert 0 < sample.metrics["first_step_seconds"] < sample.metrics["operation_seconds"]


MODELS = """
from enginecmp import hookimpl

@hookimpl
def cmp_models():
    return {"tiny-mine": "cmp_test_models:write", "tiny-broken": "cmp_test_models:broken"}

def write(path, quantization, seed, layers):
    from enginecmp.models.synth import write_synth
    write_synth(path, "tiny-llama", quantization, seed, layers)

def broken(path, quantization, seed, layers):
    raise OSError("no room")
"""


def test_a_plugins_model_is_written_by_a_child(cmp: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cmp_test_models.py").write_text(MODELS)
    env = environment(tmp_path, "cmp_test_models")
    made = cmp("model", "synth", "--like", "tiny_mine", "--quant", "F32", "-o", "a.gguf", env=env)
    assert made.returncode == 0, made.stderr
    plain = cmp("model", "synth", "--like", "tiny-llama", "--quant", "F32", "-o", "b.gguf", env=env)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes(), plain.stderr
    broken = cmp("model", "synth", "--like", "tiny-broken", "-o", "c.gguf", env=env)
    assert (broken.returncode, broken.stderr.strip()) == (1, "cmp: tiny-broken: OSError: no room")
    unknown = cmp("model", "synth", "--like", "tiny-min", "-o", "c.gguf", env=env)
    assert (unknown.returncode, "did you mean 'tiny-mine'?" in unknown.stderr) == (2, True)


def test_the_conformance_suite_holds_what_is_brought(develop: Develop, tmp_path: Path) -> None:
    def suite() -> str:
        line = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
        line += ["--pyargs", "enginecmp.testing", "-k", "conformance_brought", "--brings", "largest_numbers"]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path).stdout

    develop()
    assert suite().splitlines()[-1].startswith("4 passed")
    develop(('raise ValueError(f"expected {self.k} places, got {answer!r:.80}")', 'return {"found_share": 1.0}'))
    assert "a judge raises ValueError for an answer that is none" in suite()


class Elsewhere:
    """An operation that took an hour of a processor in processes of its own."""

    metrics: ClassVar = {"engine_cpu_seconds": 3600.0}

    def __call__(self) -> str:
        return "done"


class OneOperation:
    """Hooks of an engine that offers it."""

    def __call__(self, **_: object) -> Elsewhere:
        return Elsewhere()

    def get_hookimpls(self) -> list[object]:
        return [self]


def test_what_an_operation_computes_in_processes_of_its_own_is_no_load_of_others() -> None:
    fd = os.memfd_create("progress")
    os.truncate(fd, Progress.SIZE)
    hook = SimpleNamespace(cmp_reset=lambda session: None, cmp_operation=OneOperation())
    operations = Operations(hook, Progress(fd))
    os.close(fd)
    assert operations.prepare(None, {"kind": "any", "parameters": {}, "least_ns": 0}) == {"calls": 1}
    # A stranger is at work all the time, as the hour's worth of processes is taken to be.
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        found = [operations.run({"calls": 3_000_000})["metrics"]["foreign_cpu_seconds"] for _ in range(2)]
    finally:
        busy.kill()
        busy.wait()
    assert found == [0.0, 0.0]
