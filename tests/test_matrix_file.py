"""`cmp run --matrix FILE.toml`: every combination of models and settings, and who is dominated among them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import CommandLine
from helpers import ONE_CELL

from enginecmp.errors import UsageError
from enginecmp.format.records import Cell
from enginecmp.models.synth import write_synth
from enginecmp.run.matrix_file import expanded, read_matrix
from enginecmp.run.options import RunOptions
from enginecmp_analysis.decisions.frontier import FrontierRow, Value, _judge, _Logs, _Point

FILE = """
models = ["one.gguf", "two.gguf"]
engines = ["fake"]
scenario = "mine.toml"
[factors]
gear = ["1", "2"]
[factors.speculation]
none = {}
lookup = { lookup = "2" }
"""
SCENARIO = f"{ONE_CELL}[profile.full]\nblocks = 10\nrequests = 10\n[validity]\nfloor_seconds = 1000\n"


def write(folder: Path, text: str = FILE) -> Path:
    path = folder / "matrix.toml"
    path.write_text(text)
    return path


def test_every_combination_is_an_engine_with_its_options(tmp_path: Path) -> None:
    options, models = expanded(RunOptions(), read_matrix(write(tmp_path)))
    assert models == "one.gguf,two.gguf"
    labels = [label.partition("=")[0] for label in options.engines.split(",")]
    assert labels == [f"fake+gear-{g}+{s}" for g in "12" for s in ("none", "lookup")]
    assert options.baseline == labels[0]
    assert options.scenario == "mine.toml"
    assert f"{labels[3]}.lookup=2" in options.options
    assert f"{labels[3]}.gear=2" in options.options
    assert not [given for given in options.options if given.startswith(f"{labels[0]}.lookup")]


def test_a_level_that_two_factors_have_is_told_with_its_factor(tmp_path: Path) -> None:
    text = FILE + "[factors.cache]\nnone = {}\non = { prefix_cache = '1' }\n"
    options, _ = expanded(RunOptions(), read_matrix(write(tmp_path, text)))
    labels = [label.partition("=")[0] for label in options.engines.split(",")]
    assert labels[:2] == ["fake+gear-1+speculation-none+cache-none", "fake+gear-1+speculation-none+on"]
    assert len(set(labels)) == 8


def test_what_the_command_line_says_counts(tmp_path: Path) -> None:
    asked = RunOptions(scenario="single", profile="quick", baseline="x", options=("a.b=c",))
    options, _ = expanded(asked, read_matrix(write(tmp_path)))
    assert (options.scenario, options.profile, options.baseline) == ("single", "quick", "x")
    assert options.options[-1] == "a.b=c"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('engines = ["fake"]', ""), "engines"),
        (("scenario", "scenaro"), "did you mean 'scenario'"),
        (("none = {}", "none = 3"), "Expected `object`"),
        (("lookup = {", '"a b" = {'), "expected names of letters, digits, - and _, got 'a b'"),
        (('gear = ["1", "2"]', "gear = []"), "at least one level of each factor"),
        (('gear = ["1", "2"]', f"gear = {list(range(40))}"), "at most 64 combinations a model, got 80"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    assert change[0] in FILE
    with pytest.raises(UsageError) as raised:
        read_matrix(write(tmp_path, FILE.replace(*change)))
    assert expected in str(raised.value)


def test_a_matrix_is_measured_and_its_frontier_told(cmp: CommandLine, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        write_synth(tmp_path / f"{name}.gguf", like="tiny-llama", quantization="F32", seed=seed)
    (tmp_path / "mine.toml").write_text(SCENARIO)
    write(tmp_path, FILE.replace('["1", "2"]', '["1", "2"]\nthreads = ["1"]'))
    done = cmp("run", "--matrix", "matrix.toml", "--no-gate", "--no-sensors", "--seed", "1", "--json", timeout=240)
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout)
    assert len(found["runs"]) == 2
    points = found["frontier"]
    assert len(points) == 8
    assert all(point["speed"]["low"] < point["speed"]["mean"] < point["speed"]["high"] for point in points)
    # Gear 2 takes a fifth less time, and the fake's process is as large in either.
    slow = [point["speed"]["mean"] for point in points if "gear-1" in point["engine"]]
    fast = [point["speed"]["mean"] for point in points if "gear-2" in point["engine"]]
    assert min(fast) > max(slow)
    assert not [p for p in points if p["dominated_by"] and "gear-2" in p["engine"] and "gear-1" in p["dominated_by"]]
    shown = cmp("report", *(run["folder"] for run in found["runs"]), "-o", "page.html")
    assert shown.returncode == 0, shown.stderr
    page = (tmp_path / "page.html").read_text()
    assert "Which setting for which purpose?" in page
    assert "Speed against memory" in page


def point(name: str, speed: float, memory: float, lost: float) -> _Point:
    """Return a point of ten launches with one per cent between them."""
    metric, spread = "throughput_tokens_per_second", 0.01 / np.sqrt(10)
    row = FrontierRow(
        scenario="s", cell=Cell(8, 4), metric=metric, model="m", engine=name, speed=Value(speed, speed, speed)
    )
    logs = {metric: _Logs(float(np.log(speed)), spread, 10)}
    logs["peak_rss_above_empty_bytes"] = _Logs(float(np.log(memory)), 0.0, 10)
    logs["quality"] = _Logs(lost, 0.002, 0)
    return _Point(row, logs)


def test_who_is_worse_in_one_and_no_better_in_any_is_dominated() -> None:
    points = [point("best", 100, 100, 0.01), point("slow", 80, 100, 0.01), point("small", 80, 50, 0.01),
              point("exact", 80, 100, -0.2), point("tied", 100, 100, 0.01)]  # fmt: skip
    _judge(points, 0.03, 0.05)
    told = {p.row.engine: (p.row.dominated_by, p.row.better_in) for p in points}
    assert told["slow"][0] in ("m, best", "m, tied", "m, small", "m, exact")
    assert told["slow"][1]
    assert [name for name, (by, _) in told.items() if not by] == ["best", "small", "exact", "tied"]
