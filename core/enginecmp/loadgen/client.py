"""The host's end of the load generator: start it, watch over it and the engine while both work, end it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from enginecmp import clock
from enginecmp.format.phases import Phase
from enginecmp.launch.launch import Launch
from enginecmp.wire.answers import Served
from enginecmp.wire.deadlines import Deadlines
from enginecmp.wire.request_table import Field, Header, RequestTable, Stop, new_request_table

_START_SECONDS = 30.0
_SILENCE_SECONDS = 10.0
_GRACE_SECONDS = 2.0


class Generator:
    """The generator of one cell; use as a context manager.

    Args:
        capacity: most requests of the cell.
        output_tokens: most of one request.
        log: file for what the process prints.

    Attributes:
        table: the memory that it shares with the engine's side; its first header words are the caller's to fill.
        lost: how it ended before its time; empty while it did not.
        arrived: eventfd that wakes the engine's side.
        tell: eventfd that wakes the generator.
        pid: of its process, once started.
        pidfd: becomes readable when the process ends.
    """

    def __init__(self, capacity: int, output_tokens: int, log: Path) -> None:
        self._file = new_request_table(capacity, output_tokens)
        self.table = RequestTable(self._file)
        self.lost = ""
        self.arrived = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.tell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.pid = 0
        self.pidfd = -1

    @property
    def files(self) -> tuple[int, int, int]:
        """Descriptors that a worker needs: the table, and the eventfds from and to the generator."""
        return self._file, self.arrived, self.tell

    def start(self) -> None:
        """Start the process; it sends nothing before the engine's side has said that it is ready."""
        with open(self._log, "ab") as output:
            # A session of its own: Ctrl-C is for the host, which ends everybody else.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "enginecmp.loadgen", *map(str, self.files)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=self.files,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        """Return the generator, not yet started."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the process's lifeline, upon which it ends; kill it where it does not."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            os.close(self.pidfd)
        self.table.close()
        for descriptor in self.files:
            os.close(descriptor)

    def stop(self, reason: Stop) -> None:
        """Tell the engine's side to end the cell."""
        self.table.words[Header.STOP] = reason
        for descriptor in (self.arrived, self.tell):
            os.eventfd_write(descriptor, 1)

    def check(self) -> None:
        """Look after the process: one that ended or hangs is told to the engine's side, which then finishes."""
        if self.lost or self._process is None:
            return
        code = self._process.poll()
        if code is not None:
            self.lost = f"the load generator ended in mid-cell (exit code {code})"
        elif (silence := self._silence_seconds()) > _SILENCE_SECONDS:
            self.lost = f"the load generator hung for {silence:.0f} s"
            self._process.kill()
        if self.lost:
            self.stop(Stop.LOST)

    def _silence_seconds(self) -> float:
        """Return for how long a request has been due that is not sent; 0 while all is well."""
        words = self.table.words
        if not words[Header.GO_NS]:
            return max(0.0, time.monotonic() - self._started - _START_SECONDS)
        sent = words[Header.SENT]
        if words[Header.ALL_SENT] or not 0 <= sent < self.table.capacity:
            return 0.0
        if words[Header.CHAINED]:
            return self._silence_of_chains()
        if not words[Header.USERS]:
            due_ns = words[Header.GO_NS] + words[self.table.row(sent) + Field.DUE]
        elif words[Header.DONE] == sent and sent:
            (last,) = self.table.finished(sent - 1, sent)
            if not 0 <= last < self.table.capacity:
                return 0.0
            due_ns = words[self.table.row(last) + Field.END_NS]
        else:
            return 0.0
        return max(0.0, (clock.now_ns() - due_ns) / 1e9)

    def _silence_of_chains(self) -> float:
        """Return for how long the request has been due that is not sent and has been so for longest."""
        words, table = self.table.words, self.table
        now_ns, last_ns, waiting = clock.now_ns(), 0, False
        due_ns: list[int] = []
        for number in range(table.capacity):
            row = table.row(number)
            last_ns = max(last_ns, words[row + Field.END_NS])
            if words[row + Field.SENT_NS]:
                continue
            after = words[row + Field.AFTER]
            if after and 0 < after <= table.capacity and words[table.row(after - 1) + Field.STATE]:
                due_ns.append(words[table.row(after - 1) + Field.END_NS] + words[row + Field.THINK_NS])
            elif not after and words[Header.USERS]:
                waiting = True
            elif not after:
                due_ns.append(words[Header.GO_NS] + words[row + Field.DUE])
        if waiting and not due_ns and words[Header.DONE] == words[Header.SENT]:
            # Nobody is at work or thinks, so a user takes the next conversation at once.
            due_ns.append(max(last_ns, words[Header.GO_NS]))
        return max(0.0, (now_ns - min(due_ns, default=now_ns)) / 1e9)


def watch(launch: Launch, generator: Generator, deadlines: Deadlines) -> Served:
    """Sleep until the worker has served the cell, and return its answer.

    The host wakes for the answer, for the end of the generator, and every few seconds to see that tokens still come:
    16 bytes of shared memory, no system call in the worker.

    Raises:
        LaunchFailure: the engine crashed, broke its contract, or gave no token within its deadline.
    """
    longest = max(deadlines.prefill_seconds, deadlines.decode_seconds)
    limits = {Phase.PREPARE: deadlines.prefill_seconds, Phase.PREFILL: deadlines.prefill_seconds}
    limits |= dict.fromkeys((Phase.STEP, Phase.SUBMIT, Phase.WAIT), longest)
    period = min(5.0, max(0.05, min(deadlines.prefill_seconds, deadlines.decode_seconds) / 4))
    advance = _Advance(launch, generator)
    while not launch.answered(period, () if generator.lost else (generator.pidfd,)):
        generator.check()
        limit = limits.get(launch.progress()[0], deadlines.decode_seconds)
        if advance.silence_seconds() > limit:
            raise launch.hung(limit)
    served: Served = launch.end("serve", longest)
    return served


class _Advance:
    """Says for how long a cell has made no progress, by what a worker cannot go on pretending.

    Tokens, sent and finished requests only grow, and none beyond what the cell holds; a change of the phase alone
    counts a few times in a row, as an engine that prepares and then runs a prompt makes it.
    """

    _CHANGES = 8

    def __init__(self, launch: Launch, generator: Generator) -> None:
        self._launch = launch
        self._words = generator.table.words
        self._most: tuple[int, ...] = (
            generator.table.capacity * generator.table.stamps,
            *2 * (generator.table.capacity,),
        )
        self._counts: tuple[int, ...] = (0, 0, 0)
        self._phase = Phase.START
        self._changes = 0
        self._since = time.monotonic()

    def silence_seconds(self) -> float:
        """Return the seconds since the last progress; 0 while there is nothing that the engine could do."""
        words, now = self._words, time.monotonic()
        phase, tokens = self._launch.progress()
        counts = tokens, words[Header.SENT], words[Header.DONE]
        grown = any(
            before < count <= most for before, count, most in zip(self._counts, counts, self._most, strict=True)
        )
        idle = phase is Phase.WAIT and not words[Header.ALL_SENT] and counts[1] == counts[2]
        if grown or idle:
            self._changes = 0
        changed = phase is not self._phase and self._changes < self._CHANGES
        self._changes += changed
        if grown or idle or changed:
            self._counts = tuple(map(max, self._counts, counts))
            self._phase, self._since = phase, now
        return now - self._since
