"""The files of docs/ci that users copy: they parse, and every command and name in them exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_docs import fault_of

from enginecmp.run.options import RunOptions
from enginecmp.run.suite import read_suite
from enginecmp.scenarios.loader import load_expectations, load_scenario
from enginecmp_analysis.data.metrics import METRICS
from enginecmp_analysis.decisions.limits import parse_limit

yaml = pytest.importorskip("yaml", reason="pyyaml comes with the development environment")

CI = Path(__file__).parent.parent / "docs" / "ci"
WORKFLOW = (CI / "enginecmp.yml").read_text(encoding="utf-8")


def steps() -> list[dict[str, Any]]:
    (job,) = yaml.safe_load(WORKFLOW)["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def commands() -> Iterator[list[str]]:
    """Yield the words of every command of ours."""
    for step in steps():
        for line in step.get("run", "").splitlines():
            words = shlex.split(line.partition(">>")[0])
            if words[:1] == ["cmp"]:
                yield words[1:]


def test_the_workflow_parses_and_every_step_does_one_thing() -> None:
    content = yaml.safe_load(WORKFLOW)
    # YAML 1.1 reads the key "on" as true.
    assert {"pull_request", "push"} == set(content[True])
    assert all(("run" in step) != ("uses" in step) for step in steps())
    assert all(re.fullmatch(r"actions/[a-z/-]+@v\d+", step["uses"]) for step in steps() if "uses" in step)


def test_every_script_is_shell() -> None:
    for step in steps():
        if "run" in step:
            done = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr


def test_every_command_is_one_of_ours_with_options_that_exist() -> None:
    found = list(commands())
    assert {words[0] for words in found} >= {"run", "compare", "stats", "report", "guide"}
    assert [f"cmp {' '.join(words)}: {fault}" for words in found if (fault := fault_of(words))] == []


def test_a_misspelt_option_would_be_found() -> None:
    assert "No such option" in str(fault_of(["run", "--suit", "x.toml"]))


def test_limits_of_the_workflow_name_metrics_that_exist() -> None:
    limits = [words[at + 1] for words in commands() for at, word in enumerate(words) if word == "--limit"]
    assert {parse_limit(limit, "critical")[0] for limit in limits} == {
        "ttft_seconds_p50",
        "throughput_tokens_per_second",
    }


def test_the_suite_names_scenarios_and_profiles_that_exist() -> None:
    name, parts = read_suite(CI / "suite.toml", RunOptions())
    assert name == "pull-request"
    for part in parts:
        assert load_scenario(part.options.scenario, part.options.profile).blocks >= 10


def test_the_targets_name_what_the_suite_measures() -> None:
    _, parts = read_suite(CI / "suite.toml", RunOptions())
    for claim in load_expectations(CI / "targets.toml"):
        assert claim.metric in {"ratio", *METRICS}
        assert claim.scenario in {part.options.scenario for part in parts}
        assert all(claim.engine in part.options.engines.split(",") for part in parts)


def test_what_the_job_reads_is_what_it_wrote_before() -> None:
    text = " ".join(word for words in commands() for word in words)
    for name in ("enginecmp/suite.toml", "enginecmp/targets.toml"):
        assert (CI / Path(name).name).is_file()
        assert name in text
    uploaded = next(step for step in steps() if step.get("uses", "").startswith("actions/upload-artifact"))
    for file in uploaded["with"]["path"].split():
        assert file in text or f"mkdir -p {file}" in WORKFLOW
