"""`cmp run --matrix`: several files, a run each; and the options of `cmp run` that are about quality."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from conftest import FAKE_MODULE, CommandLine
from helpers import ONE_CELL, only_run

from enginecmp.cli.matrix import names_of
from enginecmp.errors import UsageError
from enginecmp.format.readers import read_manifest
from enginecmp.format.records import Manifest
from enginecmp.models.synth import write_synth
from enginecmp.types import ModelInfo

SCENARIO = f"""{ONE_CELL}[profile.full]
blocks = 10
requests = 10
[profile.quick]
blocks = 1
requests = 2
[validity]
floor_seconds = 1000
"""

# The fake engine under another name, for float32 files only.
PICKY = """
import msgspec
from enginecmp import hookimpl
from enginecmp.testing import fake_engine as fake
from enginecmp.testing.fake_engine import *
@hookimpl
def cmp_engine():
    return msgspec.structs.replace(fake.cmp_engine(), name="picky", quantizations=("F32",))
"""


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    (tmp_path / "mini.toml").write_text(SCENARIO)
    return ["run", "--scenario", "./mini.toml", "--reference", "fake", "--seed", "9"]


@pytest.fixture
def models(tiny: ModelInfo, tmp_path: Path) -> list[str]:
    """Two files of two shapes."""
    other = write_synth(tmp_path / "other.gguf", like="tiny-qwen2", quantization="Q8_0", seed=1)
    return [tiny.path, other.path]


def manifests(results: Path) -> dict[str, Manifest]:
    """Return the manifests of all runs by quantization of the file."""
    found = [read_manifest(path.parent) for path in results.glob("*/manifest.json")]
    return {manifest.model.quantization: manifest for manifest in found}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a:q4_1+q8_0, b:f32", ["a:q4_1", "a:q8_0", "b:f32"]),
        ("./x.gguf,./x.gguf", ["./x.gguf"]),
        ("./x.gguf:q4_0+q8_0", ["./x.gguf:q4_0", "./x.gguf:q8_0"]),
        ("hf:o/r/f.gguf", ["hf:o/r/f.gguf"]),
    ],
)
def test_the_short_form_names_every_file_once(text: str, names: list[str]) -> None:
    assert names_of(text) == names


def test_no_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no model named"):
        names_of(" , ")


def test_every_file_gets_a_run_and_the_table_a_line(
    cmp: CommandLine, line: list[str], models: list[str], tmp_path: Path
) -> None:
    done = cmp(*line, "--matrix", ",".join(models), "--engines", "a=fake,b=fake", "-o", "b.gear=2", "--json")
    assert done.returncode == 0, done.stderr
    found = manifests(tmp_path / "results")
    assert set(found) == {"F32", "Q8_0"}
    assert {manifest.seed for manifest in found.values()} == {9}
    assert {manifest.status for manifest in found.values()} == {"complete"}
    told = msgspec.json.decode(done.stdout)
    names = [manifest.model.name for manifest in (found["F32"], found["Q8_0"])]
    assert [run["model"] for run in told["runs"]] == names
    assert {(row["model"], row["engine"], row["verdict"]) for row in told["results"]} == {
        (name, label, verdict) for name in names for label, verdict in (("a", "baseline"), ("b", "faster"))
    }
    ahead = done.stderr[: done.stderr.index("gate: ")]
    assert "matrix of 2 runs, seed 9, about" in ahead
    assert ahead.index(names[0]) < ahead.index(names[1])


def test_an_engine_that_cannot_load_a_file_sits_that_run_out(
    cmp: CommandLine, line: list[str], models: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cmp_test_picky.py").write_text(PICKY)
    environment = {"CMP_PLUGINS": f"{FAKE_MODULE},cmp_test_picky", "PYTHONPATH": str(tmp_path)}
    short = ["--profile", "quick", "--no-gate", "--no-sensors", "--engines", "fake,picky"]
    done = cmp(*line, "--matrix", ",".join(models), *short, env=environment)
    assert done.returncode == 0, done.stderr
    found = manifests(tmp_path / "results")
    assert [engine.name for engine in found["F32"].engines] == ["fake", "picky"]
    assert [engine.name for engine in found["Q8_0"].engines] == ["fake"]
    assert f"left out of {found['Q8_0'].model.name}: picky: loads F32, not quantization Q8_0" in done.stderr
    assert "cmp stats results/" in done.stdout

    # Where nobody can load a file, that run fails and the other one is made.
    done = cmp(*line, "--matrix", ",".join(reversed(models)), *short[:-1], "picky", "--out", "alone", env=environment)
    assert done.returncode == 1
    assert set(manifests(tmp_path / "alone")) == {"F32"}
    assert f"{found['Q8_0'].model.name}: no engine can run" in done.stdout


def test_quantizations_that_are_not_there_are_derived(
    cmp: CommandLine, line: list[str], tiny: ModelInfo, tmp_path: Path
) -> None:
    short = ["--profile", "quick", "--no-gate", "--no-sensors", "--engines", "fake"]
    done = cmp(*line, "--matrix", f"{tiny.path}:q4_0+q8_0", *short)
    assert done.returncode == 0, done.stderr
    assert set(manifests(tmp_path / "results")) == {"Q4_0", "Q8_0"}


def test_quality_only_times_nothing_and_fails_where_limits_are_broken(
    cmp: CommandLine, line: list[str], tiny: ModelInfo, tmp_path: Path
) -> None:
    arguments = [*line, "--model", tiny.path, "--engines", "good=fake,bad=fake", "-o", "bad.error=1"]
    done = cmp(*arguments, "--quality-only", "--score-positions", "80", "--max-kl", "0.01", "--max-nll-increase", "2")
    assert done.returncode == 1
    assert "not comparable: bad" in done.stderr
    run = only_run(tmp_path / "results")
    manifest = read_manifest(run)
    assert manifest.status == "complete"
    assert (run / "samples.jsonl").read_bytes() == b""
    assert {entry.positions for entry in manifest.equivalence} == {80}
    limits = {key: manifest.scenario[key] for key in ("score_positions", "max_kl", "max_nll_increase")}
    assert limits == {"score_positions": 80, "max_kl": 0.01, "max_nll_increase": 2.0}
    title, *rows = done.stdout.splitlines()
    columns = ["engine", "file", "mean KL", "top-1", "perplexity", "ΔNLL (nats/token)", "greedy", "verdict"]
    assert re.split("  +", title) == columns
    good = next(row for row in rows if row.endswith("equivalent"))
    worse = "0.0000 [0.0000, 0.0000]"
    assert re.split("  +", good)[:4] + re.split("  +", good)[5:] == [
        "good",
        "F32",
        "0.0e+00",
        "100.0%",
        worse,
        "32",
        "equivalent",
    ]
    alone = cmp(*line, "--model", tiny.path, "--engines", "fake", "--quality-only", "--json", "--out", "alone")
    assert alone.returncode == 0, alone.stderr
    entries = msgspec.json.decode(alone.stdout)["equivalence"]
    assert [entry["verdict"] for entry in entries] == ["reference", "equivalent"]
    assert entries[1]["greedy_agreement_tokens"] == 32
    assert cmp("stats", "alone").returncode == 0
