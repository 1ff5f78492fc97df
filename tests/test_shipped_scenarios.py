"""Every shipped scenario's quick profile goes through the whole command line, from launches to its primary metric."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import unchanged
from conftest import CommandLine
from helpers import only_run, read_samples

import enginecmp.scenarios
from enginecmp.scenarios import available, load_scenario
from enginecmp.types import ModelInfo

pytestmark = unchanged.left_out_with()

SHIPPED = Path(enginecmp.scenarios.__file__).parent
NEVER_FLAGGED = "\n[validity]\nfloor_seconds = 1000\nlate_dispatch_seconds = 1000\nlate_dispatch_share = 1e9\n"

# Sleeping is real here: several requests in flight take the machine's clock.
FAST = [f"{label}.{option}" for label in ("a", "b") for option in ("clock=real", "load_ms=1", "decode_us=200")]


@pytest.mark.parametrize("name", available())
def test_a_shipped_scenario_runs_and_is_judged(name: str, cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    scenario = load_scenario(name, "quick")
    undisturbed = tmp_path / f"{name}.toml"
    text = (SHIPPED / f"{name}.toml").read_text().replace('"samples/', f'"{SHIPPED}/samples/')
    undisturbed.write_text(text + NEVER_FLAGGED)
    options = [part for option in [*FAST, "a.prefill_us=20", "b.prefill_us=20"] for part in ("-o", option)]
    done = cmp(
        "run", "--engines", "a=fake,b=fake", "--baseline", "a", "--scenario", undisturbed, "--profile", "quick",
        "--blocks", "1", "--requests", "4", "--no-gate", "--no-sensors", "--model", tiny.path, *options, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path / "results")
    samples = read_samples(folder)
    assert [sample.error for sample in samples if sample.status != "ok" and sample.status != "timeout"] == []
    numbers = [(sample.launch, sample.cell, sample.phase, sample.index) for sample in samples]
    assert len(set(numbers)) == len(numbers)
    stats = msgspec.json.decode(cmp("stats", folder, "--json").stdout)
    judged = {(c["engine"], c["metric"]) for c in stats["comparisons"] if c["primary"]}
    alone = {(s["engine"], s["metric"]) for s in stats["summaries"]}
    metric = scenario.primary_metric
    if name == "saturation" and {("a", metric), ("b", metric)} - alone:
        # Whether a sweep of seconds reaches saturation is for the machine to say; the reason is for us.
        assert [text for text in stats["warnings"] if f": no {metric}: saturation was not reached" in text]
    else:
        assert ("b", metric) in judged
        assert {("a", metric), ("b", metric)} <= alone
