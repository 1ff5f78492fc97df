"""The run on a GPU: rehearsed, planted with faults, cut short; its table on fixed numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginecmp.models.synth import write_synth
from enginecmp_custom_cuda.bench import cli, micro
from enginecmp_custom_cuda.bench.context import Context
from enginecmp_custom_cuda.bench.facts import commit, nvidia_smi, queried, versions
from enginecmp_custom_cuda.bench.measurement import Measurement
from enginecmp_custom_cuda.bench.parts import PARTS, Outcome, Part, judge, read_records, run_part
from enginecmp_custom_cuda.bench.report import render
from enginecmp_custom_cuda.bench.synthesized import layers_for, shape_of
from enginecmp_custom_cuda.bench.timing import replayed_seconds
from enginecmp_custom_cuda.compiling import cache
from enginecmp_custom_cuda.device import Device

SCRIPT = Path(__file__).resolve().parent.parent / "bench_gpu.py"
EMULATED = os.environ.get("ENGINECMP_TEST_DEVICE") != "cuda"


def command(out: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--dry", "--out", str(out), *arguments]


def rehearse(out: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Return a rehearsal's exit code, its report, and what it printed."""
    done = subprocess.run(command(out, *arguments), capture_output=True, text=True, check=False, timeout=200, cwd=out)
    assert not done.stderr, done.stderr
    return done.returncode, json.loads((out / "report.json").read_text()), done.stdout


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Part]:
    """Return what makes a part that does something else."""

    def plant(act: str) -> Part:
        (tmp_path / "planted.py").write_text(f"import time\n\ndef run(context):\n    {act}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        return Part("planted", 60, 60)

    return plant


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, Any, str]]:
    """Return what runs parts to their end: exit code, the report, and what was printed."""

    def run(*parts: Part) -> tuple[int, Any, str]:
        monkeypatch.setattr(cli, "PARTS", parts)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        code = cli.main(["--dry", "--out", str(tmp_path)])
        return code, json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """What a part in this process is told."""
    return {
        "device": "emulated",
        "dry": True,
        "model": cli.DRY_MODEL,
        "seconds": 60.0,
        "records": str(tmp_path / "records.jsonl"),
    }


def records(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(spec["records"]).read_text().splitlines()]


# Runs


def test_a_rehearsal_proves_what_it_shows(tmp_path: Path) -> None:
    code, report, printed = rehearse(tmp_path, "--only", "facts,correctness,engine,persistent", "--stage", "A")
    assert code == 0
    assert set(report) == {
        *("schema", "began", "began_monotonic", "arguments", "device", "timed", "dry", "model"),
        *("verdict", "parts", "seconds"),
    }
    assert (report["schema"], report["device"], report["timed"], report["dry"]) == (
        "enginecmp-custom-cuda-gpu/1",
        "emulated",
        False,
        True,
    )
    assert report["verdict"] == "right"
    states = {part["name"]: part["state"] for part in report["parts"]}
    assert states == dict.fromkeys(("facts", "correctness", "engine", "persistent"), "right")
    for part in report["parts"]:
        assert set(part) == {"name", "state", "seconds", "box_seconds", "error", "records", "log"}
        assert 0 < part["seconds"] <= part["box_seconds"]
    found = [record for part in report["parts"] for record in part["records"]]
    assert {record["record"] for record in found} == {"fact", "measurement"}
    assert all(record["seconds"] == [] for record in found if record["record"] == "measurement")
    names = {record["name"] for record in found if record["record"] == "measurement"}
    assert names == {"tests", "token", "prompt token", "token of a batch", "persistent token"}
    assert "emulated: not a time" in printed
    table = (tmp_path / "table.txt").read_text()
    assert len(table.splitlines()) <= 80
    path = tmp_path.with_name(f"{tmp_path.name}.tar.gz")
    assert printed.endswith(f"{table}all of it: {path}\n")
    assert table.endswith("verdict: right\n")
    with tarfile.open(path) as packed:
        inside = {name.removeprefix(f"{tmp_path.name}/") for name in packed.getnames()}
    assert {"report.json", "table.txt", "parts/engine.log", "parts/engine.jsonl"} <= inside


def test_competitors_are_those_of_the_host_and_the_gate_is_the_answer(spec: dict[str, Any], tmp_path: Path) -> None:
    if not EMULATED:
        pytest.skip("this run's device is the GPU")
    from enginecmp_custom_cuda.bench import competitors, model_file

    model_file.main(cli.DRY_MODEL, tmp_path / competitors.MODEL_FILE)
    competitors.run(Context(spec | {"folder": str(tmp_path), "seconds": 150.0}))
    found = records(spec)
    gate = {one["setting"]["quantization"]: one["verified"] for one in found if one["name"] == "gate"}
    assert gate == {"F32": True, "Q8_0": True}, found


def test_competitors_without_a_file_do_not_wait_for_ever(spec: dict[str, Any], tmp_path: Path) -> None:
    from enginecmp_custom_cuda.bench import competitors

    competitors.run(Context(spec | {"folder": str(tmp_path), "seconds": 1.0}))
    assert records(spec)[-1]["text"] == "the model's file was not written in time; pass --model FILE"


WRONG = """import enginecmp_custom_cuda.bench.measurement as m
    context.measured(m.Measurement('node of a graph', {'grid': 1}, (), False))"""


@pytest.mark.parametrize("wrong", [True, False])
def test_a_wrong_answer_makes_the_sanitizer_of_stage_b(
    wrong: bool,
    tmp_path: Path,
    planted: Callable[[str], Part],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "compute-sanitizer"
    # As the real one: it runs what follows its own options, then sums up.
    program.write_text('#!/bin/sh\ntool=$2; shift 4; "$@" && echo "========= ERROR SUMMARY: 1 error by $tool"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    first = planted(WRONG if wrong else "context.fact('a', 1)")
    code, report, _ = run(first, Part("enginecmp_custom_cuda.bench.facts", 60, 60, "B"))
    assert code == (1 if wrong else 0)
    assert [part["name"] for part in report["parts"]] == ["planted", "sanitizer" if wrong else "facts"]
    if wrong:
        facts = {one["name"]: one["value"] for one in report["parts"][1]["records"] if one["record"] == "fact"}
        tools = ("memcheck", "racecheck", "initcheck")
        assert facts == {f"compute-sanitizer {tool}": f"ERROR SUMMARY: 1 error by {tool}" for tool in tools}
        # It ran the part that was wrong once more.
        assert len(read_records(tmp_path / "parts" / "planted.jsonl")) == 1 + len(tools)


def test_failed_tests_are_what_the_sanitizer_runs(spec: dict[str, Any]) -> None:
    from enginecmp_custom_cuda.bench import sanitizer

    setting = {"file": "device", "id": "test_it[cuda]"}
    wrong = [{"name": "gate", "setting": {}, "part": "competitors"}, {"name": "test", "setting": setting, "part": "c"}]
    command = sanitizer.suspects(Context(spec | {"wrong": wrong}))
    assert command[-1].endswith("tests/test_custom_cuda_device.py::test_it[cuda]")


def test_a_test_that_fails_is_a_wrong_answer_by_its_name() -> None:
    from enginecmp_custom_cuda.bench import correctness

    printed = (
        "a/b.py::test_one[cuda-1] PASSED [ 50%]\na/b.py::test_two[cuda] FAILED [ 90%]\na.py::test_c SKIPPED (no)\n"
    )
    found = list(correctness.measurements("b", dict(correctness.RESULT.findall(printed))))
    assert [(one.name, one.setting, one.verified) for one in found] == [
        ("tests", {"file": "b", "passed": 1}, True),
        ("test", {"file": "b", "id": "test_two[cuda]"}, False),
    ]
    there = {path.stem.removeprefix("test_custom_cuda_") for path in correctness.TESTS.glob("test_custom_cuda_*.py")}
    assert set(correctness.FILES) <= there


def test_a_stage_ends_in_time_for_the_next() -> None:
    def ends(*arguments: str) -> dict[str, float]:
        return cli.deadlines(cli.parse(["--device", "cuda", *arguments]), 1000.0)

    assert ends() == {"A": 1300.0, "B": 1540.0 - cli.CLOSING_SECONDS}
    assert ends("--minutes", "18") == {"A": 1600.0, "B": 2080.0 - cli.CLOSING_SECONDS}
    assert ends("--stage", "B") == {"B": 1240.0 - cli.CLOSING_SECONDS}
    boxes = {stage: sum(part.seconds for part in PARTS if part.stage == stage) for stage in "AB"}
    assert boxes == {"A": 300, "B": 240}


def test_kernels_lie_where_they_were_carried_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "kernels"))
    assert cache.fetch("a", lambda: b"code") == b"code"
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["a.bin"]


def test_a_wrong_answer_is_shown_in_capitals_and_is_the_exit_code(
    planted: Callable[[str], Part], run: Callable[..., tuple[int, Any, str]]
) -> None:
    measured = "import enginecmp_custom_cuda.bench.measurement as m; "
    measured += "context.measured(m.Measurement('node of a graph', {'grid': 1}, (), False))"
    code, report, printed = run(planted(measured))
    assert (code, report["verdict"]) == (1, "WRONG")
    assert report["parts"][0]["state"] == "WRONG"
    assert "WRONG ANSWER: NODE OF A GRAPH GRID=1" in printed
    assert "ALL TIMES ABOVE" in printed


def test_a_part_that_raises_stops_no_other(
    planted: Callable[[str], Part], run: Callable[..., tuple[int, Any, str]]
) -> None:
    code, report, printed = run(planted("raise RuntimeError('planted')"), *PARTS[:1])
    assert (code, report["verdict"]) == (2, "incomplete")
    assert [(part["name"], part["state"]) for part in report["parts"]] == [("planted", "failed"), ("facts", "right")]
    assert report["parts"][0]["error"] == "RuntimeError: planted"
    assert report["parts"][0]["log"][-1] == "RuntimeError: planted"
    assert "  planted: failed: RuntimeError: planted" in printed


def test_nothing_begins_without_time(tmp_path: Path) -> None:
    code, report, _ = rehearse(tmp_path, "--minutes", "0.01")
    assert code == 2
    assert len(report["parts"]) == len(PARTS)
    assert {part["state"] for part in report["parts"]} == {"skipped"}
    assert {part["error"] for part in report["parts"]} == {"no time was left"}


def test_a_run_that_is_ended_keeps_what_it_has(tmp_path: Path) -> None:
    arguments = ("--only", "facts,kernels")
    process = subprocess.Popen(command(tmp_path, *arguments), stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    path = tmp_path / "report.json"
    end = time.monotonic() + 60
    while not (tmp_path / "parts" / "kernels.spec.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert [part["name"] for part in json.loads(path.read_text())["parts"]] == ["facts"]
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    report = json.loads(path.read_text())
    assert (process.returncode, report["interrupted"]) == (2, True)
    assert "  interrupted" in printed
    while (left := subprocess.run(["pgrep", "-f", str(tmp_path)], check=False, capture_output=True).stdout) != b"":
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_a_part_that_hangs_is_killed_in_time(
    tmp_path: Path, spec: dict[str, Any], planted: Callable[[str], Part]
) -> None:
    outcome = run_part(planted("time.sleep(3600)"), spec, tmp_path, 4.0)
    assert outcome.state == "out of time"
    assert outcome.seconds >= 4.0
    assert outcome.error.startswith("killed after 4 s")


def test_what_a_killed_part_had_found_counts(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"record": "measurement", "name": "one", "verified": false}\n{"record": "measurem')
    outcome = judge("micro", None, read_records(path), "", Outcome("micro", "right", 4.0, 4.0))
    assert (outcome.state, outcome.error) == ("WRONG", "killed after 4 s; what it had found is kept")
    assert [record["name"] for record in outcome.records] == ["one"]


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    # Isolated from this environment's packages: the standard library alone.
    done = subprocess.run([sys.executable, "-S", "-E", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "missing: numpy, msgspec, pluggy, gguf, platformdirs, cuda.bindings, cuda.pathfinder" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("--only", "fcats"), "expected parts among facts,"), (("--model", "nowhere.gguf"), "got 'nowhere.gguf'")],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], error: str, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse(["--dry", *arguments])
    assert error in capsys.readouterr().err


def test_what_a_machine_without_a_network_needs_is_listed_by_version(capsys: Any) -> None:
    assert cli.main(["--wheels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    needed = dict(line.split("==") for line in lines if not line.startswith("#"))
    # What bench_gpu.py itself imports, what its parts start, and what those need in turn.
    assert {"numpy", "msgspec", "gguf", "platformdirs", "pluggy", "cuda-bindings", "pytest", "hypothesis"} <= set(
        needed
    )
    assert {"click", "tokenizers", "iniconfig"} <= set(needed)
    assert not {"torch", "nvidia-cublas", "sympy", "enginecmp", "enginecmp-custom-cuda"} & set(needed)
    assert needed["numpy"] == metadata.version("numpy")
    assert "torch" in lines[-1]
    assert "nvidia-cuda-nvrtc" in lines[-1]


# Judgement


def test_the_verdict_is_of_all_answers() -> None:
    def verdict(*parts: tuple[str, str, list[dict[str, Any]]]) -> str:
        return cli.verdict(
            {"parts": [{"name": name, "state": state, "records": found} for name, state, found in parts]}
        )

    done = {"record": "measurement", "verified": True}
    assert verdict(("micro", "right", [done])) == "right"
    assert verdict(("micro", "right", [done]), ("kernels", "out of time", [done])) == "incomplete"
    assert verdict(("facts", "failed", []), ("micro", "WRONG", [{**done, "verified": False}])) == "WRONG"


def measurement(name: str, seconds: tuple[float, ...], nbytes: int | None = None, **setting: Any) -> dict[str, Any]:
    found = msgspec.to_builtins(Measurement(name, setting, seconds, True, nbytes))
    return {"record": "measurement", **found}


def test_the_table_on_fixed_numbers() -> None:
    facts = {"device": "NVIDIA X", "architecture": "sm_90a", "multiprocessors": 132, "nvrtc": "13.0"}
    facts |= {"nvidia-smi": {"driver_version": "580.1", "clocks.max.sm": "1980 MHz"}, "commit": "abc"}
    facts |= {"model": "m, Q8_0"}
    report = {
        "device": "cuda",
        "timed": True,
        "model": "m",
        "verdict": "WRONG",
        "parts": [
            {
                "name": "facts",
                "state": "right",
                "seconds": 1.0,
                "error": "",
                "clocks": {"clocks.sm": "1900 MHz"},
                "records": [{"record": "fact", "name": name, "value": value} for name, value in facts.items()],
            },
            {
                "name": "kernels",
                "state": "out of time",
                "seconds": 60.0,
                "error": "killed after 60 s",
                "records": [
                    measurement("read", (1e-3,), 4_000_000_000, grid=264),
                    measurement("launch in a stream", (2e-6,), grid=1),
                    measurement("node of a graph", (1.5e-6,), grid=1, overlap=1),
                    measurement("token", (5e-4,), 1_000_000_000, decoder="graph"),
                    measurement("kernel", (2e-6,), 6_000_000, kernel="qkv", batch=1),
                    measurement("kernel", (1e-6,), 2_000_000, kernel="attention", batch=1, position=512),
                    measurement("prompt kernel", (1e-4,), kernel="qkv", tokens=512) | {"flop": 40_000_000_000},
                    measurement("barrier of the grid", (), grid=132) | {"verified": False},
                    {"record": "note", "text": "no time for batch 8 at 512"},
                ],
            },
        ],
    }
    assert render(report).splitlines() == [
        "custom_cuda on NVIDIA X, sm_90a, 132 multiprocessors, driver 580.1, SM up to 1980 MHz, NVRTC 13.0",
        "model m, Q8_0, source abc",
        "SM clock after each part: 1900 MHz",
        "limits: read 4000 GB/s; launch 2.00 us (grid 1); node 1.50 us (grid 1, overlapped)",
        "steps, decoder graph: 2000 tok/s, 500.0 us (50%)",
        "decode kernels, us GB/s (% of the measured bandwidth)",
        "                            batch 1",
        "  qkv               2.00 3000 (75%)",
        "  attention at 512  1.00 2000 (50%)",
        "prompt kernels, us TFLOP/s",
        "        tokens 512",
        "  qkv  100.0 400.0",
        "answers: 8 checked, 1 WRONG",
        "  WRONG ANSWER: BARRIER OF THE GRID GRID=132",
        "  ALL TIMES ABOVE ARE OF AN ENGINE THAT COMPUTES SOMETHING ELSE",
        "parts: facts right 1 s, kernels out of time 60 s",
        "  kernels: out of time: killed after 60 s",
        "  kernels: left out: no time for batch 8 at 512",
        "verdict: WRONG",
    ]


# Measuring

WHAT = ["read", "launch in a stream", "launch, the host's part", "node of a graph", "barrier of the grid"]


def test_every_measurement_does_its_work(device: Device) -> None:
    found = list(micro.measure(device, repetitions=3))
    assert list(dict.fromkeys(one.name for one in found)) == WHAT
    assert all(one.verified for one in found)
    assert {len(one.seconds) for one in found} == ({3} if device.timed else {0})
    assert all(second > 0 for one in found for second in one.seconds)


class FakeDevice:
    """A device whose events tell what its replays cost."""

    timed = True

    def __init__(self) -> None:
        self.now = 0.0
        self.replays = 0

    def event(self) -> Any:
        return FakeEvent(self)

    def synchronize(self) -> None: ...

    def elapsed_seconds(self, first: FakeEvent, second: FakeEvent) -> float:
        return second.at - first.at

    def replay(self) -> None:
        self.replays += 1
        self.now += 2.0**-10 if self.replays > 1 else 1.0  # the first one warms up


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.at = self.device.now

    def close(self) -> None: ...


def test_a_sample_is_many_replays_and_the_first_is_none_of_them() -> None:
    device = FakeDevice()
    # Two replays are longer than a millisecond; twenty samples of them take so many seconds.
    found = replayed_seconds(device, device.replay, seconds=40 * 2.0**-10)  # type: ignore[arg-type]
    assert found == [2.0**-10] * 20
    assert device.replays == 1 + 2 + 20 * 2


def test_layers_are_enough_for_no_cache_and_fit_the_memory() -> None:
    class Memory:
        timed = True

        def attribute(self, name: str) -> int:
            assert name == "L2_CACHE_SIZE"
            return 60_000_000

        def free_bytes(self) -> int:
            return 100_000_000_000

    device: Any = Memory()
    assert layers_for(device, 4_000_000, 64_000_000, 16) == 45
    assert layers_for(device, 50_000_000, 64_000_000, 16) == 16
    assert layers_for(device, 4_000_000, 1_000_000_000, 16) == 30


def test_kernels_are_timed_by_their_names(spec: dict[str, Any]) -> None:
    if not EMULATED:
        pytest.skip("this run's device is the GPU")
    from enginecmp_custom_cuda.bench import kernels

    kernels.run(Context(spec))
    found = [record for record in records(spec) if record["record"] == "measurement"]
    assert all(record["verified"] for record in found)
    steps = {record["setting"]["kernel"] for record in found if record["name"] == "kernel"}
    assert steps == {"qkv", "output", "gate_up", "gate_up, no overlap", "down", "head", "head, next", "attention"}
    prompts = {record["setting"]["kernel"]: record["flop"] for record in found if record["name"] == "prompt kernel"}
    assert set(prompts) == {"qkv", "output", "gate_up", "down", "attention", "norm_s8", "quantize_s8", "head"}
    # Tokens 20, hidden 64, inner 128, 4 heads of 16 over 2: two operations a weight and token.
    assert (prompts["qkv"], prompts["gate_up"]) == (2 * 20 * 128 * 64, 2 * 20 * 256 * 64)
    assert prompts["attention"] == 4 * 4 * 16 * sum(range(1, 21))


def test_a_shape_is_that_of_a_file_of_it(tmp_path: Path) -> None:
    for name in ("tiny-llama", "tiny-phi3"):
        path = tmp_path / f"{name}.gguf"
        write_synth(path, like=name, quantization="Q8_0")
        (known, kind), (read, kind_read) = shape_of(name, 64), shape_of(str(path), 64)
        assert (kind, kind_read) == ("Q8_0", "Q8_0")
        read_epsilon = pytest.approx(read.epsilon)
        assert known.epsilon == read_epsilon
        assert known == msgspec.structs.replace(read, vocabulary=known.vocabulary, epsilon=known.epsilon)


# Facts


def test_facts_are_found_or_left_out(tmp_path: Path) -> None:
    assert set(versions(["numpy", "no-such-distribution"])) == {"numpy"}
    assert commit(tmp_path) == "unknown"


def test_a_name_that_nvidia_smi_does_not_know_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        """#!/bin/sh
case "$1" in
--help-query-gpu) printf '"name"\\nIts name.\\n\\n"clocks.sm" or "clocks.current.sm"\\n\\n"power.limit"\\n' ;;
*name,clocks.sm,power.limit) echo "NVIDIA H200, 345 MHz, [N/A]" ;;
*) exit 2 ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    queried.cache_clear()
    assert nvidia_smi() == {"name": "NVIDIA H200", "clocks.sm": "345 MHz"}
    queried.cache_clear()
