"""Requests that are not all alike: drawn lengths, the same for every engine, and compared like for like."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import CommandLine
from helpers import only_run, read_samples
from scipy import stats

from enginecmp.errors import UsageError
from enginecmp.format.files import MANIFEST
from enginecmp.format.readers import read_manifest
from enginecmp.format.records import Asked, Cell, Sample
from enginecmp.prompts.lengths import Lognormal, Recorded, Uniform, draw, mean
from enginecmp.scenarios import Scenario, load_scenario
from enginecmp.types import ModelInfo
from enginecmp_analysis.data.columns import ColumnBuilder, Columns
from enginecmp_analysis.data.equal_work import shared
from enginecmp_analysis.data.launches import measured

CALM = "\n[validity]\nfloor_seconds = 1000\nlate_dispatch_seconds = 1000\nlate_dispatch_share = 1e9\n"

MIXED = """
name = "mixed"
primary_metric = "throughput_tokens_per_second"
[workloads.chat]
prompt_tokens = { distribution = "lognormal", median = 10, sigma = 0.7, least = 4, most = 32 }
output_tokens = { distribution = "file", file = "outputs.txt" }
[[cells]]
workload = "chat"
[[cells]]
workload = "chat"
concurrency = 3
[[cells]]
workload = "chat"
concurrency = 3
arrival = "poisson"
rate_per_second = 200
[profile.full]
blocks = 2
requests = 8
warmup_requests = 2
"""
OUTPUTS = "# tokens\n2\n3\n\n9\n"


def write(folder: Path, text: str = MIXED) -> Path:
    (folder / "outputs.txt").write_text(OUTPUTS)
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_cut_lognormal_has_the_quantiles_of_a_truncated_normal() -> None:
    lengths = Lognormal(median=80, sigma=0.8, least=8, most=512)
    low, high = (np.log(np.array([7.5, 512.5]) / 80)) / 0.8
    exact = 80 * np.exp(0.8 * stats.truncnorm.ppf((np.arange(200) + 0.5) / 200, low, high))
    drawn = np.sort(draw(lengths, 200, "seed"))
    # Each of 200 parts of the distribution is drawn from once: no draw is further away than its part is wide.
    edges = 80 * np.exp(0.8 * stats.truncnorm.ppf(np.arange(201) / 200, low, high))
    assert (drawn >= np.rint(edges[:-1]).clip(8)).all()
    assert (drawn <= np.rint(edges[1:]).clip(max=512)).all()
    assert mean(lengths) == pytest.approx(exact.mean(), rel=0.02)


@pytest.mark.parametrize("n", [4, 10, 100])
def test_a_sample_covers_its_distribution_and_comes_in_an_order_of_the_seed(n: int) -> None:
    drawn = draw(Uniform(1, n), n, "a")
    assert sorted(drawn) == list(range(1, n + 1))
    assert drawn == draw(Uniform(1, n), n, "a")
    assert drawn != draw(Uniform(1, n), n, "another")
    assert sorted(draw(Recorded((9, 1, 5, 5)), 4, "a")) == [1, 5, 5, 9]
    assert draw(7, 3, "a") == [7, 7, 7]


def test_a_cell_holds_the_longest_request_and_the_manifest_holds_the_file(tmp_path: Path) -> None:
    scenario = load_scenario(str(write(tmp_path)), None)
    assert [(cell.prompt_tokens, cell.output_tokens) for cell in scenario.cells] == [(32, 9)] * 3
    assert scenario.context_tokens == 41
    assert msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario) == scenario
    assert scenario.workloads["chat"].output_tokens == Recorded((2, 3, 9))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('workload = "chat"\n[[cells]]', 'workload = "chta"\n[[cells]]'), "did you mean 'chat'"),
        (('workload = "chat"\n[[cells]]', 'workload = "chat"\nprompt_tokens = 5\n[[cells]]'), "expected no prompt"),
        (("requests = 8", "requests = 8\nseconds = 2"), "requests and no seconds for a workload in a closed loop"),
        (("least = 4", "least = 40"), "1 <= least <= most"),
        (("sigma = 0.7", "sigma = -1"), "sigma from above 0 to 10"),
        (("median = 10, sigma = 0.7", "median = 5000, sigma = 0.1"), "a median between least and most"),
        (('"lognormal"', '"normal"'), "normal"),
        (('"outputs.txt"', '"nothing.txt"'), "nothing.txt: No such file"),
        (('"outputs.txt"', '"mine.toml"'), "expected a number of tokens a line, got 'name"),
        (("output_tokens = {", "output_tokenz = {"), "did you mean 'output_tokens'"),
        (("\n[profile", "\noffered_load = [1.0]\n[profile"), "offered_load"),
    ],
)  # fmt: skip
def test_a_workload_that_cannot_be_is_refused_with_the_reason(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    assert change[0] in MIXED
    with pytest.raises(UsageError) as raised:
        load_scenario(str(write(tmp_path, MIXED.replace(*change, 1))), None)
    assert expected in str(raised.value)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, tiny: ModelInfo) -> Path:
    """A run of two engines, one of which batches by itself."""
    from conftest import FAKE_MODULE, command_line

    folder = tmp_path_factory.mktemp("mixed")
    write(folder, MIXED + CALM)
    real = [part for label in "ab" for o in ("clock=real", "decode_us=300") for part in ("-o", f"{label}.{o}")]
    done = command_line(folder)(
        "run", "--scenario", "mine.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--seed", "3",
        "--engines", "a=fake,b=fake_queue", *real, env={"CMP_PLUGINS": f"{FAKE_MODULE},enginecmp.testing.fake_queue"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return only_run(folder / "results")


def test_every_engine_gets_the_same_requests_and_each_sample_says_which(mixed: Path) -> None:
    samples = read_samples(mixed)
    plans: dict[tuple[object, ...], dict[str, set[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(set))
    for sample in samples:
        if sample.phase != "load" and not sample.flags and sample.asked is not msgspec.UNSET:
            assert sample.status == "ok"
            assert sample.output_tokens == sample.asked.output_tokens == len(sample.token_ns)
            place = (sample.block, sample.cell, sample.phase)
            plans[place][sample.engine].add((sample.asked.request, sample.prompt_tokens, sample.output_tokens))
    assert len(plans) == 2 * 3 * 2
    for (_, cell, phase), of_engine in plans.items():
        assert of_engine["a"] == of_engine["b"]
        users = cell.concurrency if cell.concurrency > 1 and not cell.arrival else 1
        assert len(of_engine["a"]) == (8 if phase == "measure" else 2 * users)
        if phase == "measure":
            # Eight draws cover three recorded lengths.
            assert {output for *_, output in of_engine["a"]} == {2, 3, 9}
            assert len({prompt for _, prompt, _ in of_engine["a"]}) > 3
    assert plans[0, samples[-1].cell, "measure"] != plans[1, samples[-1].cell, "measure"]


def test_a_mixed_run_is_judged_and_told_as_what_it_is(mixed: Path, cmp: CommandLine) -> None:
    shown = cmp("stats", "--all", mixed)
    assert shown.returncode == 0, shown.stderr
    assert "chat, prompt up to 32 → output up to 9 tokens, 3 users" in shown.stdout
    found = msgspec.json.decode(cmp("stats", mixed, "--json").stdout)
    assert not [warning for warning in found["warnings"] if "left out" in warning or "another output length" in warning]
    assert {s["n_samples"] for s in found["summaries"] if s["metric"] == "e2e_seconds"} == {16}


def columns(*missing: tuple[str, int]) -> Columns:
    """Return four requests of two engines in a block; those missing are flagged."""
    builder = ColumnBuilder()
    for engine in "ab":
        for number in range(4):
            sample = Sample(
                block=0, order=0, launch=f"b0-{engine}", engine=engine, cell=Cell(9, 9, workload="chat"), index=number,
                phase="measure", intended_ns=0, start_ns=0, token_ns=[1], end_ns=2, prompt_tokens=3, output_tokens=1,
                status="ok", flags=["steal"] if (engine, number) in missing else [],
                asked=Asked(request=number, output_tokens=1),
            )  # fmt: skip
            builder.add(sample)
    return builder.build()


def test_a_request_counts_where_every_engine_has_it() -> None:
    found = columns(("a", 1), ("b", 3))
    assert shared(found, measured(found)).tolist() == [True, False, True, False] * 2
    whole = columns()
    assert shared(whole, measured(whole)).all()
    # An engine of which nothing is left takes nothing from the others: their block has no pair anyway.
    lost = columns(*(("a", number) for number in range(4)))
    assert shared(lost, measured(lost)).tolist() == [False] * 4 + [True] * 4


def test_what_is_not_shared_is_told(mixed: Path, cmp: CommandLine, tmp_path: Path) -> None:
    lines = (mixed / "samples.jsonl").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if '"phase":"measure"' in line and '"flags":[]' in line)
    lines[first] = lines[first].replace('"flags":[]', '"flags":["steal"]')
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / MANIFEST).write_bytes((mixed / MANIFEST).read_bytes())
    found = msgspec.json.decode(cmp("stats", tmp_path, "--json").stdout)
    assert [w for w in found["warnings"] if "1 of 95 unlike requests count for rates alone" in w]
    assert sorted({s["n_samples"] for s in found["summaries"] if s["metric"] == "e2e_seconds"}) == [15, 16]
    assert read_manifest(mixed).scenario["workloads"]["chat"]["output_tokens"]["values"] == [2, 3, 9]
