"""What a gate proved is asked once: for one build, one machine, one file, one text, and for nothing else."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path

import msgspec
import platformdirs
import pytest
from conftest import CommandLine
from helpers import only_run

from enginecmp.format.readers import read_manifest
from enginecmp.format.records import Equivalence
from enginecmp.gate.equivalence import run_gate
from enginecmp.gate.gate import Gate
from enginecmp.gate.kept import Kept, build_of
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.plugins.discovery import examine
from enginecmp.plugins.own_files import keep
from enginecmp.plugins.plugin import Plugin
from enginecmp.prompts import PromptSet
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of entries, empty."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "enginecmp" / "gate"


@pytest.fixture
def gate(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> Gate:
    """Hold the fake engine against itself on a few positions."""
    return Gate(
        reference=fake,
        timed=tiny,
        exact=tiny,
        token_ids=PromptSet(tiny).score_ids(16),
        logs=tmp_path,
        deadlines=Deadlines(),
        max_kl=0.02,
    )


OPTIONS = LoadOptions(extra={"error": "0.001"})


def launches(folder: Path) -> set[str]:
    """Return which launches there were since the last call."""
    logs = list(folder.glob("gate-*.log"))
    names = {log.stem for log in logs}
    for log in logs:
        log.unlink()
    return names


def test_a_question_is_asked_once_and_answered_with_its_date(
    fake: Plugin, gate: Gate, tmp_path: Path, kept: Path
) -> None:
    every = {"gate-reference", "gate-b-exact", "gate-b-timed"}

    def ask(options: LoadOptions = OPTIONS, *, fresh: bool = False) -> list[Equivalence]:
        return run_gate([EngineConfig("b", fake, options)], gate, lambda line: None, fresh=fresh)

    first = ask()
    assert launches(tmp_path) == every
    assert [e.proven_utc for e in first] == [msgspec.UNSET] * 2
    again = ask()
    assert launches(tmp_path) == set()
    assert all(isinstance(e.proven_utc, str) and e.proven_utc.endswith("Z") for e in again)
    assert [msgspec.structs.replace(e, proven_utc=msgspec.UNSET) for e in again] == first
    assert len(list(kept.iterdir())) == 2
    assert ask(fresh=True) == first
    assert launches(tmp_path) == every
    # What failed has proven nothing.
    ask(LoadOptions(extra={"fault": "error@score"}))
    assert launches(tmp_path) == every
    assert len(list(kept.iterdir())) == 2


def answer(gate: Gate, verdict: str = "equivalent", mean_kl: float = 1e-5) -> Equivalence:
    return Equivalence(
        engine="b",
        mean_kl=mean_kl,
        max_kl=2e-5,
        top1=1.0,
        verdict=verdict,
        quantization="F32",
        positions=len(gate.token_ids),
        threshold=0.02,
        perplexity=180.0,
        reference_perplexity=181.0,
        nll_difference=0.001,
    )


REFERENCE = LoadOptions(numerics="exact")


def found(
    gate: Gate,
    plugin: Plugin,
    options: LoadOptions = OPTIONS,
    model: ModelInfo | None = None,
    *,
    reference: LoadOptions = REFERENCE,
    question: str = "timed",
    fresh: bool = False,
) -> Equivalence | None:
    return Kept(gate, reference, fresh=fresh).find(plugin, options, model or gate.timed, question)


def test_anything_else_is_another_question(
    gate: Gate, fake: Plugin, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Kept(gate, REFERENCE, fresh=False).keep(fake, OPTIONS, gate.timed, "timed", answer(gate))
    assert found(gate, fake) is not None
    assert found(gate, fake, fresh=True) is None
    replace = msgspec.structs.replace
    other_file = replace(gate.timed, sha256="0" * 64)
    assert found(gate, fake, replace(OPTIONS, threads=7)) is None
    assert found(gate, fake, LoadOptions(extra={"error": "0.002"})) is None
    assert found(gate, fake, model=other_file) is None
    assert found(gate, fake, question="exact") is None
    assert found(gate, fake, reference=replace(REFERENCE, threads=7)) is None
    assert found(gate, replace(fake, version="2.0")) is None
    for change in (
        {"exact": other_file},
        {"token_ids": gate.token_ids[1:]},
        {"max_kl": 0.01},
        {"max_nll_increase": 0.5},
        {"reference": replace(fake, version="2.0")},
    ):
        assert found(replace(gate, **change), fake) is None, change  # type: ignore[arg-type]
    # Of two files, only the one that changed is asked about again: the other's answer does not rest on it.
    assert found(replace(gate, timed=other_file), fake, model=gate.timed) is not None
    monkeypatch.setenv("TERM", "a terminal computes nothing")
    assert found(gate, fake) is not None
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "3")
        assert found(gate, fake) is None
    with monkeypatch.context() as patch:
        patch.setattr("enginecmp.machine.environment.cpu_field", lambda name: "another processor")
        assert found(gate, fake) is None
    assert found(gate, fake) is not None


def test_only_what_a_verdict_can_rest_on_is_kept(gate: Gate, fake: Plugin, kept: Path) -> None:
    writer = Kept(gate, REFERENCE, fresh=False)
    replace = msgspec.structs.replace
    for wrong in (
        answer(gate, mean_kl=0.5),
        answer(gate, "not comparable"),
        answer(gate, "not checked"),
        replace(answer(gate), perplexity=None),
        replace(answer(gate), max_kl=math.nan),
        replace(answer(gate), positions=3),
        replace(answer(gate), quantization="Q8_0"),
    ):
        writer.keep(fake, OPTIONS, gate.timed, "timed", wrong)
        assert not kept.exists(), wrong
    # Near, but the text costs more than is allowed: that is a verdict where there is such a limit.
    limited = replace(gate, max_nll_increase=0.0001)
    Kept(limited, REFERENCE, fresh=False).keep(fake, OPTIONS, gate.timed, "timed", answer(gate, "not comparable"))
    assert found(limited, fake) is not None


def test_what_is_not_an_entry_of_ours_is_asked_again(gate: Gate, fake: Plugin, kept: Path, tmp_path: Path) -> None:
    Kept(gate, REFERENCE, fresh=False).keep(fake, OPTIONS, gate.timed, "timed", answer(gate))
    (entry,) = kept.iterdir()
    data = entry.read_bytes()

    def with_changes(**changes: object) -> bytes:
        content = msgspec.json.decode(data)
        content["found"] |= changes
        return msgspec.json.encode(content)

    for damaged in (
        b"",
        data[: len(data) // 2],
        b"[" * 10_000,
        data + b" " * 100_000,
        data.replace(entry.name.encode(), b"0" * 64),
        data.replace(b"enginecmp-gate/1", b"enginecmp-gate/9"),
        with_changes(mean_kl=1.0),
        with_changes(verdict="not comparable"),
        with_changes(perplexity=None),
        with_changes(positions=3),
        with_changes(more="than an entry has", mean_kl="text"),
    ):
        entry.write_bytes(damaged)
        assert found(gate, fake) is None, damaged[:200]
    entry.write_bytes(data)
    assert found(gate, fake) is not None
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert found(gate, fake) is None


def test_a_build_that_files_do_not_tell_is_never_kept(fake: Plugin) -> None:
    assert fake.info is not None
    replace = msgspec.structs.replace
    assert build_of(fake) is not None
    assert build_of(replace(fake, command=("./engine",))) is None
    assert build_of(replace(fake, python="/elsewhere/bin/python")) is None
    assert build_of(replace(fake, info=replace(fake.info, remote=True))) is None


def test_a_changed_source_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "dev_engine"
    package.mkdir()
    (package / "__init__.py").write_text("from enginecmp.testing.fake_engine import *\n")
    (package / "kernel.so").write_bytes(b"one")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plugin = examine("fake", "dev_engine", "", "")
    before = build_of(plugin)
    assert before is not None
    times = (package / "kernel.so").stat()
    (package / "kernel.so").write_bytes(b"two")
    os.utime(package / "kernel.so", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert build_of(plugin) != before, "same size, same time, another content"


def test_an_engine_on_an_editable_library_is_never_kept(
    fake: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(name: str, *, editable: bool, requires: str = "") -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        if editable:
            (folder / "direct_url.json").write_text('{"url": "file:///src", "dir_info": {"editable": true}}')

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plugin = msgspec.structs.replace(fake, distribution="made-up-plugin")
    # The plugin's own sources are read, so its being editable is no reason.
    install("made-up-plugin", editable=True, requires="made-up-library>=1; python_version>'3'")
    install("made-up-library", editable=False)
    assert build_of(plugin) is not None
    install("made-up-library", editable=True)
    assert build_of(plugin) is None


def test_tables_say_when_it_was_proven(cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    line = ["run", "--quality-only", "--engines", "a=fake", "--model", tiny.path, "--reference", "fake"]
    assert "proven on" not in cmp(*line, "--out", "first").stdout
    again = cmp(*line)
    assert "reference (proven on 20" in again.stdout, again.stderr
    assert "equivalent (proven on 20" in again.stdout
    assert "proven earlier; --fresh-gate asks again" in again.stderr
    entries = read_manifest(only_run(tmp_path / "results")).equivalence
    assert {e.engine for e in entries} == {"a"}
    assert all(isinstance(e.proven_utc, str) for e in entries)
    assert "proven on" not in cmp(*line, "--fresh-gate", "--out", "fresh").stdout


def test_a_cache_that_cannot_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "x").touch()
    keep(tmp_path, "key", b"content", 10)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
