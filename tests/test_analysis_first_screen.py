"""What a reader sees first: the answer, the ranking, and what changes the reading."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from enginecmp.cli.stats import command
from enginecmp.format.records import Cell, Equivalence
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.columns import MEASURE
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.render.first_screen import first_screen
from enginecmp_analysis.render.layout import three_digits

FOUR = ("pytorch_baseline", "llamacpp", "candle", "mistralrs")
CELL = Cell(50, 16, 1)


def screen(design: Design, **run: object) -> list[str]:
    """Return the lines of a simulated run of four engines."""
    analysis = analyse([simulate_run(design, engines=FOUR, **run)])  # type: ignore[arg-type]
    return [text for text, _ in first_screen(analysis, "cmp stats results/")]


def test_the_first_line_says_who_by_how_much_and_how_sure() -> None:
    lines = screen(Design(ratio=0.8))
    assert lines[0] == "llamacpp generates 1.26 × the tokens per second of pytorch_baseline, 95 % CI"
    assert lines[1] == "1.23–1.30; candle 1.25 ×; mistralrs 1.22 ×."


def test_one_cell_of_four_engines_takes_at_most_24_lines_of_80_columns() -> None:
    for design in (Design(ratio=0.8), Design(launch_spread=0.1), Design(blocks=2), Design(noise="pareto", tail=1.5)):
        lines = screen(design)
        assert len(lines) <= 24, "\n".join(lines)
        assert max(map(len, lines)) <= 80, "\n".join(lines)


def test_a_terminal_of_60_columns_has_the_same_answer_in_60_columns() -> None:
    for design in (Design(ratio=0.8), Design(launch_spread=0.1), Design(blocks=2), Design(noise="pareto", tail=1.5)):
        analysis = analyse([simulate_run(design, engines=FOUR)])
        lines = [text for text, _ in first_screen(analysis, "cmp stats results/", 60)]
        assert len(lines) <= 24, "\n".join(lines)
        assert max(map(len, lines)) <= 60, "\n".join(lines)
        assert all(any(engine[:7] in line for line in lines[3:]) for engine in FOUR)
        assert not any("! simulated" in line for line in lines), "one cell needs no name before every note"


@pytest.mark.parametrize("columns", [60, 80])
def test_long_names_gates_that_were_not_passed_and_many_cells_fit_too(columns: int) -> None:
    engines = ("pytorch_baseline_of_july", "llamacpp_flash", "candle_new", "custom_cpu_lookup")
    cells = (Cell(9, 4, 1, variant="ffn_up_64_parallel_of_a_layer"), Cell(50, 32, 8), Cell(10, 8, 1))
    one = analyse([simulate_run(Design(ratio=0.8), engines=engines, gate="not checked")])
    many = analyse([simulate_run(Design(ratio=0.8), engines=engines, cells=cells)])
    for analysis in (one, many):
        lines = [text for text, _ in first_screen(analysis, "cmp stats results/", columns)]
        assert max(map(len, lines)) <= columns, "\n".join(lines)
    told = [text for text, _ in first_screen(one, "cmp stats results/", 60)]
    assert "gate: not checked: " in " ".join(told)
    assert "; reference: pytorch_baseline_of_july" in " ".join(told)
    rows = [text for text, _ in first_screen(many, "cmp stats results/", columns)]
    assert [row for row in rows if row.startswith("10→8")]
    assert not any(row.startswith(("pytorch", "candle_new =")) for row in rows[rows.index("") :]), "\n".join(rows)


def test_a_request_in_a_hundred_is_told_last_and_many_of_them_first() -> None:
    def notes(lost: int) -> list[str]:
        run = simulate_run(Design(launch_spread=0.1), engines=("baseline", "engine"))
        rows = np.flatnonzero((run.columns.phase == MEASURE) & (run.columns.engine == 1))[:: 100 // lost]
        excluded = run.columns.excluded.copy()
        excluded[rows] = 1
        columns = dataclasses.replace(run.columns, reasons=("", "foreign_cpu"), excluded=excluded)
        return analyse([dataclasses.replace(run, columns=columns)]).report.warnings

    few, many = notes(1), notes(20)
    assert few[-1].startswith("engine: 1 of 100 measured requests left out")
    assert many[0].startswith("engine: 20 of 100 measured requests left out")
    assert any("launch means spread" in note for note in few[:-1])


def test_a_scenario_without_a_ranking_says_so_beside_others() -> None:
    without = simulate_run(seed=2, run_id="other")
    without.manifest.scenario |= {"name": "other", "primary_metric": "saturation_requests_per_second"}
    analysis = analyse([without, simulate_run()])
    lines = [text for text, _ in first_screen(analysis, "cmp stats results/")]
    assert "Nothing to rank in other." in lines
    assert lines[0]


def test_notes_come_in_the_order_of_cells_whatever_a_hash_says() -> None:
    cells = tuple(Cell(10 * n, 4, 1) for n in range(1, 7))
    analysis = analyse([simulate_run(Design(launch_spread=0.2), cells=cells)])
    noted = [cell for cell in analysis.contexts[0].notes if cell is not None]
    assert noted == list(cells)


def test_engines_are_listed_best_first_with_rank_value_ratio_gate_and_a_word() -> None:
    lines = screen(Design(ratio=0.8))
    rows = [line.split() for line in lines if line[:2].strip().isdecimal()]
    assert [row[:2] for row in rows] == [["1", "llamacpp"], ["1", "candle"], ["1", "mistralrs"], ["4", FOUR[0]]]
    assert rows[3][3] == "0.791"
    assert lines[[i for i, line in enumerate(lines) if FOUR[0] in line][-1]].endswith("reference, slower")


def test_without_enough_launches_it_says_how_many_are_missing() -> None:
    lines = screen(Design(ratio=0.8, blocks=6))
    assert lines[0].startswith("No verdict yet on ")
    assert "4 more undisturbed launches needed." in " ".join(lines[:2])
    assert all(line.startswith(" –") for line in lines if "equivalent" in line)


def test_equal_engines_are_not_called_equal() -> None:
    text = " ".join(screen(Design(launch_spread=0.05)))
    assert "cannot be told apart" in text
    assert "faster" not in text


def test_an_engine_that_failed_the_gate_is_named_and_not_ranked() -> None:
    lines = screen(Design(ratio=0.8), gate="not comparable")
    assert sum(line.endswith("  not comparable") for line in lines) == 3


def test_an_engine_alone_that_failed_the_gate_is_still_shown() -> None:
    run = simulate_run(Design(blocks=2), engines=("other",))
    run.manifest.equivalence = [
        Equivalence(engine="other", mean_kl=None, max_kl=None, top1=None, verdict="not comparable")
    ]
    lines = [text for text, _ in first_screen(analyse([run]), "cmp stats results/")]
    assert lines[0] == "Nothing can be compared: other did not pass the gate."


def test_many_cells_take_a_line_each() -> None:
    lines = screen(Design(ratio=0.9), cells=tuple(Cell(10, 16, users) for users in (1, 4, 16, 32)))
    rows = [line for line in lines if line.startswith("10→16, ×")]
    assert len(rows) == 4
    assert all("pytorch_baseline 0." in row for row in rows)


def test_the_commands_that_show_more_work_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    write_run(simulate_run(engines=FOUR), folder)
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(command, ["two words"], catch_exceptions=False)
    assert "more, with --all, --pairs or --details: cmp stats 'two words'" in first.output
    everything = CliRunner().invoke(command, ["two words", "--all"], catch_exceptions=False)
    assert "e2e_seconds  (exploratory; lower is better; shown in ms)" in everything.output
    assert "e2e_seconds" not in first.output


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (47.66, "47.7"),
        (0.3691, "0.369"),
        (1229.9, "1,230"),
        (9.999, "10.0"),
        (0.000123456, "0.000123"),
        (0.0000123, "1.23e-05"),
        (0.0, "0"),
        (2.5e7, "2.50e+07"),
        (float("nan"), "n/a"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text
