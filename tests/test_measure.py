"""Loads, operations, profiles and leaks: whole runs of the fake engine, with right answers and planted faults."""

from __future__ import annotations

import mmap
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE_MODULE, CommandLine
from helpers import only_run, read_samples, require_droppable

from enginecmp.format.readers import read_manifest
from enginecmp.format.records import Sample
from enginecmp.telemetry.memory import reset_peak
from enginecmp.types import ModelInfo

# The fake clock stands still while the machine works, so shares of its windows mean nothing.
CALM = "[validity]\nfloor_seconds = 1000\n"
LOADS = (
    """
primary_metric = "load_seconds"
kind = "load"
launch_per_cell = true
cells = [
    { prompt_tokens = 8, output_tokens = 2, variant = "cold" },
    { prompt_tokens = 8, output_tokens = 2, variant = "warm" },
]
[profile.full]
blocks = 2
requests = 1
"""
    + CALM
)
OPERATIONS = {
    "tokenize": '{ direction = "encode" }',
    "sampling": "{ temperature = 0.7, top_k = 1 }",
    "matmul": '{ layer = "ffn_up", method = "library", rows = 3 }',
    "elementwise": '{ function = "silu_mul", length = 96, rows = 5 }',
    "layer": "{ rows = 2, past = 3, width = 64, heads = 4, kv_heads = 2, head_dim = 16, feed_forward = 96 }",
}
LEAK = (
    """
primary_metric = "peak_rss_above_empty_bytes"
launch_per_cell = true
cells = [
    { prompt_tokens = 4, output_tokens = 1 },
    { prompt_tokens = 4, output_tokens = 1, variant = "leak" },
]
[profile.full]
blocks = 1
requests = 2
requests_of = { leak = 500 }
"""
    + CALM
)
# An engine that offers nothing by itself, whatever its hooks would do.
PLAIN = """
import msgspec
from enginecmp.hookspecs import hookimpl
from enginecmp.testing import fake_engine
from enginecmp.testing.fake_engine import cmp_load, cmp_prefill, cmp_decode, cmp_metrics, cmp_reset

@hookimpl
def cmp_engine():
    return msgspec.structs.replace(fake_engine.cmp_engine(), name="plain", operations=())
"""
# One that promises more than it keeps.
BOASTER = (
    PLAIN.replace('"plain", operations=()', '"boaster", operations=("sampling", "profile")')
    + """
@hookimpl
def cmp_operation(session, kind, parameters):
    return None

@hookimpl
def cmp_profile(session, token_ids, n_tokens):
    return {"ffn": 1e6}
"""
)
# One that tells for how many tokens it was loaded.
ROOMY = (
    PLAIN.replace("cmp_decode, cmp_metrics, cmp_reset", "cmp_decode, cmp_reset").replace('"plain"', '"roomy"')
    + """
@hookimpl
def cmp_metrics(session):
    return {"context_tokens": session.context_tokens}
"""
)
# One that takes 80 MB for a moment while it loads.
SPIKY = (
    PLAIN.replace("import cmp_load, cmp_prefill", "import cmp_prefill").replace('"plain"', '"spiky"')
    + """
@hookimpl
def cmp_load(model, options):
    b"x" * (80 << 20)
    return fake_engine.cmp_load(model, options)
"""
)


def operation_scenario(operation: str) -> str:
    return (
        f"""
primary_metric = "operation_seconds"
kind = "operation"
operation = "{operation}"
cells = [{{ prompt_tokens = 12, output_tokens = 0, variant = "it" }}]
[variants]
it = {OPERATIONS[operation]}
[profile.full]
blocks = 1
requests = 4
"""
        + CALM
    )


PROFILE = (
    """
primary_metric = "e2e_seconds"
kind = "profile"
cells = [{ prompt_tokens = 6, output_tokens = 3, variant = "both" }]
[profile.full]
blocks = 1
requests = 3
"""
    + CALM
)


class Run:
    """Runs a scenario and returns its samples; what it said is in `said`, where it is in `folder`."""

    def __init__(self, cmp: CommandLine, folder: Path, model: str) -> None:
        self._cmp = cmp
        self._model = model
        self.folder = folder
        self.said = ""

    def __call__(self, scenario: str, *arguments: str, model: str = "", code: int = 0) -> list[Sample]:
        path = self.folder / "mine.toml"
        path.write_text(scenario)
        modules = ",".join([FAKE_MODULE, *(file.stem for file in self.folder.glob("*.py"))])
        done = self._cmp(
            *("run", "--scenario", path, "--model", model or self._model, "--no-gate", "--seed", "5", *arguments),
            env={"CMP_PLUGINS": modules, "PYTHONPATH": str(self.folder)},
        )
        assert done.returncode == code, done.stderr
        self.said = done.stderr
        self.folder = only_run(self.folder / "results")
        return read_samples(self.folder)


@pytest.fixture
def run(cmp: CommandLine, tmp_path: Path, tiny: ModelInfo) -> Run:
    return Run(cmp, tmp_path, tiny.path)


def phase(samples: list[Sample], name: str) -> list[Sample]:
    return [sample for sample in samples if sample.phase == name]


@pytest.fixture
def own_file(tmp_path: Path, tiny: ModelInfo) -> Path:
    """A model file that nobody else has open, on a disk that can be dropped from memory."""
    require_droppable(tmp_path)
    path = tmp_path / "own.gguf"
    shutil.copyfile(tiny.path, path)
    return path


def test_cold_loads_find_the_file_on_the_disk_and_warm_ones_in_memory(run: Run, own_file: Path) -> None:
    samples = run(LOADS, "--engines", "fake", model=str(own_file))
    shares = {(s.cell.variant, s.metrics["page_cache_share"]) for s in phase(samples, "load")}
    assert shares == {("cold", 0.0), ("warm", 1.0)}
    assert {s.status for s in samples} == {"ok"}
    assert len(phase(samples, "measure")) == 4
    assert phase(samples, "warmup") == []


def test_the_first_token_counts_from_the_start_of_the_process(run: Run, own_file: Path) -> None:
    slow = ("-o", "fake.load_ms=5000", "-o", "fake.prefill_us=250000")
    samples = run(LOADS, "--engines", "fake", *slow, model=str(own_file))
    for load, request in zip(phase(samples, "load"), phase(samples, "measure"), strict=True):
        assert load.launch == request.launch
        load_seconds = (load.end_ns - load.start_ns) / 1e9
        ttft_seconds = (request.token_ns[0] - request.start_ns) / 1e9
        since_start = request.metrics["first_token_from_start_seconds"]
        assert load_seconds >= 5
        assert ttft_seconds == pytest.approx(2, rel=0.1)
        # What is left is the interpreter's start and the messages between.
        assert since_start >= load.metrics["startup_seconds"] + load_seconds + ttft_seconds
        assert since_start < load.metrics["startup_seconds"] + load_seconds + ttft_seconds + 5


def test_a_file_that_cannot_be_dropped_is_an_error_and_no_cold_load(run: Run, own_file: Path) -> None:
    with own_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        bytes(held)  # mapped and touched pages stay, whatever is asked
        samples = run(LOADS, "--engines", "fake", model=str(own_file))
    assert [s.cell.variant for s in phase(samples, "measure")] == ["warm", "warm"]
    cold = [s for s in samples if s.cell.variant == "cold"]
    assert cold == [], "nothing was asked of the engine"
    assert "not begun: a cold load needs" in run.said
    assert "100% of it stayed" in run.said


def test_a_load_tells_what_the_process_held_before_and_after(run: Run) -> None:
    samples = run(LEAK, "--engines", "fake", "--requests", "1")
    for load in phase(samples, "load"):
        assert 5e6 < load.metrics["empty_rss_bytes"] < load.metrics["rss_bytes"] <= load.metrics["peak_rss_bytes"]
        assert load.metrics["rss_file_bytes"] < load.metrics["rss_bytes"]
        assert 0.01 < load.metrics["startup_seconds"] < 60


@pytest.mark.parametrize(("own_launches", "rooms"), [("true", [10, 50]), ("false", [50, 50])])
def test_a_cell_with_a_launch_of_its_own_gets_room_for_itself(
    run: Run, tmp_path: Path, own_launches: str, rooms: list[int]
) -> None:
    (tmp_path / "roomy_engine.py").write_text(ROOMY)
    scenario = REQUESTS.replace(
        "cells = [{ prompt_tokens = 10, output_tokens = 5 }]",
        f"launch_per_cell = {own_launches}\n"
        "cells = [{ prompt_tokens = 8, output_tokens = 2 }, { prompt_tokens = 40, output_tokens = 10 }]",
    )
    samples = run(scenario, "--engines", "roomy", "--requests", "1")
    found = {s.cell.prompt_tokens: s.metrics["context_tokens"] for s in phase(samples, "measure")}
    assert [found[8], found[40]] == rooms


@pytest.mark.skipif(not reset_peak(), reason="this kernel does not reset the high-water mark")
def test_the_peak_of_a_cell_is_not_that_of_the_load(run: Run, tmp_path: Path) -> None:
    (tmp_path / "spiky_engine.py").write_text(SPIKY)
    samples = run(REQUESTS, "--engines", "spiky", "--requests", "1")
    [load], [request] = phase(samples, "load"), phase(samples, "measure")
    assert load.metrics["peak_rss_bytes"] > load.metrics["rss_bytes"] + 60e6
    assert request.metrics["peak_rss_bytes"] < load.metrics["peak_rss_bytes"] - 50e6


@pytest.mark.parametrize(("leak_kb", "low", "high"), [("1", 800, 1300), ("0", -150, 150)])
def test_a_leak_of_one_kilobyte_a_request_shows_in_500(run: Run, leak_kb: str, low: float, high: float) -> None:
    samples = run(LEAK, "--engines", "fake", "-o", f"fake.leak_kb={leak_kb}")
    rss = [s.metrics["rss_bytes"] for s in phase(samples, "measure") if s.cell.variant == "leak"]
    assert len(rss) == 500
    # Past the first hundred: the interpreter's own arenas are full by then.
    slope = np.polyfit(np.arange(400), rss[100:], 1)[0]
    assert low < slope < high


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_called_for_a_millisecond_and_proven(run: Run, operation: str) -> None:
    samples = run(operation_scenario(operation), "--engines", "fake", "-o", "fake.operation_us=30")
    measured = phase(samples, "measure")
    assert len(measured) == 4
    assert len(phase(samples, "warmup")) == 1
    for sample in measured:
        assert (sample.status, sample.flags, sample.output_tokens, sample.token_ns) == ("ok", [], 0, [])
        assert sample.metrics["calls"] == 64  # 32 calls of 30 µs are less than a millisecond
        assert sample.metrics["operation_seconds"] == pytest.approx(30e-6, rel=0.2)
        assert sample.end_ns - sample.start_ns >= 1e6
    amounts = {"tokenize": 12, "sampling": 1, "matmul": 3, "elementwise": 5, "layer": 2}
    assert {s.prompt_tokens for s in measured} == {amounts[operation]}


def test_a_disturbed_operation_is_followed_by_a_spare_one(run: Run) -> None:
    strict = operation_scenario("sampling").replace("floor_seconds = 1000", "floor_seconds = 0\nforeign_cpu_share = 0")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            samples = run(strict, "--engines", "fake", "-o", "fake.clock=real", "-o", "fake.operation_us=80000", code=1)
        finally:
            busy.kill()
    # Four were asked for, and half as many may be repeated.
    assert [s.index for s in phase(samples, "measure")] == [0, 1, 2, 3, 4, 5]
    assert all("foreign_cpu" in s.flags for s in phase(samples, "measure"))
    # What others did is told of the whole cell: samples of a millisecond are too short for the counters.
    assert len({s.metrics["foreign_cpu_seconds"] for s in phase(samples, "measure")}) == 1


def test_a_disturbed_profile_is_flagged(run: Run) -> None:
    strict = PROFILE.replace("floor_seconds = 1000", "floor_seconds = 0\nforeign_cpu_share = 0")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            slow = ("-o", "fake.clock=real", "-o", "fake.decode_us=40000", "-o", "fake.request_sd=0")
            samples = run(strict, "--engines", "fake", *slow, code=1)
        finally:
            busy.kill()
    assert all("foreign_cpu" in s.flags for s in phase(samples, "measure"))
    assert all(s.metrics["foreign_cpu_seconds"] > 0 for s in phase(samples, "measure"))


def test_ids_that_are_not_the_reference_tokenizers_are_flagged(run: Run) -> None:
    samples = run(operation_scenario("tokenize"), "--engines", "fake", "-o", "fake.wrong=tokenize", code=1)
    assert {tuple(s.flags) for s in phase(samples, "measure")} == {("tokens_differ",)}
    assert "4 measured requests are flagged tokens_differ" in run.said


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ("sampling", "expected the most likely id"),
        ("matmul", "the product is off by 0.01"),
        ("elementwise", "the silu_mul is off by 0.01"),
        ("layer", "the layer's output is off by 0.01"),
    ],
)
def test_wrong_results_are_errors(run: Run, operation: str, says: str) -> None:
    samples = run(operation_scenario(operation), "--engines", "good=fake,bad=fake", "-o", f"bad.wrong={operation}")
    assert {s.status for s in samples if s.engine == "good"} == {"ok"}
    bad = [s for s in samples if s.engine == "bad" and s.phase != "load"]
    assert [s.status for s in bad] == ["error"]
    assert says in (bad[0].error or "")


def test_an_engine_without_the_operation_is_left_out_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plain_engine.py").write_text(PLAIN)
    samples = run(operation_scenario("sampling"), "--engines", "plain,fake")
    assert {s.engine for s in samples} == {"fake"}
    assert run.said.count("plain") == 1
    assert "left out: plain: does not offer sampling by itself" in run.said
    assert [engine.name for engine in read_manifest(run.folder).engines] == ["fake"]


def test_an_engine_that_promised_an_operation_leaves_one_error_and_goes_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "boaster_engine.py").write_text(BOASTER)
    samples = run(operation_scenario("sampling"), "--engines", "boaster", "--blocks", "4", code=1)
    errors = [s for s in samples if s.status != "ok"]
    assert [s.block for s in errors] == [0, 1, 2, 3]
    assert {s.error for s in errors} == {"boaster: does not offer sampling by itself with it"}
    assert "given up" not in run.said


def test_components_and_the_rest_add_up_to_the_time_that_passed(run: Run) -> None:
    samples = run(PROFILE, "--engines", "fake", "-o", "fake.request_sd=0", "-o", "fake.launch_sd=0")
    measured = phase(samples, "measure")
    assert len(measured) == 3
    for sample in measured:
        parts = ("embedding", "norm", "rope", "attention", "ffn", "lm_head", "sampling", "other")
        seconds = {f"{name}_seconds": sample.metrics[f"{name}_seconds"] for name in parts}
        # Beside them stands what the machine did meanwhile, as beside requests.
        assert sample.metrics["process_cpu_seconds"] >= 0
        # 6 prompt tokens of 100 µs and 2 steps of 1 ms; the first token is the prompt's.
        assert sum(seconds.values()) == pytest.approx(0.0026)
        assert (sample.end_ns - sample.start_ns) / 1e9 == pytest.approx(0.0026)
        assert seconds["ffn_seconds"] == pytest.approx(0.45 * 0.0026)
        assert sample.output_tokens == 3


def test_components_that_take_longer_than_the_whole_are_not_believed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "boaster_engine.py").write_text(BOASTER)
    samples = run(PROFILE, "--engines", "boaster", code=1)
    assert phase(samples, "measure") == []
    [error] = [s.error or "" for s in samples if s.status != "ok"]
    assert error.startswith("boaster: its components took 1e+06 s in all")


REQUESTS = (
    """
primary_metric = "e2e_seconds"
cells = [{ prompt_tokens = 10, output_tokens = 5 }]
[profile.full]
blocks = 1
requests = 8
"""
    + CALM
)
STEADY = ("-o", "fake.request_sd=0", "-o", "fake.launch_sd=0")


@pytest.mark.parametrize("percent", [0, 25])
def test_the_fake_engine_can_be_slowed_by_a_known_amount(run: Run, percent: int) -> None:
    samples = run(REQUESTS, "--engines", "fake", *STEADY, "-o", f"fake.slow={percent}")
    e2e_ns = [s.end_ns - s.start_ns for s in phase(samples, "measure")]
    assert e2e_ns == [pytest.approx(5_000_000 * (1 + percent / 100), rel=1e-6)] * 8


def test_the_fake_engine_throttles_after_a_number_of_requests(run: Run) -> None:
    samples = run(REQUESTS, "--engines", "fake", *STEADY, "-o", "fake.throttle_after=6")
    e2e_ns = [s.end_ns - s.start_ns for s in samples if s.output_tokens == 5]
    assert e2e_ns[:6] == [5_000_000] * 6
    assert len(e2e_ns) > 6
    assert e2e_ns[6:] == [pytest.approx(6_500_000, rel=1e-6)] * (len(e2e_ns) - 6)


CONTEXTS = (
    """
primary_metric = "ttft_seconds"
copy_bandwidth = true
cells = [
    { prompt_tokens = 8, output_tokens = 2 },
    { prompt_tokens = 600, output_tokens = 2 },
]
[profile.full]
blocks = 1
requests = 1
"""
    + CALM
)


def test_a_cell_too_long_for_the_model_is_left_out_and_the_run_goes_on(run: Run, tiny: ModelInfo) -> None:
    assert tiny.context_tokens == 512
    samples = run(CONTEXTS, "--engines", "fake")
    assert {s.cell.prompt_tokens for s in samples} == {8}
    reason = "needs 602 tokens of context, tiny-llama was made for 512"
    assert f"left out: prompt 600, output 2: {reason}" in run.said
    assert read_manifest(run.folder).scenario["left_out"] == {"prompt 600, output 2": reason}


def test_the_manifest_tells_the_models_shape_and_what_the_memory_copies(run: Run) -> None:
    run(CONTEXTS, "--engines", "fake")
    manifest = read_manifest(run.folder)
    # Of tiny-llama, as the one who synthesized its weights states it.
    assert manifest.model.shape == {
        "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "value_dim": 16,
        "feed_forward": 128, "vocabulary": 314,
    }  # fmt: skip
    probe = manifest.environment["copy_bandwidth"]
    assert manifest.environment["copy_bandwidth_bytes_per_second"] == probe["bytes_per_second"]
    # Between a very old disk and more than any memory of today.
    assert 1e8 < probe["bytes_per_second"] < 1e13
    assert probe["repeats"] == 10


def test_what_disturbs_a_load_disturbs_its_first_token(run: Run, own_file: Path) -> None:
    strict = LOADS.replace("floor_seconds = 1000", "floor_seconds = 0\nforeign_cpu_share = 0")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            samples = run(strict, "--engines", "fake", "-o", "fake.start_seconds=0.3", model=str(own_file), code=1)
        finally:
            busy.kill()
    loads, requests = phase(samples, "load"), phase(samples, "measure")
    for load, request in zip(loads, requests, strict=True):
        assert "foreign_cpu" in load.flags
        assert set(load.flags) <= set(request.flags)
