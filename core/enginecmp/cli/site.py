"""`cmp report --site`: a static site over many runs, written run by run, so that memory holds one of them at a time."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enginecmp.cli.console import say
from enginecmp.cli.each_run import each_run
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.format.documents import read_json
from enginecmp.format.files import LAUNCHES, MANIFEST, SAMPLES, TELEMETRY
from enginecmp.format.streams import open_regular
from enginecmp.format.text import to_json
from enginecmp.results.files import write_atomically

if TYPE_CHECKING:
    from enginecmp_analysis.judge.judge import Options
    from enginecmp_analysis.judge.leaderboard import Entry, Leaderboard
    from enginecmp_analysis.schema.site import SiteBoards, SiteRun

DATA = (MANIFEST, SAMPLES, LAUNCHES, TELEMETRY)
"""Files of a run that a site holds; what else stands in its folder names paths of this machine."""

REPORT = "report.html"

ADVICE = "make room or grant access, or name another folder with --site"


def write_site(paths: Sequence[str | Path], site: Path, options: Options) -> None:
    """Write the site.

    Args:
        paths: run folders or folders of runs.
        site: folder of the site; new, empty, or an earlier site, whose pages are replaced.
        options: of the analysis.

    Raises:
        UsageError: the folder holds something else.
        ResultsError: a path holds no run.
        CmpError: a file cannot be written.
    """
    from plotly.offline import get_plotlyjs

    from enginecmp_analysis.judge.leaderboard import leaderboards
    from enginecmp_analysis.render.export import to_json as shown_json
    from enginecmp_analysis.render.site.pages import (
        BOARDS,
        BOARDS_DATA,
        INDEX,
        INDEX_DATA,
        PLOTLY,
        boards_page,
        index_page,
    )
    from enginecmp_analysis.schema.site import SiteIndex

    before = _earlier(site)
    folders, notes = each_run(paths)
    nonce = secrets.token_urlsafe(16)
    site.mkdir(parents=True, exist_ok=True)
    # Known as ours from the first file on, so that an interrupted site can be written again.
    write_atomically(site / INDEX_DATA, to_json(SiteIndex(runs=before)), ADVICE)
    write_atomically(site / PLOTLY, get_plotlyjs().encode(), ADVICE)
    runs: list[SiteRun] = []
    entries: list[tuple[Entry, str]] = []
    for number, folder in enumerate(folders, start=1):
        try:
            row, entry = _write_run(folder, site, options, nonce)
        except ResultsError as error:
            notes.append(f"left out: {error}")
            continue
        runs.append(row)
        entries.append((entry, row.machine))
        if number % 100 == 0:
            say(f"{number} of {len(folders)} runs")
    if not runs:
        msg = f"no run can be shown: {notes[0].removeprefix('left out: ')}"
        raise ResultsError(msg)
    boards = leaderboards(entries, options)
    write_atomically(site / BOARDS, boards_page(boards, runs, nonce).encode(), ADVICE)
    write_atomically(site / BOARDS_DATA, shown_json(_boards(boards)).encode(), ADVICE)
    write_atomically(site / INDEX_DATA, shown_json(SiteIndex(runs=runs, notes=notes)).encode(), ADVICE)
    write_atomically(site / INDEX, index_page(runs, notes, nonce).encode(), ADVICE)
    _remove(site, {row.folder for row in before} - {row.folder for row in runs})
    for note in notes[:3]:
        say(note)
    more = f"; {len(notes)} notes are on the page" if len(notes) > 3 else ""
    say(f"{site / INDEX}: {len(runs)} runs, {len(boards)} leaderboards; open it in a browser{more}")


def _earlier(site: Path) -> list[SiteRun]:
    """Return the runs of the site that is there; none of a new one.

    Raises:
        UsageError: something else is there.
    """
    from enginecmp_analysis.render.site.pages import INDEX_DATA
    from enginecmp_analysis.schema.site import SITE_SCHEMA, SiteIndex

    if not site.exists() or (site.is_dir() and not any(site.iterdir())):
        return []
    why = "a file" if site.is_file() else "a folder with other things in it"
    if (site / INDEX_DATA).is_file():
        try:
            found: SiteIndex = read_json(site / INDEX_DATA, SiteIndex)
            if found.schema == SITE_SCHEMA:
                return [row for row in found.runs if row.folder == _safe(row.folder)]
        except ResultsError:
            why = f"a {INDEX_DATA} that is none of ours"
    msg = f"--site {site}: expected a new or empty folder, or a site of cmp, got {why}; name another"
    raise UsageError(msg)


def _safe(run_id: str) -> str:
    """Return the name of a run's folder in the site: harmless as a path and in an address, another for each run."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", run_id).lstrip(".")[:80]
    return plain if plain == run_id else f"{plain}-{hashlib.sha256(run_id.encode()).hexdigest()[:8]}"


def _write_run(folder: Path, site: Path, options: Options, nonce: str) -> tuple[SiteRun, Entry]:
    """Write the report and the data of one run; return its row and what the leaderboards keep of it.

    Raises:
        ResultsError: it cannot be read.
    """
    from enginecmp.machine.noise import described
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_run
    from enginecmp_analysis.decisions.decide import Questions, decide_more
    from enginecmp_analysis.judge.leaderboard import entry_of
    from enginecmp_analysis.render.pictures.page import Place, to_page
    from enginecmp_analysis.render.site.pages import BOARDS, INDEX, PLOTLY, site_run

    run = load_run(folder)
    analysis = analyse([run], options)
    analysis.report.warnings += described([run.manifest.environment])
    decide_more(analysis, options, Questions())
    home = site / "runs" / _safe(run.manifest.run_id)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{home}: cannot be written ({error.strerror or error}); {ADVICE}"
        raise CmpError(msg) from error
    names = [name for name in DATA if (folder / name).is_file()]
    for name in names:
        _copy(folder / name, home / name)
    links = [("all runs", f"../../{INDEX}"), ("leaderboards", f"../../{BOARDS}"), *((name, name) for name in names)]
    page = to_page(analysis, options.margin, Place(f"../../{PLOTLY}", nonce, links))
    write_atomically(home / REPORT, page.encode(), ADVICE)
    return site_run(analysis, home.name, names), entry_of(analysis.groups[0])


def _copy(source: Path, target: Path) -> None:
    """Copy a regular file, unless the copy that is there has its size and time."""
    with open_regular(source) as file:
        now = source.stat()
        if target.is_file() and (target.stat().st_size, target.stat().st_mtime_ns) == (now.st_size, now.st_mtime_ns):
            return
        temporary = target.with_name(target.name + ".tmp")
        try:
            with open(temporary, "wb") as copy:
                shutil.copyfileobj(file, copy)
            shutil.copystat(source, temporary)
            temporary.replace(target)
        except OSError as error:
            msg = f"{target}: cannot be written ({error.strerror or error}); {ADVICE}"
            raise CmpError(msg) from error


def _remove(site: Path, folders: set[str]) -> None:
    """Remove what an earlier site wrote of runs that are no longer shown."""
    for name in sorted(folders):
        home = site / "runs" / name
        if home.is_symlink() or not home.is_dir():
            continue
        for path in [home / file for file in (*DATA, REPORT)]:
            path.unlink(missing_ok=True)
        if not any(home.iterdir()):
            home.rmdir()


def _boards(boards: Sequence[Leaderboard]) -> SiteBoards:
    from enginecmp_analysis.schema.site import Board, BoardTable, SiteBoards

    def tables(board: Leaderboard) -> Iterator[BoardTable]:
        for found in board.tables:
            ids = [manifest.run_id for manifest in found.manifests]
            yield BoardTable(run_ids=ids, engines=found.context.engines, rankings=found.rankings, apart=found.apart)

    return SiteBoards(
        leaderboards=[
            Board(model=board.model, machine=board.machine, scenario=board.scenario, tables=list(tables(board)))
            for board in boards
        ]
    )
