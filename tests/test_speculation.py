"""The gate of engines that guess ahead: the same greedy ids with and without guesses, or no comparison."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from conftest import CommandLine
from helpers import ONE_CELL, only_run

import enginecmp.gate.speculation as gate
from enginecmp.format.readers import read_manifest
from enginecmp.format.records import SpeculationCheck
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines

PROMPTS = [tuple(range(3, 23)), tuple(range(40, 52))]


def check(fake: Plugin, model: ModelInfo, folder: Path, **extra: str) -> list[SpeculationCheck]:
    options = LoadOptions(extra=extra, max_sequences=2, context_tokens=32)
    said: list[str] = []
    configs = [EngineConfig("mine", fake, options)]
    found = gate.check_speculation(configs, model, PROMPTS, folder, Deadlines(), said.append)
    assert len(said) == len(found)
    return found


def test_guesses_that_change_nothing_are_identical(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    (entry,) = check(fake, tiny, tmp_path, lookup="2")
    # Each prompt by itself, and both at once.
    assert (entry.verdict, entry.identical, entry.requests) == ("identical", 4, 4)
    assert check(fake, tiny, tmp_path) == []


def test_guesses_that_change_an_id_are_told_with_its_place(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    (entry,) = check(fake, tiny, tmp_path, lookup="2", misguess="26")
    assert (entry.verdict, entry.identical, entry.requests) == ("different", 0, 4)
    assert entry.note.startswith("request 0, token 6: 0 in place of ")
    assert "nats likelier" in entry.note


def test_ids_that_part_on_a_tie_are_told_apart(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "TIE_NATS", 1e9)
    (entry,) = check(fake, tiny, tmp_path, lookup="2", misguess="26")
    assert (entry.verdict, entry.identical) == ("identical up to ties", 0)


def test_an_engine_that_fails_to_guess_was_not_checked(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    (entry,) = check(fake, tiny, tmp_path, draft="x", fault="error@prefill")
    assert entry.verdict == "not checked"
    assert "scripted error" in entry.note


def test_a_run_leaves_out_what_guessing_changes_and_tells_the_rest(
    cmp: CommandLine, tiny: ModelInfo, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(ONE_CELL + "[profile.full]\nblocks = 2\nrequests = 3\n")
    done = cmp(
        "run", "--scenario", "mine.toml", "--model", tiny.path, "--no-sensors", "--engines",
        "plain=fake,good=fake,bad=fake", "--baseline", "plain", "-o", "good.lookup=2", "-o", "bad.draft=x",
        "-o", "bad.misguess=60", "--reference", "fake", "--score-positions", "8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "speculation: good: identical with and without guesses" in done.stderr
    manifest = read_manifest(only_run(tmp_path / "results"))
    assert isinstance(manifest.speculation, list)
    assert {entry.engine: entry.verdict for entry in manifest.speculation} == {"good": "identical", "bad": "different"}
    stats = msgspec.json.decode(cmp("stats", "results", "--json").stdout)
    assert {f["engine"]: (f["verdict"], f["value"]) for f in stats["findings"] if f["topic"] == "speculation"} == {
        "good": ("identical", 2.0),
        "bad": ("different", 2.0),
    }
    assert {c["engine"] for c in stats["comparisons"] if c["primary"]} == {"good"}
    shown = cmp("stats", "--all", "results").stdout
    assert "bad" in shown
    assert "not comparable" in shown
