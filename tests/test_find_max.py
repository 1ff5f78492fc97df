"""The search for the largest load that keeps an SLO: it ends at the truth, proves its ends, and can be cut off."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import CommandLine
from decision_runs import ladder, request, run_of
from helpers import only_run, read_samples

from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.format.records import Cell
from enginecmp.scenarios.find_max import MOST_USERS
from enginecmp.types import ModelInfo
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.decisions.limit_search import (
    LOOKS,
    Range,
    Seen,
    allowed_loads,
    bracket,
    least_requests,
    limits,
    measured_loads,
    next_loads,
)
from enginecmp_analysis.decisions.slo import parse_objectives

USERS = allowed_loads("concurrency", 256)
RATES = allowed_loads("rate", 256)
SLO = parse_objectives("ttft_p95<200ms")


def search(
    truth: float, allowed: Range, *, share_below: float = 0.0, share_above: float = 0.5
) -> tuple[dict[float, Seen], int]:
    """Search an engine that keeps the SLO up to `truth`; shares of slow requests are exact. Return what was seen."""
    launches: Counter[float] = Counter()
    seen: dict[float, Seen] = {}
    for blocks in range(200):
        wanted = next_loads(seen, allowed)
        if not wanted:
            return seen, blocks
        for load in wanted:
            launches[load] += 1
            share = share_below if load <= truth else share_above
            n = launches[load]
            proven = n >= LOOKS[0] and share in (0.0, 0.5)
            state = ("kept" if share < 0.05 else "broken") if proven else "open"
            seen[load] = Seen(n, 0, share <= 0.05, state, 40 * n, round(40 * n * share))  # type: ignore[arg-type]
    pytest.fail("the search does not end")


@pytest.mark.parametrize("truth", [1, 2, 3, 7, 12, 100, 255])
def test_users_are_found_exactly_and_both_ends_are_proven(truth: int) -> None:
    seen, blocks = search(truth, USERS)
    found = bracket(seen)
    assert (found.low, found.high) == (truth, truth + 1)
    assert seen[truth].state == "kept"
    assert seen[truth + 1].state == "broken"
    assert blocks <= 25


@pytest.mark.parametrize("truth", [0.03, 0.9, 3.3, 47.0, 2000.0])
def test_rates_are_found_within_a_tenth(truth: float) -> None:
    seen, _ = search(truth, RATES)
    low, high = bracket(seen)
    assert low is not None
    assert high is not None
    assert low <= truth < high <= 1.1 * low * 1.01


def test_an_engine_that_keeps_every_load_ends_at_the_largest() -> None:
    seen, _ = search(1e9, USERS)
    assert bracket(seen) == (256, None)
    assert seen[256].state == "kept"


def test_an_engine_that_keeps_none_ends_at_the_smallest() -> None:
    seen, _ = search(0, USERS)
    assert bracket(seen) == (None, 1)
    assert seen[1].state == "broken"


def test_a_load_that_can_be_proven_neither_way_is_left_open_and_the_search_ends() -> None:
    # One in twenty five slow below, one in fifteen above: both look one way and are never proven.
    seen, blocks = search(12, USERS, share_below=0.04, share_above=1 / 15)
    assert {found.state for found in seen.values()} == {"open"}
    assert max(found.launches for found in seen.values()) == LOOKS[-1]
    assert blocks < 200


def test_what_turns_out_otherwise_moves_the_bracket() -> None:
    seen = {
        8.0: Seen(1, 0, True, "open", 40, 0),
        9.0: Seen(4, 0, False, "open", 160, 30),
    }
    assert next_loads(seen, USERS) == [8.0, 9.0]
    seen[8.0] = Seen(3, 0, False, "open", 120, 20)
    assert next_loads(seen, USERS) == [4.0]


def test_a_load_without_a_request_that_counts_is_tried_again_and_then_passed_by() -> None:
    empty = {4.0: Seen(1, 0, True, "open", 40, 0), 8.0: Seen(0, 1, None, "open", 0, 0)}
    assert next_loads(empty, USERS) == [8.0]
    empty[8.0] = Seen(0, 3, None, "open", 0, 0)
    assert next_loads(empty, USERS) == [16.0]


def test_five_launches_without_a_slow_request_can_prove_the_slo_kept() -> None:
    n = least_requests(SLO)
    run = ladder({"a": {1.0: 0, 2.0: n // 2}}, blocks=5, requests=n)
    seen = measured_loads(run, SLO, "rate")["a"]
    assert (seen[1.0].state, seen[2.0].state) == ("kept", "broken")
    fewer = measured_loads(run, SLO, "rate", before=4)["a"]
    assert (fewer[1.0].launches, fewer[1.0].state, fewer[1.0].looks_kept) == (4, "open", True)


def test_failed_requests_keep_no_slo() -> None:
    run = ladder({"a": {1.0: 0}}, blocks=5, requests=40, failed={("a", 1.0): 20})
    assert measured_loads(run, SLO, "rate")["a"][1.0].state == "broken"


def test_an_slo_at_its_limit_is_seldom_proven_either_way() -> None:
    wrong = 0
    rng = np.random.default_rng(5)
    for _ in range(150):
        slow = rng.binomial(40, 0.05, size=20).tolist()
        run = ladder({"a": {1.0: slow}}, blocks=20, requests=40)
        wrong += measured_loads(run, SLO, "rate")["a"][1.0].state != "open"
    # 2 % of 150 (1 % each way), give or take three standard errors.
    assert wrong <= 8


def searched_run() -> Run:
    n = least_requests(SLO)
    run = ladder({"a": {1.0: 0, 2.0: n}, "b": {1.0: 0}}, blocks=5, requests=n)
    run.manifest.scenario |= {"find_max": "rate", "slo": ["ttft_p95<200ms"]}
    return run


def test_the_answer_names_both_ends_with_their_evidence() -> None:
    a, b = limits("s", searched_run())
    assert (a.kept, a.broken, a.unit) == (1.0, 2.0, "requests/s")
    n = 5 * least_requests(SLO)
    assert a.text == (
        f"a: keeps the SLO at 1 requests/s (0 of {n} requests slow, 5 launches, 99 %); "
        f"breaks it at 2 ({n} of {n} requests slow, 5 launches, 99 %)"
    )
    assert (b.kept, b.broken) == (1.0, None)
    assert b.text.endswith("; none is proven to break it")


def test_users_of_a_closed_loop_are_a_load() -> None:
    rows = [
        request(i, i + 1, i + 0.1, cell=Cell(100, 5, 3), block=block, index=i) for block in range(5) for i in range(40)
    ]
    assert list(measured_loads(run_of(rows), SLO, "concurrency")["baseline"]) == [3.0]


SCENARIO = """
name = "mini"
primary_metric = "throughput_tokens_per_second"
[[cells]]
prompt_tokens = 8
output_tokens = 3
[profile.full]
blocks = 10
requests = 4
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""


def test_a_search_of_two_engines_is_a_run_that_stats_report_and_guide_read_and_resume_goes_on_with(
    cmp: CommandLine, tmp_path: Path, tiny: ModelInfo
) -> None:
    (tmp_path / "mini.toml").write_text(SCENARIO)
    line = ["run", "--scenario", "mini.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--seed", "2"]
    line += ["--engines", "a=fake,b=fake", "-o", "a.clock=real", "-o", "b.clock=real", "-o", "b.decode_us=4000"]
    done = cmp(*line, "--find-max", "concurrency", "--slo", "e2e_p50<30s", "--blocks", "3")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    manifest = read_manifest(run)
    scenario = manifest.scenario
    assert (manifest.status, scenario["find_max"], scenario["blocks"]) == ("complete", "concurrency", 3)
    # Nothing takes half a minute here, so the load is doubled from block to block.
    loads = {(s.engine, s.block): s.cell.concurrency for s in read_samples(run) if s.phase == "measure"}
    assert loads == {(engine, block): 2**block for engine in "ab" for block in range(3)}
    assert "a: no load is proven to keep the SLO" in done.stderr
    stats = cmp("stats", run, "--json")
    rows = json.loads(stats.stdout)["limits"]
    assert [(row["engine"], row["tried"]) for row in rows] == [("a", [1, 2, 4]), ("b", [1, 2, 4])]
    shown = cmp("stats", run)
    assert shown.stdout.startswith("A search for the largest load")
    assert "largest load that keeps p50 e2e_seconds <= 30" in shown.stdout
    assert "## Largest load that keeps the SLO" in cmp("guide", run).stdout
    assert cmp("report", run).returncode == 0
    raw = json.loads((run / "manifest.json").read_text())
    raw["status"] = "interrupted"
    raw["scenario"]["blocks"] = 5
    (run / "manifest.json").write_text(json.dumps(raw))
    again = cmp("run", "--resume", run, "--model", tiny.path)
    assert again.returncode == 0, again.stderr
    more = {(s.engine, s.block): s.cell.concurrency for s in read_samples(run) if s.phase == "measure"}
    assert more == {(engine, block): 2**block for engine in "ab" for block in range(5)}


def test_a_disturbed_launch_of_a_search_is_repeated_at_once_and_the_search_goes_on_with_it(
    cmp: CommandLine, tmp_path: Path, tiny: ModelInfo
) -> None:
    (tmp_path / "mini.toml").write_text(SCENARIO)
    line = ["run", "--scenario", "mini.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--seed", "2"]
    line += ["--engines", "a=fake", "-o", "a.clock=real", "-o", "a.disturbed=b0-a"]
    done = cmp(*line, "--find-max", "concurrency", "--slo", "e2e_p50<30s", "--blocks", "3")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    launches = [(r.launch, "" if r.replaces is msgspec.UNSET else r.replaces) for r in finished_launches(run)]
    assert launches == [("b0-a", ""), ("b0-a.2", "b0-a"), ("b1-a", ""), ("b2-a", "")]
    # Without the repetition the first block would have had no request that counts, and the second its load again.
    loads = {s.launch: s.cell.concurrency for s in read_samples(run) if s.phase == "measure"}
    assert loads == {"b0-a": 1, "b0-a.2": 1, "b1-a": 2, "b2-a": 4}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--find-max", "rate"], "--slo"),
        (["--slo", "ttft_p95<1s"], "--find-max"),
        (["--find-max", "rate", "--slo", "ttft<1s"], "expected an SLO objective"),
        (["--find-max", "rate", "--slo", "ttft_p95<1s", "--adaptive"], "chooses loads"),
        (["--find-max", "rate", "--slo", "ttft_p95<1s", "--scenario", "load"], "kind load"),
    ],
)
def test_a_search_that_cannot_be_is_a_usage_error(
    options: list[str], told: str, cmp: CommandLine, tiny: ModelInfo
) -> None:
    done = cmp("run", "--engines", "a=fake", "--model", tiny.path, "--no-gate", *options)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_a_search_for_users_stays_within_what_there_is() -> None:
    assert allowed_loads("concurrency", MOST_USERS).most == 256
