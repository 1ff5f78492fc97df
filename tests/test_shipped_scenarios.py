"""Every shipped scenario's quick profile goes through the whole command line, from launches to its primary metric."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from conftest import CommandLine
from helpers import only_run, read_samples

from enginecmp.scenarios import available, load_scenario
from enginecmp.types import ModelInfo

# Sleeping is real here: several requests in flight take the machine's clock.
FAST = [f"{label}.{option}" for label in ("a", "b") for option in ("clock=real", "load_ms=1", "decode_us=200")]


@pytest.mark.parametrize("name", available())
def test_a_shipped_scenario_runs_and_is_judged(name: str, cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    scenario = load_scenario(name, "quick")
    options = [part for option in [*FAST, "a.prefill_us=20", "b.prefill_us=20"] for part in ("-o", option)]
    done = cmp(
        "run", "--engines", "a=fake,b=fake", "--baseline", "a", "--scenario", name, "--profile", "quick",
        "--blocks", "1", "--requests", "4", "--no-gate", "--no-sensors", "--model", tiny.path, *options, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path / "results")
    samples = read_samples(folder)
    assert [sample.error for sample in samples if sample.status != "ok" and sample.status != "timeout"] == []
    stats = msgspec.json.decode(cmp("stats", folder, "--json", "--include-flagged").stdout)
    judged = {(c["engine"], c["metric"]) for c in stats["comparisons"] if c["primary"]}
    alone = {(s["engine"], s["metric"]) for s in stats["summaries"]}
    # Whether a sweep of seconds reaches saturation is for the machine to say.
    if name != "saturation":
        assert ("b", scenario.primary_metric) in judged
        assert {("a", scenario.primary_metric), ("b", scenario.primary_metric)} <= alone
