"""The deployment guide: it says what the data carry, with their numbers and runs, and names what they do not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import CommandLine
from decision_runs import ladder
from simulated_load import run_of, sample

from enginecmp.format.records import Cell
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import Run, load_runs
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.decisions.decide import Questions, decide_more
from enginecmp_analysis.decisions.prices import read_prices
from enginecmp_analysis.decisions.slo import parse_objectives
from enginecmp_analysis.guide.build import build
from enginecmp_analysis.guide.pages import to_html, to_markdown
from enginecmp_analysis.guide.words import closing_command
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.judge.verdict import Verdict
from enginecmp_analysis.render.layout import three_digits
from enginecmp_analysis.render.pictures.answer import command_of
from enginecmp_analysis.schema.guide import Guide, Section

FAST = Design(ratio=0.5, launch_spread=0.01, requests=20)


def guide_of(*runs: Run, questions: Questions | None = None) -> Guide:
    questions = questions or Questions()
    analysis = analyse(runs)
    decide_more(analysis, Options(), questions)
    return build(analysis, questions)


def part(guide: Guide, name: str) -> Section:
    (section,) = [section for section in guide.sections if section.name == name]
    return section


def interactive(design: Design = FAST, **more: object) -> Run:
    run = simulate_run(design, run_id="single-1", **more)  # type: ignore[arg-type]
    run.manifest.scenario |= {"name": "single", "primary_metric": "ttft_seconds"}
    return run


def test_a_decided_use_names_engine_numbers_interval_and_run() -> None:
    run = interactive()
    run.manifest.engines[1].options |= {"threads": 4, "batching": "continuous", "extra": {"flash_attn": "on"}}
    section = part(guide_of(run), "uses")
    (said,) = [text for text in section.text if text.startswith("Interactive: ")]
    report = analyse([run]).report
    (summary,) = [s for s in report.summaries if (s.engine, s.metric) == ("engine", "ttft_seconds")]
    limits = f"[{three_digits(1e3 * summary.ci_low)}, {three_digits(1e3 * summary.ci_high)}] ms"
    assert "engine, which nothing was shown to beat in the measured cell (ttft_seconds, 50→16, ×1: " in said
    assert f"{three_digits(1e3 * summary.mean)} {limits}, 10 launches" in said
    (ranking,) = report.rankings
    beaten = ranking.rows[1]
    assert f"baseline {three_digits(beaten.ratio_to_best)} [{three_digits(beaten.ci_low)}, " in said
    assert said.endswith("(slower); run single-1).")
    assert section.table is not None
    assert section.table.rows[0][3] == "1.0, cpu, 4 threads, continuous batching, flash_attn=on"


def test_engines_that_were_not_told_apart_are_both_named() -> None:
    (said,) = [
        t for t in part(guide_of(interactive(Design(ratio=1.0, requests=20))), "uses").text if "Interactive" in t
    ]
    assert re.search(r"(baseline and engine|engine and baseline), which were not told apart", said)


def test_an_open_verdict_says_so_and_names_the_command_that_closes_it(tmp_path: Path) -> None:
    write_run(interactive(Design(ratio=0.5, blocks=5, requests=20)), tmp_path)
    (tmp_path / "single-1" / "resume.json").write_text(
        json.dumps({"model": "m.gguf", "reference": "r", "command": "cmp run --scenario single --model m.gguf"})
    )
    section = part(guide_of(*load_runs([str(tmp_path / "single-1")])), "uses")
    assert [text for text in section.text if text.startswith("Interactive: open")]
    assert f"cmp run --extend {tmp_path / 'single-1'} --blocks +5" in section.commands
    assert "cmp run --scenario sustained --engines baseline,engine --model m.gguf" in section.commands
    assert section.table is not None
    assert section.table.rows[0][2] == "open"


def test_an_inconclusive_verdict_takes_a_run_of_its_own_and_a_hopeless_one_none(tmp_path: Path) -> None:
    write_run(interactive(Design(blocks=10, requests=20)), tmp_path)
    (tmp_path / "single-1" / "resume.json").write_text(
        json.dumps({"model": "m.gguf", "reference": "r", "command": "cmp run --scenario single --model m.gguf"})
    )
    analysis = analyse(load_runs([str(tmp_path / "single-1")]))
    (group,) = analysis.groups

    def command(verdict: Verdict, launches: int) -> str:
        found = [msgspec.structs.replace(analysis.report.comparisons[0], verdict=verdict, launches_needed=launches)]
        return closing_command(analysis, group, found)

    again = "cmp run --scenario single --engines baseline,engine --model m.gguf --blocks 26"
    assert command("inconclusive", 16) == again
    assert command("withheld", 3) == f"cmp run --extend {tmp_path / 'single-1'} --blocks +3"
    assert command("inconclusive", 1412) == ""


def test_uses_without_data_are_not_measured_and_say_what_would_measure_them() -> None:
    section = part(guide_of(interactive()), "uses")
    missing = [text.partition(":")[0] for text in section.text if "not measured" in text]
    assert missing == ["Throughput", "Long context", "Memory-bound"]
    assert [c.split()[3] for c in section.commands] == ["sustained", "long_context", "memory"]


def test_a_metric_that_is_not_primary_is_called_exploratory() -> None:
    run = simulate_run(FAST, run_id="one")
    (said,) = [text for text in part(guide_of(run), "uses").text if text.startswith("Interactive")]
    assert "exploratory" in said


def test_an_engine_alone_wins_nothing() -> None:
    run = simulate_run(FAST, engines=("baseline",))
    run.manifest.scenario["primary_metric"] = "ttft_seconds"
    (said,) = [text for text in part(guide_of(run), "uses").text if text.startswith("Interactive")]
    assert "nothing to choose from; baseline alone was measured" in said


def test_an_engine_that_is_not_comparable_is_never_recommended() -> None:
    run = interactive()
    for entry in run.manifest.equivalence:
        if entry.engine == "engine":
            entry.verdict = "not comparable"
    guide = guide_of(run)
    assert "engine" not in " ".join(row[2] for row in (part(guide, "uses").table or pytest.fail("no table")).rows)
    assert ["engine", "quality"] in [row[:2] for row in (part(guide, "risks").table or pytest.fail("no table")).rows]


def test_rates_of_an_open_loop_decide_no_throughput() -> None:
    run = ladder({"a": {2.0: 0}, "b": {2.0: 0}})
    run.manifest.scenario["primary_metric"] = "throughput_tokens_per_second"
    assert [t for t in part(guide_of(run), "uses").text if t.startswith("Throughput: not measured")]


def test_capacity_is_told_at_the_slo_without_a_demand() -> None:
    run = ladder({"a": {1.0: 0, 2.0: 0, 4.0: 30}, "b": {1.0: 0, 2.0: 30, 4.0: 30}})
    section = part(guide_of(run, questions=Questions(parse_objectives("ttft_p95<200ms"))), "service")
    assert section.table is not None
    assert {row[0]: row[2] for row in section.table.rows} == {
        "a": "2 to 4 requests/s a machine",
        "b": "1 to 2 requests/s a machine",
    }
    assert "rates between" in section.table.rows[0][3]


def test_costs_are_those_of_stats() -> None:
    questions = Questions(prices=read_prices("EUR 3.6/h"))
    run = interactive()
    analysis = analyse([run])
    decide_more(analysis, Options(), questions)
    assert analysis.report.money
    costs = {
        row.engine: three_digits(row.mean)
        for row in analysis.report.money.rows
        if row.metric == "cost_per_thousand_requests"
    }
    table = part(build(analysis, questions), "cost").table
    assert table is not None
    assert {row[0]: row[2].partition(" ")[0] for row in table.rows} == costs


def test_the_roadmap_is_ranked_by_the_seconds_of_the_profile() -> None:
    cell = Cell(1, 8, 1, variant="decode")
    rows = []
    for block in range(10):
        for engine, scale in (("baseline", 1.0), ("engine", 0.5)):
            parts = {"attention_seconds": 0.03 * scale, "ffn_seconds": 0.06 * scale, "norm_seconds": 0.009}
            for index in range(10):
                at = 10.0 * block + index
                rows.append(sample(block, engine, cell, index, at, at + 0.1, metrics=parts))
    run = run_of(rows, scenario={"name": "components", "kind": "profile", "primary_metric": "e2e_seconds"})
    section = part(guide_of(run), "roadmap")
    assert section.table is not None
    told = [(row[1], row[2], row[3].split()[0]) for row in section.table.rows]
    assert told == [
        ("baseline", "ffn", "60.0"),
        ("baseline", "attention", "30.0"),
        ("engine", "ffn", "30.0"),
        ("engine", "attention", "15.0"),
        ("baseline", "norm", "9.00"),
        ("engine", "norm", "9.00"),
    ]
    assert [row[4] for row in section.table.rows[:2]] == ["60.6 %", "30.3 %"]
    assert section.table.rows[0][5].endswith("ms, engine")
    assert section.table.rows[2][5] == "this one"


def test_without_a_profile_the_roadmap_names_the_run_that_would_tell() -> None:
    run = interactive()
    run.manifest.engines[1].options["tuned"] = "default"
    section = part(guide_of(run), "roadmap")
    assert section.table is None
    assert section.commands == ["cmp run --scenario components --engines baseline,engine", "cmp tune engine"]


def test_risks_count_flagged_requests_as_the_analysis_did() -> None:
    def disturbances(options: Options) -> list[str]:
        run = interactive()
        first = (np.arange(len(run.columns)) < 30).astype(np.int64)
        columns = dataclasses.replace(run.columns, reasons=("", "foreign_cpu"), excluded=first)
        analysis = analyse([dataclasses.replace(run, columns=columns)], options)
        decide_more(analysis, options, Questions())
        table = part(build(analysis, Questions()), "risks").table
        return [row[2] for row in (table.rows if table else []) if row[1] == "disturbance"]

    left_out = disturbances(Options())[0]
    assert "measured requests left out: foreign_cpu" in left_out
    counted = disturbances(Options(include_flagged=True))[0]
    assert "measured requests flagged or failed: foreign_cpu" in counted


def test_risks_hold_spread_licence_and_limits() -> None:
    run = interactive(Design(ratio=0.5, launch_spread=0.2, requests=20))
    run.manifest.engines[1].options |= {"licence": "MIT", "limits": ["gives no logits"]}
    table = part(guide_of(run), "risks").table
    assert table is not None
    mine = {row[1]: row[2] for row in table.rows if row[0] == "engine"}
    assert mine["licence"] == "MIT"
    assert mine["limit"] == "gives no logits"
    assert re.match(r"launches spread by \d", mine["spread"])


def test_gaps_name_cells_left_out_and_runs_that_are_not_complete() -> None:
    run = interactive()
    run.manifest.scenario["left_out"] = {"prompt 8192, output 16": "needs 8208 tokens"}
    run.manifest.status = "interrupted"
    notes = part(guide_of(run), "gaps").notes
    assert "single: prompt 8192, output 16: needs 8208 tokens." in notes
    assert "single: run single-1 is interrupted, not complete." in notes
    assert [note for note in notes if "--slo" in note]


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)


def test_labels_are_shown_and_never_obeyed() -> None:
    run = interactive()
    run.manifest.model.name = "<script>alert(1)</script>|`x`[a](b)"
    guide = guide_of(run)
    page = Tags()
    page.feed(to_html(guide))
    assert "script" not in page.seen
    text = to_markdown(guide)
    assert "<script>" not in text
    assert "[a](b)" not in text


def test_the_command_writes_markdown_html_and_json(cmp: CommandLine, tmp_path: Path) -> None:
    write_run(interactive(), tmp_path)
    done = cmp("guide", "single-1", "--output", "guide.md", "--html", "guide.html", "--slo", "ttft_p95<200ms")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    text, page = ((tmp_path / name).read_text() for name in ("guide.md", "guide.html"))
    assert text.startswith("# Deployment guide: ")
    assert "://" not in page
    found = json.loads(cmp("guide", "single-1", "--json").stdout)
    assert found["schema"] == "enginecmp-guide/1"
    titles = [section["title"] for section in found["sections"]]
    assert [title for title in titles if f"## {title}\n" not in text] == []
    flagged = json.loads(cmp("guide", "single-1", "--include-flagged", "--json").stdout)
    assert "no verdict" in json.dumps(flagged)
    assert "no verdict" not in json.dumps(found)
    (tmp_path / "t.toml").write_text('[[expect]]\nengine = "engine"\nmetric = "ttft_seconds"\nhigh = 0.001\n')
    refuted = cmp("guide", "single-1", "--expect", "t.toml")
    assert refuted.returncode == 3, refuted.stderr
    assert "| status |" in refuted.stdout


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A run folder of somebody else."""
    write_run(interactive(), tmp_path)
    return tmp_path / "single-1"


def test_no_word_of_a_foreign_run_is_a_command_of_its_own(foreign: Path) -> None:
    (foreign / "resume.json").write_text(json.dumps({"command": "cmp run --model 'm; id' ;id|sh $(id)\n--threads 2"}))
    manifest = json.loads((foreign / "manifest.json").read_text())
    manifest["engines"][0]["options"] |= {"engine": "x; id", "tuned": "default"}
    manifest["scenario"]["blocks"] = "3; id"
    (foreign / "manifest.json").write_text(json.dumps(manifest))
    (run,) = load_runs([str(foreign)])
    guide = guide_of(run)
    commands = [c for section in guide.sections for c in section.commands] + [command_of(run)]
    assert len(commands) > 2
    for command in commands:
        # What a shell would act on stands inside of quotes, so that one command with words remains.
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        assert not {";", "|", "(", ")"} & set("".join(word for word in lexer if set(word) <= set(";|()&<>"))), command
        assert command.startswith("cmp ")
    assert "cmp tune 'x; id' --model 'm; id' --threads 2" in part(guide, "roadmap").commands
    assert "\ncmp tune 'x; id' --model 'm; id' --threads 2\n" in to_markdown(guide)


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"command": "cmp run \'x"}', '{"command": "rm -rf x"}', '{"command": 5}']
)
def test_what_is_no_command_in_resume_json_is_passed_over(foreign: Path, content: str) -> None:
    without = command_of(load_runs([str(foreign)])[0])
    (foreign / "resume.json").write_text(content)
    (run,) = load_runs([str(foreign)])
    assert guide_of(run).sections
    assert command_of(run) == without


def test_a_fifo_in_place_of_resume_json_is_not_waited_for(foreign: Path) -> None:
    os.mkfifo(foreign / "resume.json")
    (run,) = load_runs([str(foreign)])
    assert guide_of(run).sections


def test_a_folder_with_two_spaces_stays_one_in_a_command(tmp_path: Path) -> None:
    home = tmp_path / "my  runs"
    write_run(interactive(Design(ratio=0.5, blocks=5, requests=20)), home)
    guide = guide_of(*load_runs([str(home / "single-1")]))
    assert str(home / "single-1") in to_markdown(guide)
