"""What a user sees of a fleet while it runs: one live table on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from enginecmp.cli.console import say
from enginecmp.format.text import visible
from enginecmp.placement.schedule import Job

if TYPE_CHECKING:
    from rich.table import Table


class Shown(Protocol):
    """Shows jobs."""

    def said(self, job: Job, line: str) -> None:
        """Show what a job printed last."""

    def changed(self, job: Job) -> None:
        """Show how far a job is now."""


@contextlib.contextmanager
def showing(jobs: Sequence[Job]) -> Iterator[Shown]:
    """Show jobs until all is over: redrawn only when one of them says something, since this machine may measure too."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield _Table(jobs, live.update)


class _Lines:
    def said(self, job: Job, line: str) -> None:
        say(f"{job.node}: {job.part}: {line}")

    def changed(self, job: Job) -> None:
        say(f"{job.node or 'no node'}: {job.part}: {job.status}{f': {job.error}' if job.error else ''}")


class _Update(Protocol):
    def __call__(self, renderable: Table, *, refresh: bool) -> None: ...


class _Table:
    def __init__(self, jobs: Sequence[Job], update: _Update) -> None:
        self._jobs, self._update = jobs, update
        self._last: dict[str, str] = {}

    def said(self, job: Job, line: str) -> None:
        self._last[job.name] = line
        self._draw()

    def changed(self, job: Job) -> None:
        self._last[job.name] = job.error or ("" if job.status == "complete" else self._last.get(job.name, ""))
        self._draw()

    def _draw(self) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for heading in ("run", "node", "status", "last line"):
            table.add_column(heading, no_wrap=heading != "run", overflow="ellipsis")
        for job in self._jobs:
            words = (job.part, job.node, job.status, self._last.get(job.name, ""))
            table.add_row(*(Text(visible(word)) for word in words))
        self._update(table, refresh=True)
