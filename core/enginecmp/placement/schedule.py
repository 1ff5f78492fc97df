"""Give jobs to nodes: each to one that is free, has what is required and measures no other job of the same part.

A node that is lost gets no further job; its job goes to another node, or waits for `--resume`, which asks the same node
first, since what was measured there is still there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from enginecmp.errors import CmpError
from enginecmp.placement.messages import ConnectionLost
from enginecmp.placement.node import RUN, Node
from enginecmp.placement.placement import Placement
from enginecmp.placement.visit import Needed, Visit, visiting

Progress = Literal["waiting", "running", "complete", "failed"]

_SECONDS_TO_END = 120.0


class Job(msgspec.Struct, kw_only=True):
    """One ordinary `cmp run` on one node.

    Attributes:
        name: of its folder on the node.
        part: of what was asked for; jobs of one part run on different nodes.
        words: options of `cmp run`; "{0}" stands for the first of `files`.
        files: that it needs on the node.
        sha256: of the model that it times.
        node: name of the node that it runs on, or ran on last; "" before.
        status: waiting, running (also where it was cut off), complete or failed.
        runs: names of its runs in the fleet's folder.
        error: why it failed; "" otherwise.
    """

    name: str
    part: str
    words: list[str]
    files: list[Needed] = []
    sha256: str = ""
    node: str = ""
    status: Progress = "waiting"
    runs: list[str] = []
    error: str = ""


class _Over(msgspec.Struct, frozen=True):
    """A thread is done with a job on a node, which is `lost` or free again."""

    job: Job
    node: Node
    lost: bool = False


class Schedule:
    """Jobs and the nodes that take them.

    Args:
        placement: of the nodes.
        nodes: those that may be used.
        jobs: those that are complete are left alone; their fields say how far each came.
        into: folder of the runs.
        changed: called in the caller's thread whenever a job changed.
        said: called in the caller's thread with each line that a job printed.
    """

    def __init__(
        self,
        placement: Placement,
        nodes: Sequence[Node],
        jobs: Sequence[Job],
        into: Path,
        changed: Callable[[Job], None],
        said: Callable[[Job, str], None],
    ) -> None:
        self._placement = placement
        self._free = {node.name: node for node in nodes}
        self._jobs = list(jobs)
        self._waiting = [job for job in jobs if job.status != "complete"]
        self._into = into
        self._changed, self._said = changed, said
        self._events: queue.Queue[_Over | tuple[Job, str]] = queue.Queue()
        self._visits: dict[str, Visit] = {}
        self._ending = threading.Event()
        self._threads: dict[str, threading.Thread] = {}

    def run(self) -> None:
        """Run all jobs that can run; afterwards each is complete, or failed with its reason.

        Raises:
            KeyboardInterrupt: after all runs under way have ended and are here as far as they came.
        """
        for job in self._waiting:
            job.status, job.error = "waiting", ""
        try:
            self._start_what_can()
            while self._threads:
                self._take(self._events.get())
                self._start_what_can()
        except BaseException:
            self._end()
            raise
        for job in self._waiting:
            job.status = "failed"
            job.error = job.error or "no node is left that could take it"
            self._changed(job)

    def _start_what_can(self) -> None:
        for job in list(self._waiting):
            node = self._node_for(job)
            if node is not None:
                self._waiting.remove(job)
                del self._free[node.name]
                job.node, job.status = node.name, "running"
                self._changed(job)
                thread = threading.Thread(target=self._place, args=(job, node), daemon=True)
                self._threads[job.name] = thread
                thread.start()

    def _node_for(self, job: Job) -> Node | None:
        """Return the free node for a job: the one that has part of it, else one that no other job of its part needs."""
        if job.node in self._free:
            return self._free[job.node]
        taken = {other.node for other in self._jobs if other.part == job.part and other is not job}
        kept_for_others = {other.node for other in self._waiting if other is not job}
        usable = [node for name, node in self._free.items() if name not in taken]
        return min(usable, key=lambda node: node.name in kept_for_others, default=None)

    def _take(self, event: _Over | tuple[Job, str]) -> None:
        if isinstance(event, tuple):
            self._said(*event)
            return
        job = event.job
        self._threads.pop(job.name).join()
        if event.lost:
            self._waiting.append(job)
        else:
            self._free[event.node.name] = event.node
        self._changed(job)

    def _place(self, job: Job, node: Node) -> None:
        """Run one job on one node; in a thread of its own."""
        lost = False
        try:
            with visiting(self._placement, node) as visit:
                self._visits[job.name] = visit
                self._measure(job, visit)
        except ConnectionLost as error:
            lost, job.status, job.error = True, "waiting", str(error)
        except CmpError as error:
            job.status, job.error = "failed", str(error)
        except Exception as error:  # of a placement that somebody else wrote
            lost, job.status = True, "waiting"
            job.error = f"{node.name}: its placement failed: {type(error).__name__}: {error}"
        finally:
            self._visits.pop(job.name, None)
            self._events.put(_Over(job, node, lost))

    def _measure(self, job: Job, visit: Visit) -> None:
        if self._ending.is_set():
            job.status = "waiting"
            return
        lines = [""]

        def said(line: str) -> None:
            lines[:] = [line]
            self._events.put((job, line))

        ended = visit.run(job.name, job.words, job.files, said)
        for run in ended.runs[:1]:
            taken = {name for other in self._jobs if other is not job for name in other.runs}
            if not RUN.fullmatch(run) or run in taken:
                msg = f"{visit.node.name}: expected the name of a run of its own, got {run[:80]!r}"
                raise CmpError(msg)
            visit.collect(job.name, run, self._into, job.sha256)
            job.runs = list(dict.fromkeys([*job.runs, run]))
        if self._ending.is_set() and ended.code:
            job.status = "waiting"
        elif ended.code or not ended.runs:
            job.status = "failed"
            job.error = f"{visit.node.name}: cmp run ended with exit code {ended.code}: {lines[0]}"
        else:
            visit.drop(job.name)
            job.status = "complete"

    def _end(self) -> None:
        """End everything under way, and keep what it measured; what does not end in time is let go."""
        self._ending.set()
        for visit in list(self._visits.values()):
            visit.stop()
        try:
            while self._threads:
                self._take(self._events.get(timeout=_SECONDS_TO_END))
        except (KeyboardInterrupt, queue.Empty):
            for visit in list(self._visits.values()):
                visit.close()
            raise
