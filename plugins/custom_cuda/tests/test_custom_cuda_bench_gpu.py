"""The run on a GPU: rehearsed, planted with faults, cut short; its table on fixed numbers; its model and its rivals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from enginecmp import EngineError, read_gguf
from enginecmp.models.synth_shapes import SHAPES
from enginecmp_custom_cuda.bench import cli, correctness, model, sanitizer, whole
from enginecmp_custom_cuda.bench.context import Context, Skip
from enginecmp_custom_cuda.bench.correctness import rounded, shortfall
from enginecmp_custom_cuda.bench.facts import commit, nvidia_smi, queried, versions
from enginecmp_custom_cuda.bench.invented import layers_for
from enginecmp_custom_cuda.bench.lab import distance, mean_kl, tiny_model
from enginecmp_custom_cuda.bench.measurement import Measurement
from enginecmp_custom_cuda.bench.parts import PARTS, Part, run_part
from enginecmp_custom_cuda.bench.report import render
from enginecmp_custom_cuda.bench.rivals import Cells, Engine, device_for, measure_cells
from enginecmp_custom_cuda.bench.timing import replayed_seconds
from enginecmp_custom_cuda.compiling import entry, sources
from enginecmp_custom_cuda.device import Device, LostDeviceError
from enginecmp_custom_cuda.engine.sampling import Strategy

SCRIPT = Path(__file__).resolve().parent.parent / "bench_gpu.py"
EMULATED = os.environ.get("ENGINECMP_TEST_DEVICE") != "cuda"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def command(out: Path, models: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--dry", "--out", str(out), "--models", str(models), *arguments]


def rehearse(out: Path, models: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Return a rehearsal's exit code, its report, and what it printed."""
    done = subprocess.run(
        command(out, models, *arguments), capture_output=True, text=True, check=False, timeout=200, cwd=out
    )
    assert not done.stderr, done.stderr
    return done.returncode, json.loads((out / "report.json").read_text()), done.stdout


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """What a part in this process is told."""
    return {
        "part": "facts",
        "device": "emulated",
        "dry": True,
        "folder": str(tmp_path),
        "model": model.DRY_SHAPE,
        "seconds": 60.0,
        "records": str(tmp_path / "records.jsonl"),
    }


def records(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(spec["records"]).read_text().splitlines()]


# Runs


def test_a_rehearsal_proves_what_it_shows(tmp_path: Path, models: Path) -> None:
    code, report, printed = rehearse(tmp_path, models, "--only", "facts,correctness,micro,sanitizer")
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
    assert states == {"facts": "right", "micro": "right", "correctness": "right", "sanitizer": "skipped"}
    for part in report["parts"]:
        assert set(part) == {"name", "state", "seconds", "box_seconds", "error", "records", "log"}
        assert 0 < part["seconds"] <= part["box_seconds"]
    found = [record for part in report["parts"] for record in part["records"]]
    assert {record["record"] for record in found} == {"fact", "check", "measurement", "skipped"}
    assert all(record["seconds"] == [] for record in found if record["record"] == "measurement")
    checks = {record["name"] for record in found if record["record"] == "check"}
    assert {"gemm", "norm_s8, values", "expand", "sampling", "step's qkv: q", "step's next"} <= checks
    assert {"logits", "logits again, to the bit", "ids, resident kernel"} <= checks
    assert "emulated: not a time" in printed
    assert printed.endswith((tmp_path / "table.txt").read_text())
    assert printed.endswith("verdict: right\n")
    assert len((tmp_path / "table.txt").read_text().splitlines()) <= 80


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_compiled_for_the_checks_is_what_they_load(tmp_path: Path, emulated: Device, exact: bool) -> None:
    wanted = {
        entry(sources.find(name), macros, "emulated")
        for name, macros in correctness.modules("RING_BULK")
        if macros.get("HEAD_DIM") == "16" and macros.get("KV") == ("KV_F32" if exact else "KV_F16")
    }
    session = whole.load(tiny_model(tmp_path, "llama", "F32" if exact else "Q8_0"), "emulated", exact)
    loaded = wanted & set(session.device.modules)
    session.close()
    assert len(loaded) == 4  # a step, prompts: attention, products, the rest


def test_a_wrong_answer_is_shown_in_capitals_and_is_the_exit_code(tmp_path: Path, models: Path) -> None:
    code, report, printed = rehearse(tmp_path, models, "--only", "correctness", "--plant", "correctness=wrong")
    assert (code, report["verdict"]) == (1, "WRONG")
    assert report["parts"][0]["state"] == "WRONG"
    wrong = {record["name"] for record in report["parts"][0]["records"] if record.get("ok") is False}
    assert wrong >= {"logits", "first id"}
    assert "WRONG ANSWER: LOGITS MODEL=LLAMA F32" in printed
    assert "ALL TIMES ABOVE" in printed


def test_a_part_that_raises_stops_no_other(tmp_path: Path, models: Path) -> None:
    code, report, printed = rehearse(tmp_path, models, "--only", "facts,micro", "--plant", "facts=raise")
    assert (code, report["verdict"]) == (2, "not checked")
    assert [(part["name"], part["state"]) for part in report["parts"]] == [("facts", "failed"), ("micro", "right")]
    assert report["parts"][0]["error"] == "RuntimeError: planted"
    assert report["parts"][0]["log"][-1] == "RuntimeError: planted"
    assert "  facts: failed: RuntimeError: planted" in printed


def test_nothing_begins_without_time(tmp_path: Path, models: Path) -> None:
    code, report, _ = rehearse(tmp_path, models, "--minutes", "0.01")
    assert code == 2
    assert len(report["parts"]) == len(PARTS)
    assert {part["state"] for part in report["parts"]} == {"skipped"}
    assert {part["error"] for part in report["parts"]} == {"no time was left", "a rehearsal does without"}


def test_a_run_that_is_ended_keeps_what_it_has(tmp_path: Path, models: Path) -> None:
    arguments = ("--only", "facts,micro", "--plant", "micro=hang")
    process = subprocess.Popen(command(tmp_path, models, *arguments), stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    path = tmp_path / "report.json"
    end = time.monotonic() + 60
    while not (tmp_path / "parts" / "micro.spec.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert [part["name"] for part in json.loads(path.read_text())["parts"]] == ["facts"]
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    report = json.loads(path.read_text())
    assert (process.returncode, report["interrupted"]) == (2, True)
    assert "  interrupted" in printed
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], check=False, capture_output=True).stdout == b""


def test_a_part_that_hangs_is_killed_in_time(tmp_path: Path, spec: dict[str, Any]) -> None:
    outcome = run_part(Part("facts", 4, 4, "facts"), {**spec, "plant": "hang"}, tmp_path, 4.0)
    assert outcome.state == "out of time"
    assert 4.0 <= outcome.seconds < 30
    assert outcome.error.startswith("killed after 4 s")


def test_what_a_killed_part_had_found_counts(tmp_path: Path, spec: dict[str, Any], monkeypatch: Any) -> None:
    # The package of the parts, a module longer.
    (tmp_path / "sitecustomize.py").write_text(
        f"import enginecmp_custom_cuda.bench\nenginecmp_custom_cuda.bench.__path__.append({str(tmp_path)!r})\n"
    )
    (tmp_path / "odd.py").write_text(
        "import time\ndef run(context):\n    context.check('one', {}, False)\n    time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_part(Part("odd", 4, 4, "odd"), spec, tmp_path, 4.0)
    assert (outcome.state, outcome.error) == ("WRONG", "killed after 4 s; what it had found is kept")
    assert [record["name"] for record in outcome.records] == ["one"]


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    # Isolated from this environment's packages: the standard library alone.
    done = subprocess.run([sys.executable, "-S", "-E", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        "missing: numpy, msgspec, pluggy, gguf, platformdirs, cuda.bindings, cuda.core, cuda.pathfinder" in done.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("--only", "fcats"), "expected parts among facts,"), (("--model", "nowhere.gguf"), "came 'nowhere.gguf'")],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], error: str, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse(["--dry", *arguments])
    assert error in capsys.readouterr().err


# Judgement


def test_the_verdict_is_of_all_answers() -> None:
    def verdict(*parts: tuple[str, str, list[dict[str, Any]]]) -> str:
        return cli.verdict(
            {"parts": [{"name": name, "state": state, "records": found} for name, state, found in parts]}
        )

    check = {"record": "check", "name": "x", "ok": True}
    assert verdict() == "not checked"
    assert verdict(("correctness", "failed", [])) == "not checked"
    assert verdict(("correctness", "right", [check])) == "right"
    assert verdict(("correctness", "out of time", [check])) == "incomplete"
    assert (
        verdict(("correctness", "right", [check]), ("micro", "WRONG", [{"record": "m", "verified": False}])) == "WRONG"
    )


def test_what_is_no_number_is_far_from_everything() -> None:
    assert distance([1.0, np.nan], [1.0, 1.0]) == float("inf")
    assert distance([1.0], [1.0, 1.0]) == float("inf")
    assert distance([3.0, 4.5], [3.0, 4.0]) == pytest.approx(0.1)
    assert mean_kl([[0.0, 1.0]], [[0.0, np.inf]]) == float("inf")
    # KL of (1/2, 1/2) against (3/4, 1/4): log 2 / sqrt 3.
    assert mean_kl([[0.0, 0.0]], [[np.log(3.0), 0.0]]) == pytest.approx(np.log(2 / np.sqrt(3)))


def test_bfloat16_rounds_to_even() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, -3.1415927], np.float32)
    assert rounded(x, "bf16").tolist() == [1.0, 1.0, 1.015625, -3.140625]


def test_a_drawn_id_must_be_allowed() -> None:
    logits = np.array([0.0, 5.0, 4.0, -3.0], np.float32)
    assert shortfall(logits, 1, Strategy(temperature=0), 0) == 0
    assert shortfall(logits, 2, Strategy(temperature=0), 0) == float("inf")
    assert shortfall(logits, 3, Strategy(temperature=1.0, top_k=2), 0) == float("inf")
    assert shortfall(logits, 4, Strategy(temperature=0), 0) == float("inf")
    assert shortfall(logits, 1, Strategy(temperature=1.0, top_k=1), 0) == 0


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0),
        ("========= ERROR SUMMARY: 1 error\n", 1),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n", 3),
        ("Device not supported\n", None),
    ],
)
def test_a_sanitizers_summary_is_read(text: str, errors: int | None) -> None:
    assert sanitizer.count(text) == errors


def test_a_sanitizers_errors_are_wrong_answers(tmp_path: Path, spec: dict[str, Any]) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho \"$@\"\necho '========= ERROR SUMMARY: 2 errors'\nexit 86\n")
    tool.chmod(0o755)
    context = Context(spec)
    sanitizer.watch(context, tool, "memcheck", 20)
    (record,) = records(spec)
    assert (record["name"], record["ok"], record["detail"]) == (
        "memcheck",
        False,
        "2 errors; see sanitizer-memcheck.log",
    )
    assert "--tool memcheck" in (tmp_path / "sanitizer-memcheck.log").read_text()
    told = json.loads((tmp_path / "sanitizer-memcheck.spec.json").read_text())
    assert (told["part"], told["small"]) == ("correctness", True)


# The table


def measurement(name: str, seconds: tuple[float, ...], nbytes: int | None = None, **setting: Any) -> dict[str, Any]:
    found = msgspec.to_builtins(Measurement(name, setting, seconds, True, nbytes))
    return {"record": "measurement", **found}


def rival(engine: str, cell: str, tokens: int, seconds: float) -> dict[str, Any]:
    return measurement("rival", (seconds,), engine=engine, cell=cell, unit_tokens=tokens)


def test_the_table_on_fixed_numbers() -> None:
    facts = {"device": "NVIDIA X", "architecture": "sm_90a", "multiprocessors": 132, "nvrtc": "13.0"}
    facts |= {"nvidia-smi": {"driver_version": "580.1", "clocks.max.sm": "1980 MHz"}, "commit": "abc"}
    facts |= {"model": "m", "model_bytes": 1_310_000_000, "compilation_seconds": 9.5, "load_seconds": 4.0}
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
                "name": "engine",
                "state": "out of time",
                "seconds": 60.0,
                "error": "killed after 60 s",
                "records": [
                    measurement("read", (1e-3,), 4_000_000_000, grid=264),
                    measurement("launch in a stream", (2e-6,), grid=1),
                    measurement("node of a graph", (1.5e-6,), grid=1, overlap=1),
                    measurement("decode", (4e-4, 5e-4, 6e-4), 1_000_000_000, path="graph", context=16, batch=1),
                    measurement("decode", (1e-3,), 2_000_000_000, path="graph", context=16, batch=8),
                    measurement("decode", (), path="graph", context=512, batch=1),
                    measurement("prefill", (2e-3,), tokens=512, clock="device"),
                    measurement("kernel", (2e-6,), 6_000_000, kernel="qkv", batch=1),
                    measurement("kernel", (1e-6,), 2_000_000, kernel="attention", batch=1, position=512),
                    measurement("prompt kernel", (1e-4,), kernel="qkv", tokens=512) | {"flop": 40_000_000_000},
                    rival("custom_cuda", "decode at 512", 1, 4e-4),
                    rival("custom_cuda decoder=persistent", "decode at 512", 1, 2e-4),
                    {"record": "fact", "name": "ids of custom_cuda at 512", "value": [1, 2, 3, 4]},
                    {"record": "fact", "name": "ids of torch-compile at 512", "value": [1, 2, 9, 4]},
                    rival("torch-compile", "decode at 512", 1, 8e-4),
                    rival("torch-compile", "prompt of 512", 512, 4e-3),
                    {"record": "check", "name": "gemm", "setting": {"kind": "Q8_0"}, "ok": False, "detail": "error 1"},
                    {"record": "note", "text": "no time for batch 8 at 512"},
                ],
            },
        ],
    }
    assert render(report).splitlines() == [
        "custom_cuda on NVIDIA X, sm_90a, 132 multiprocessors, driver 580.1, SM up to 1980 MHz, NVRTC 13.0",
        "model m, 1.31 GB, source abc, compiled in s: 9.5, loaded in s: 4.0",
        "SM clock after each part: 1900 MHz",
        "limits: read 4000 GB/s; launch 2.00 us (grid 1); node 1.50 us (grid 1, overlapped)",
        "decode, tok/s (% of the measured bandwidth)",
        "                             batch 1     batch 8",
        "  graph context 16   2000 (50%) ±20%  8000 (50%)",
        "  graph context 512        not timed           -",
        "prefill, tok/s (ms)",
        "             tokens 512",
        "  device  256000 (2.00)",
        "decode kernels, us GB/s (% of the measured bandwidth)",
        "                            batch 1",
        "  qkv               2.00 3000 (75%)",
        "  attention at 512  1.00 2000 (50%)",
        "prompt kernels, us TFLOP/s",
        "        tokens 512",
        "  qkv  100.0 400.0",
        "rivals, tok/s (ours is x times as fast; ids as ours)",
        "                                  decode at 512  prompt of 512",
        "  custom_cuda                              2500              -",
        "  custom_cuda decoder=persistent   5000 (x0.50)              -",
        "  torch-compile 2/4                1250 (x2.00)         128000",
        "ours over the best rival: decode at 512 x2.00 (torch-compile)",
        "answers: 15 checked, 1 WRONG",
        "  WRONG ANSWER: GEMM KIND=Q8_0 error 1",
        "  ALL TIMES ABOVE ARE OF AN ENGINE THAT COMPUTES SOMETHING ELSE",
        "parts: facts right 1 s, engine out of time 60 s",
        "  engine: out of time: killed after 60 s",
        "  engine: left out: no time for batch 8 at 512",
        "verdict: WRONG",
    ]


# Measuring


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


# The model


@pytest.fixture
def small_shape() -> Iterator[str]:
    name = "small"
    SHAPES[name] = msgspec.structs.replace(
        SHAPES["llama-3.2-1b"], layers=1, hidden=256, heads=4, kv_heads=2, feed_forward=512, vocabulary=2048
    )
    yield name
    del SHAPES[name]


def test_an_invented_model_is_a_whole_one(small_shape: str, tmp_path: Path) -> None:
    info = model.ensure(small_shape, tmp_path)
    assert (info.architecture, info.quantization, info.vocabulary) == ("llama", "Q8_0", 2048)
    file = read_gguf(info.path)
    raw = file.raw("blk.0.ffn_down.weight").reshape(-1, 34)
    weights = raw[:, 2:].view(np.int8)
    assert weights.min() == -127
    assert weights.max() == 127
    # What residual branches add up to: 2.5 over two branches of one layer and 512 columns.
    assert file.float32("blk.0.ffn_down.weight").std() == pytest.approx(2.5 / np.sqrt(2 * 512), rel=0.02)
    assert file.float32("blk.0.attn_q.weight").std() == pytest.approx(2 / 16, rel=0.02)
    assert file.tensors["rope_freqs.weight"].shape == (32,)
    before = Path(info.path).read_bytes()
    stamp = Path(info.path).stat().st_mtime_ns
    assert model.ensure(small_shape, tmp_path) == info
    assert Path(info.path).stat().st_mtime_ns == stamp
    Path(info.path).unlink()
    model.ensure(small_shape, tmp_path)
    assert Path(info.path).read_bytes() == before


# Rivals


def test_every_cell_of_a_rival_is_measured_and_a_failing_one_stops_none(spec: dict[str, Any]) -> None:
    asked: list[int] = []

    def prefill(ids: Any) -> int:
        asked.append(len(ids))
        if len(ids) == 20:
            msg = "too long"
            raise ValueError(msg)
        return 7

    engine = Engine("other", prefill, lambda tokens: list(range(tokens)))
    measure_cells(Context({**spec, "device": "cuda"}), engine, Cells((16, 20), (30,), 4, 2), 300)
    assert asked == [16, 16, 16, 20, 30, 30, 30]
    found = records(spec)
    cells = [record for record in found if record["record"] == "measurement"]
    assert [(one["setting"]["cell"], one["setting"]["unit_tokens"], len(one["seconds"])) for one in cells] == [
        ("decode at 16", 1, 2),
        ("prompt of 30", 30, 2),
    ]
    assert {"record": "fact", "name": "ids of other at 16", "value": [7, 0, 1, 2]} in found
    errors = [one["text"] for one in found if one["record"] == "error"]
    assert errors == ["other, decode at 20: ValueError: too long"]


def fail(error: Exception) -> None:
    raise error


def test_an_error_is_a_wrong_answer_where_answers_are_checked(spec: dict[str, Any]) -> None:
    for part in ("correctness", "engine"):
        context = Context({**spec, "part": part})
        with context.guarded("one thing"):
            fail(EngineError("no"))
        with context.guarded("another"):
            fail(Skip("not here"))
        with pytest.raises(LostDeviceError), context.guarded("the device"):
            fail(LostDeviceError("lost", "CUDA_ERROR_UNKNOWN"))
    found = [(one["record"], one.get("detail") or one["text"]) for one in records(spec)]
    assert found == [
        ("check", "EngineError: no"),
        ("note", "another: not here"),
        ("error", "one thing: EngineError: no"),
        ("note", "another: not here"),
    ]


def test_a_rival_without_the_device_is_skipped(spec: dict[str, Any]) -> None:
    assert device_for(Context(spec), ("cuda", "cpu")) == "cpu"
    assert device_for(Context({**spec, "device": "cuda"}), ("cuda", "cpu")) == "cuda"
    with pytest.raises(Skip, match="it runs on cpu, not on cuda"):
        device_for(Context({**spec, "device": "cuda"}), ("cpu",))


@pytest.mark.parametrize("int8", [False, True])
def test_the_torch_rival_computes_the_same_model(tmp_path: Path, int8: bool) -> None:
    torch = pytest.importorskip("torch")
    from enginecmp_custom_cuda.bench.torch_llama import Llama
    from enginecmp_custom_cuda.config import read_config
    from enginecmp_custom_cuda.oracle import reference

    file = read_gguf(tiny_model(tmp_path, "llama", "Q8_0").path)
    ids = [int(each) for each in np.random.default_rng(0).integers(0, 300, 21)]
    rival = Llama(file, read_config(file, 32), 32, "cpu", int8)
    scores: list[Any] = []
    rival.head.register_forward_hook(lambda _, given, result: scores.append(result.float().numpy()[0, -1]))
    with torch.inference_mode():
        rival.prefill(torch.tensor([ids[:20]]))
        rival.decode(torch.tensor([[ids[20]]]), torch.tensor([20]))
    expected = reference.logits(file, ids, 32)[19:]
    assert mean_kl(expected, np.stack(scores)) < 0.02


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
