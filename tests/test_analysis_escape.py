"""Labels, models and errors of strangers in every form of output: shown, never obeyed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from enginecmp.format.records import Cell, Manifest
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.decisions.decide import Questions, decide_more
from enginecmp_analysis.decisions.prices import read_prices
from enginecmp_analysis.decisions.regression import compare_runs
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.escape import for_csv, for_json, for_markdown
from enginecmp_analysis.render.export import to_csv, to_json, to_markdown
from enginecmp_analysis.render.junit import to_junit
from enginecmp_analysis.render.pictures.page import to_page
from enginecmp_analysis.render.regression_table import regression_markdown

EVIL = "</script><img src=x onerror=alert(1)>![i](http://evil.example/p.png)[l](javascript:x)|a|`b`\x1b]0;T\x07\u202e\x9b\n=1"


def _evil(run: Run) -> Run:
    def deep(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: deep(item) for key, item in value.items()}
        if isinstance(value, list):
            return [deep(item) for item in value]
        return value + EVIL if isinstance(value, str) else value

    manifest = msgspec.to_builtins(run.manifest)
    for engine in manifest["engines"]:
        engine |= {"name": f"={engine['name']}{EVIL}", "version": EVIL, "device": EVIL}
    for entry in manifest["equivalence"]:
        entry |= {"engine": f"={entry['engine']}{EVIL}", "note": EVIL, "quantization": EVIL, "perplexity": 12.0}
    manifest |= {"baseline": f"={manifest['baseline']}{EVIL}", "run_id": manifest["run_id"] + EVIL}
    manifest["model"]["name"] += EVIL
    manifest["scenario"]["name"] += EVIL
    manifest["environment"] = deep(manifest["environment"])
    columns = dataclasses.replace(
        run.columns,
        engines=tuple(f"={name}{EVIL}" for name in run.columns.engines),
        launches=tuple(name + EVIL for name in run.columns.launches),
        cells=tuple(msgspec.structs.replace(cell, variant=EVIL) for cell in run.columns.cells),
        reasons=("", EVIL),
    )
    columns.excluded[-3:] = 1
    return Run(msgspec.convert(manifest, Manifest), columns, (f"a note {EVIL}",))


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    found = analyse([_evil(simulate_run(Design(), cells=(Cell(50, 16, 1), Cell(100, 16, 1))))])
    decide_more(found, Options(), Questions(prices=read_prices("2/h")))
    return found


def _acts(text: str) -> list[str]:
    return [character for character in text if not character.isprintable() and character != "\n"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('=HYPERLINK("http://evil/")', '\'=HYPERLINK("http://evil/")'),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "'  =1"),
        ("\t=1", "\\t=1"),
        ("\r=1", "\\r=1"),
        ("llamacpp", "llamacpp"),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_a_cell_of_csv_begins_no_formula(text: object, expected: object) -> None:
    assert for_csv(text) == expected


def test_markdown_has_no_links_images_tags_and_columns() -> None:
    assert for_markdown("![a](http://b)|<i>`c`") == "!\\[a\\](http:\\//b)\\|&lt;i&gt;\\`c\\`"
    assert for_markdown("www.evil.example WWW.x a\nb\\") == "www\\.evil.example WWW\\.x a\\\\nb\\\\"


def test_json_means_the_same_and_holds_no_control_characters() -> None:
    text = {"a": "\x7f\x9b\u202e\U000e0041é🦙\ud800"}
    document = json.dumps(text, ensure_ascii=False)
    assert json.loads(for_json(document)) == text
    assert _acts(for_json(document)) == []


def test_csv_of_strangers_has_no_formula_and_no_line_of_its_own(analysis: Analysis) -> None:
    text = to_csv(analysis.report)
    assert _acts(text) == []
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(text.splitlines()) == len(rows) + 1
    assert len(rows) == len(analysis.report.comparisons)
    for row in rows:
        assert row["engine"].startswith("'=engine")
        assert row["baseline"].startswith("'=baseline")


def test_markdown_of_strangers_is_tables_and_text(analysis: Analysis) -> None:
    comparison = compare_runs(
        [_evil(simulate_run(Design(), seed=1))],
        [_evil(simulate_run(Design(), seed=2, run_id="new"))],
    )
    for text in (to_markdown(analysis), regression_markdown(comparison)):
        assert _acts(text) == []
        assert not re.search(r"(?<!\\)\[|(?<!\\)\]\(|<|http://", text.replace("[95 % CI]", ""))
        width = 0
        for line in text.splitlines():
            assert not line.startswith("=1")
            if not line.startswith("|"):
                width = 0
                continue
            columns = len(re.findall(r"(?<!\\)\|", line))
            assert columns == (width or columns)
            width = columns


def test_the_page_of_strangers_has_only_our_tags(analysis: Analysis) -> None:
    page = to_page(analysis, 0.03)
    body = page[page.index("<body") :]
    assert "<img" not in body
    assert "onerror=alert(1)>" not in body
    assert body.count("<script") == body.count("</script>")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]", body)


def test_json_and_junit_of_strangers_hold_no_control_characters(analysis: Analysis) -> None:
    text = to_json(analysis.report)
    assert _acts(text) == []
    assert json.loads(text)["comparisons"][0]["engine"] == f"=engine{EVIL}"
    runs = [_evil(simulate_run(Design(), seed=seed, run_id=f"r{seed}")) for seed in (1, 2)]
    xml = to_junit(compare_runs(runs[:1], runs[1:]))
    assert _acts(xml) == []
    assert ElementTree.fromstring(xml).tag == "testsuites"
