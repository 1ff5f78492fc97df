"""Sampled ids and requests that end by themselves: what is asked, what is recorded, and what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import CommandLine
from helpers import SCENARIO, only_run, read_samples

from enginecmp.errors import CmpError, UsageError
from enginecmp.format.records import Asked, Cell, Sample
from enginecmp.plugins.plugin import Plugin
from enginecmp.run.selection import choose
from enginecmp.scenarios import Scenario, load_scenario
from enginecmp.scenarios.decoding import DecodingRule, request_seed
from enginecmp.types import ModelInfo, Probe
from enginecmp_analysis.data.columns import ColumnBuilder, Columns
from enginecmp_analysis.data.launches import measured
from enginecmp_analysis.data.own_lengths import Lengths, lengths_note

MOST = 40
DRAWN = """
name = "drawn"
primary_metric = "tpot_seconds"
[decodings.free]
temperature = 30.0
top_k = 60
stop_at_eos = true
[decodings.drawn]
temperature = 5.0
[[cells]]
prompt_tokens = 8
output_tokens = 40
decoding = "free"
[[cells]]
prompt_tokens = 8
output_tokens = 40
concurrency = 3
decoding = "free"
[[cells]]
prompt_tokens = 8
output_tokens = 5
decoding = "drawn"
[profile.full]
blocks = 3
requests = 12
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""


def write(folder: Path, text: str = DRAWN) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_scenario_says_what_its_cells_need(tmp_path: Path) -> None:
    scenario = load_scenario(str(write(tmp_path)), None)
    assert scenario.needs_decoding == {"sampling", "end_of_sequence"}
    assert [scenario.rule(cell).may_end for cell in scenario.cells] == [True, True, False]
    assert msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario) == scenario
    assert load_scenario(str(write(tmp_path, SCENARIO)), None).needs_decoding == frozenset()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("temperature = 30.0", "temperature = -1"), "temperature from 0 to 100"),
        (("temperature = 30.0", "temperature = nan"), "temperature from 0 to 100"),
        (("temperature = 30.0", "temperature = 0"), "temperature > 0 beside top_k"),
        (("top_k = 60", "top_p = 1.5"), "top_p above 0 and up to 1"),
        (("top_k = 60", "topk = 60"), "did you mean 'top_k'"),
        (('decoding = "free"', 'decoding = "fre"'), "decoding = one of free, drawn"),
        (("requests = 12", "requests = 12\nseconds = 2"), "requests and no seconds where requests may end early"),
        (("tpot_seconds", "requests_per_second"), "a primary_metric of tokens"),
        (("[[cells]]", "[[cells]]\nworkload = 'x'"), "unknown workload"),
    ],
)
def test_a_decoding_that_cannot_be_is_refused_with_the_reason(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    assert change[0] in DRAWN
    with pytest.raises(UsageError) as raised:
        load_scenario(str(write(tmp_path, DRAWN.replace(*change, 1))), None)
    assert expected in str(raised.value)


def test_each_request_has_a_seed_of_its_own_that_the_run_s_seed_decides() -> None:
    seeds = [request_seed(1, key) for key in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 1 << 31 for seed in seeds)
    assert [request_seed(1, key) for key in range(100)] == seeds
    assert request_seed(2, 0) != seeds[0]
    rule = DecodingRule(temperature=0.5, top_p=0.9)
    assert rule.decoding(7, (1, 2)).end_ids == ()
    assert msgspec.structs.replace(rule, stop_at_eos=True).decoding(7, (1, 2)).end_ids == (1, 2)
    # Greedy requests do not differ by a seed that nothing reads.
    assert DecodingRule(stop_at_eos=True).decoding(7, (1,)).seed == 0


def test_an_engine_that_lacks_it_is_left_out_in_one_line(fake: Plugin, tiny: ModelInfo) -> None:
    assert fake.info is not None
    lacking = msgspec.structs.replace(fake.info, decoding=("sampling",))
    plugin = msgspec.structs.replace(fake, info=lacking)
    said: list[str] = []
    common: dict[str, Any] = {
        "model": tiny, "everything": False, "devices": {}, "threads": 1, "context_tokens": 50, "extra": {},
        "probe": lambda *_: Probe(ok=True), "say": said.append,
    }  # fmt: skip
    with pytest.raises(CmpError) as raised:
        choose({"a": plugin}, decoding={"sampling", "end_of_sequence"}, **common)
    line = "a: fake does not offer ending at the end-of-sequence token here, which the scenario asks for"
    assert said == [f"left out: {line}"]
    assert line in str(raised.value)
    assert [config.label for config in choose({"a": plugin}, decoding={"sampling"}, **common)] == ["a"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, tiny: ModelInfo) -> Path:
    """A run of two engines that draw from other distributions, so that their answers differ in length."""
    from conftest import command_line

    folder = tmp_path_factory.mktemp("drawn")
    write(folder)
    real = [part for label in "abc" for o in ("clock=real", "decode_us=50") for part in ("-o", f"{label}.{o}")]
    done = command_line(folder)(
        "run", "--scenario", "mine.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--seed", "3",
        "--engines", "a=fake,b=fake,c=fake", "--baseline", "a", "-o", "c.error=4", *real,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return only_run(folder / "results")


def test_samples_say_how_many_tokens_were_asked_for_and_came(drawn: Path) -> None:
    samples = [sample for sample in read_samples(drawn) if sample.phase == "measure"]
    assert len(samples) == 3 * 3 * 3 * 12
    lengths: dict[tuple[object, ...], dict[str, int]] = {}
    for sample in samples:
        assert (sample.status, sample.flags) == ("ok", [])
        assert len(sample.token_ns) == sample.output_tokens
        if sample.cell.decoding == "drawn":
            assert sample.asked is msgspec.UNSET
            assert sample.output_tokens == 5
            continue
        assert isinstance(sample.asked, Asked)
        assert sample.asked.may_end
        assert sample.asked.output_tokens == MOST >= sample.output_tokens >= 1
        place = (sample.block, sample.cell, sample.asked.request)
        lengths.setdefault(place, {})[sample.engine] = sample.output_tokens
    assert len(lengths) == 3 * 2 * 12
    # The same seed, prompt and distribution: the same answer, alone or in a batch. Another distribution: others.
    assert all(of_engine["a"] == of_engine["b"] for of_engine in lengths.values())
    assert any(of_engine["a"] != of_engine["c"] for of_engine in lengths.values())
    shorter = [of_engine["a"] for of_engine in lengths.values() if of_engine["a"] < MOST]
    assert len(shorter) >= 5


def test_unequal_work_is_conditioned_on_and_said(drawn: Path, cmp: CommandLine) -> None:
    found = msgspec.json.decode(cmp("stats", drawn, "--json").stdout)
    free = {"prompt_tokens": 8, "output_tokens": MOST, "concurrency": 1, "decoding": "free"}
    compared = {
        (c["engine"], c["metric"], c["cell"].get("decoding")): c for c in found["comparisons"] if c["cell"] is not None
    }
    assert ("c", "tpot_seconds", "free") in compared
    assert ("c", "requests_per_second", "free") not in compared
    assert ("c", "requests_per_second", "drawn") in compared
    shown = {(s["engine"], s["metric"]): s for s in found["summaries"] if s["cell"] == free}
    assert shown["c", "e2e_seconds"]["n_samples"] == 36
    assert shown["c", "output_tokens"]["mean"] < MOST
    equal = [c for c in found["comparisons"] if c["cell"] == free and c["metric"] == "e2e_seconds"]
    assert {c["engine"]: c["n_samples"] < 36 for c in equal}["c"]
    notes = [warning for warning in found["warnings"] if "requests end by themselves" in warning]
    assert len(notes) == 2
    assert all("e2e_seconds is compared on those alone" in note for note in notes)
    told = [f for f in found["findings"] if f["topic"] == "output length"]
    assert {f["engine"] for f in told} == {"a", "b", "c"}
    assert all("end by themselves" in f["text"] for f in told)
    again = {f["engine"]: f["details"]["p_value"] for f in told if f["cell"] == free}
    assert again["b"] == 1


def columns(lengths: dict[str, list[int]]) -> Columns:
    """Return requests of one block, engine → output tokens of its requests by number."""
    builder = ColumnBuilder()
    for engine, of_engine in lengths.items():
        for number, tokens in enumerate(of_engine):
            sample = Sample(
                block=0, order=0, launch=f"b0-{engine}", engine=engine, cell=Cell(9, 9, decoding="free"), index=number,
                phase="measure", intended_ns=0, start_ns=0, token_ns=[1], end_ns=2, prompt_tokens=9,
                output_tokens=tokens, status="ok", asked=Asked(request=number, output_tokens=9, may_end=True),
            )  # fmt: skip
            builder.add(sample)
    return builder.build()


def lengths_in(found: Columns) -> Lengths:
    from types import SimpleNamespace

    from enginecmp_analysis.data.own_lengths import lengths_of

    run: Any = SimpleNamespace(columns=found)
    (lengths,) = lengths_of([run], [measured(found)]).values()
    return lengths


def test_requests_of_equal_length_are_counted_once_each() -> None:
    assert lengths_in(columns({"a": [9, 4, 3, 9], "b": [9, 5, 3, 9]})) == Lengths(4, 3)
    assert lengths_in(columns({"a": [9, 4], "b": [9, 4], "c": [8, 4]})) == Lengths(2, 1)
    # What one engine alone has is no pair.
    assert lengths_in(columns({"a": [9, 4, 7], "b": [9]})) == Lengths(1, 1)
    assert "equal work" in lengths_note(Lengths(4, 4))
    assert "3 of 4" in lengths_note(Lengths(4, 3))


def test_options_of_run_put_one_decoding_into_every_cell(tmp_path: Path, tiny: ModelInfo, cmp: CommandLine) -> None:
    (tmp_path / "mini.toml").write_text(SCENARIO)
    common = ("--scenario", "mini.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--engines", "fake")
    done = cmp("run", *common, "--temperature", "0.7", "--top-p", "0.9", "--stop-at-eos", "--seed", "1")
    assert done.returncode == 0, done.stderr
    manifest = msgspec.json.decode((only_run(tmp_path / "results") / "manifest.json").read_bytes())
    rule = manifest["scenario"]["decodings"]["sampled+eos"]
    assert (rule["temperature"], rule["top_p"], rule["stop_at_eos"]) == (0.7, 0.9, True)
    assert [cell["decoding"] for cell in manifest["scenario"]["cells"]] == ["sampled+eos"]
    write(tmp_path)
    refused = cmp("run", *("mine.toml" if word == "mini.toml" else word for word in common), "--temperature", "1")
    assert refused.returncode == 2
    assert "has [decodings] of its own" in refused.stderr
    useless = cmp("run", *common, "--top-p", "0.5")
    assert useless.returncode == 2
    assert "temperature > 0 beside top_k or top_p" in useless.stderr
