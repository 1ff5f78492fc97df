"""`cmp report --site`: pages that hold together, pooled leaderboards, and nothing of a run that is obeyed."""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from enginecmp.cli.report import command
from enginecmp.errors import ResultsError, UsageError
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.judge.leaderboard import entry_of, leaderboards
from enginecmp_analysis.render.export import to_json

HOSTILE = '"><script>parent.pwned=1</script><img src=x onerror=parent.pwned=1>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def plant(results: Path, number: int, *, ratio: float = 1.2, cpu: str = "EPYC", run_id: str | None = None) -> Path:
    run = simulate_run(Design(blocks=10, ratio=ratio), seed=number, run_id=run_id or f"run-{number}")
    run.manifest.environment = {"cpu": cpu, "cores": 2}
    run.manifest.created_utc = f"2026-0{1 + number}-01T00:00:00Z"
    return write_run(run, results)


def build(results: Path, site: Path, *more: str) -> Result:
    return CliRunner().invoke(command, ["--site", str(site), *more, str(results)], catch_exceptions=False)


def rows(page: str) -> list[str]:
    """The rows of the index, as a reader sees them."""
    found = re.findall(r"<tr data-.*?</tr>", page, re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", row)).split()) for row in found]


def test_every_link_of_every_page_leads_to_a_file_of_the_site(tmp_path: Path) -> None:
    for number in range(3):
        plant(tmp_path / "results", number)
    (tmp_path / "results" / "run-1" / "logs").mkdir()
    (tmp_path / "results" / "run-1" / "resume.json").write_text('{"model": "/home/me/model.gguf"}')
    build(tmp_path / "results", tmp_path / "site")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) == 2 + 3
    for page in pages:
        links = re.findall(r'(?:href|src)="([^"#]+)"', page.read_text())
        assert links
        assert [link for link in links if not (page.parent / link).resolve().is_file()] == []
        assert all((page.parent / link).resolve().is_relative_to(tmp_path / "site") for link in links)
    shown = rows((tmp_path / "site" / "index.html").read_text())
    assert [re.search(r"run-\d", row)[0] for row in shown] == ["run-2", "run-1", "run-0"]  # type: ignore[index]
    copied = (tmp_path / "site" / "runs" / "run-1" / "samples.jsonl").read_bytes()
    assert copied == (tmp_path / "results" / "run-1" / "samples.jsonl").read_bytes()
    # Paths of the machine stay on it.
    assert not list((tmp_path / "site").rglob("resume.json"))


def test_plotly_is_there_once(tmp_path: Path) -> None:
    for number in range(3):
        plant(tmp_path / "results", number)
    build(tmp_path / "results", tmp_path / "site")
    assert (tmp_path / "site" / "plotly.js").stat().st_size > 1_000_000
    assert all(page.stat().st_size < 1_000_000 for page in (tmp_path / "site").rglob("*.html"))


def test_a_leaderboard_of_pooled_runs_is_that_of_their_analysis() -> None:
    runs = [simulate_run(Design(blocks=10, ratio=1.2), seed=seed) for seed in (1, 2, 3)]
    entries = [(entry_of(analyse([run]).groups[0]), "EPYC") for run in runs]
    # Of thousands of runs nothing may be kept that grows with their requests.
    assert all(len(entry.run.columns) == 10 for entry, _ in entries)
    (board,) = leaderboards(entries, Options())
    (table,) = board.tables
    (ranking,) = table.rankings
    (expected,) = analyse(runs).report.rankings
    assert ranking.scenario == "simulated (quick)"
    ranking.scenario = expected.scenario
    assert to_json(ranking) == to_json(expected)
    assert [(row.engine, row.rank) for row in ranking.rows] == [("baseline", 1), ("engine", 2)]
    assert ranking.rows[0].n_launches == 30


def test_equal_engines_share_the_first_rank(tmp_path: Path) -> None:
    plant(tmp_path / "results", 1, ratio=1.0)
    build(tmp_path / "results", tmp_path / "site")
    told = json.loads((tmp_path / "site" / "leaderboards.json").read_text())
    (ranking,) = told["leaderboards"][0]["tables"][0]["rankings"]
    assert [row["rank"] for row in ranking["rows"]] == [1, 1]
    assert re.search("First: (baseline = engine|engine = baseline),", (tmp_path / "site/leaderboards.html").read_text())


def test_machines_have_leaderboards_of_their_own_and_builds_tables(tmp_path: Path) -> None:
    plant(tmp_path / "results", 1)
    plant(tmp_path / "results", 2, cpu="Xeon")
    other = plant(tmp_path / "results", 3) / "manifest.json"
    raw = json.loads(other.read_text())
    raw["engines"][1]["version"] = "2.0"
    other.write_text(json.dumps(raw))
    build(tmp_path / "results", tmp_path / "site")
    boards = json.loads((tmp_path / "site" / "leaderboards.json").read_text())["leaderboards"]
    assert [[table["run_ids"] for table in board["tables"]] for board in boards] == [
        [["run-3"], ["run-1"]],  # the latest first
        [["run-2"]],
    ]
    assert "version is" in boards[0]["tables"][0]["apart"]


def test_words_of_a_run_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    folder = plant(tmp_path / "results", 1, cpu=HOSTILE)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["run_id"] = f"../../../evil{HOSTILE}"
    raw["model"]["name"] = HOSTILE
    (folder / "manifest.json").write_text(json.dumps(raw))
    build(tmp_path / "results", tmp_path / "site")
    assert {path.name for path in tmp_path.iterdir()} == {"results", "site"}
    (home,) = (tmp_path / "site" / "runs").iterdir()
    assert re.fullmatch(r"[A-Za-z0-9._-]+", home.name)
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text()
        nonce = re.search(r"script-src 'nonce-([\w-]{20,})'", text)
        assert nonce
        # What runs is what carries the nonce; everything else in a script element is data.
        kinds = set(re.findall(r"<script([^>]*)>", text))
        assert kinds <= {
            f' nonce="{nonce[1]}"',
            f' nonce="{nonce[1]}" src="../../plotly.js"',
            ' type="application/json"',
            *(f' type="application/json" id="data-{kind}"' for kind in ("json", "csv")),
        }
        assert "<img" not in text


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    plant(tmp_path / "results", 1)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="expected a new or empty folder, or a site of cmp"):
        build(tmp_path / "results", tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["thesis.tex"]


def test_a_site_is_written_again_without_runs_that_are_gone(tmp_path: Path) -> None:
    for number in (1, 2):
        plant(tmp_path / "results", number)
    build(tmp_path / "results", tmp_path / "site")
    shutil.rmtree(tmp_path / "results" / "run-1")
    build(tmp_path / "results", tmp_path / "site")
    assert [path.name for path in (tmp_path / "site" / "runs").iterdir()] == ["run-2"]
    assert len(rows((tmp_path / "site" / "index.html").read_text())) == 1


def test_a_damaged_run_and_a_copy_are_left_out_and_named(tmp_path: Path) -> None:
    for number in (1, 2):
        plant(tmp_path / "results", number)
    (tmp_path / "results" / "run-1" / "samples.jsonl").write_text("{}\n{}\n")
    shutil.copytree(tmp_path / "results" / "run-2", tmp_path / "results" / "copy")
    build(tmp_path / "results", tmp_path / "site")
    told = json.loads((tmp_path / "site" / "runs.json").read_text())
    assert [run["run_id"] for run in told["runs"]] == ["run-2"]
    assert "holds the same run" in told["notes"][0]
    assert "run-1/samples.jsonl, line 1" in told["notes"][1]


def test_nothing_to_show_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (plant(tmp_path / "results", 1) / "samples.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ResultsError, match=r"no run can be shown: .*line 1"):
        build(tmp_path / "results", tmp_path / "site")


def test_output_and_site_exclude_each_other(tmp_path: Path) -> None:
    plant(tmp_path / "results", 1)
    with pytest.raises(UsageError, match="writes many files into a folder"):
        build(tmp_path / "results", tmp_path / "site", "--output", str(tmp_path / "page.html"))


HARNESS = """<!doctype html><pre id="found"></pre><script>
const frame = document.createElement("iframe");
frame.onload = () => {
  const page = frame.contentDocument, form = page.querySelector("form");
  const shown = () => [...page.querySelectorAll("tr[data-scenario]")].filter((row) => !row.hidden)
    .map((row) => row.cells[1].textContent);
  const found = { all: shown() };
  const set = (name, value) => {
    form.elements[name].value = value;
    form.dispatchEvent(new Event("input"));
  };
  page.querySelector("th button").click();
  found.oldest_first = shown();
  set("machine", form.elements.machine.options[1].value); found.machine = shown();
  set("machine", ""); set("from", "2026-03-01"); found.from = shown();
  set("from", ""); set("words", "xeon run-2"); found.words = shown();
  found.pwned = window.pwned === undefined ? "no" : "yes";
  document.getElementById("found").textContent = JSON.stringify(found);
};
frame.src = "site/index.html";
document.body.append(frame);
</script>"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def browse(address: str, profile: Path) -> str:
    """What a page has become when its scripts have run."""
    assert CHROMIUM
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    done = subprocess.run(
        [*words, "--virtual-time-budget=20000", "--dump-dom", address], capture_output=True, text=True, timeout=200
    )
    return html.unescape(done.stdout)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; install the package chromium")
def test_a_browser_sorts_and_filters_from_a_server_and_from_a_file(tmp_path: Path, served: str) -> None:
    for number, cpu in enumerate(("EPYC", HOSTILE, "Xeon")):
        plant(tmp_path / "results", number, cpu=cpu)
    build(tmp_path / "results", tmp_path / "site")
    (tmp_path / "harness.html").write_text(HARNESS)
    found = re.search(r'<pre id="found">(.*?)</pre>', browse(f"{served}/harness.html", tmp_path / "a"))
    assert found
    assert json.loads(found[1]) == {
        "all": ["run-2", "run-1", "run-0"],
        "oldest_first": ["run-0", "run-1", "run-2"],
        "machine": ["run-1"],  # the hostile one begins with a quote
        "from": ["run-2"],
        "words": ["run-2"],
        "pwned": "no",
    }
    page = browse(f"{(tmp_path / 'site' / 'index.html').as_uri()}#words=xeon", tmp_path / "b")
    assert "1 of 3 shown" in page
    # Its pictures come from the one plotly.js, which the content policy lets through.
    report = browse((tmp_path / "site" / "runs" / "run-2" / "report.html").as_uri(), tmp_path / "c")
    assert 'class="main-svg"' in report
