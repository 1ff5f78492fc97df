"""What the generator's process does: send every request when it is due, and write down how late that was.

It imports no more than it needs (no numpy, no msgspec), so that it starts fast beside a loaded engine, and it sleeps
whenever nothing is due: engines that spin lose their speed when a thread is preempted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import time

from enginecmp import clock
from enginecmp.loadgen.chains import Chains
from enginecmp.loadgen.timer import Timer
from enginecmp.wire.request_table import Field, Header, RequestTable

_HEADSTART_NS = 5_000_000
"""Between the worker's word that it is ready and the first request."""

_MOST_MICROSECONDS = 1_000_000


def go_first() -> bool:
    """Ask the kernel to run this process whenever it has something to do; return whether it may.

    With every core busy, p99 of the lag at 500 requests a second is 3.5 ms in the ordinary queue and 0.14 ms in this
    one; a dispatch takes some 20 microseconds, so what runs instead loses little. The limit ends the process should
    it ever run for a second without sleeping.
    """
    try:
        resource.setrlimit(resource.RLIMIT_RTTIME, (_MOST_MICROSECONDS, _MOST_MICROSECONDS))
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (OSError, ValueError):
        return False
    return True


class Dispatcher:
    """Sends the requests of one cell.

    Args:
        table: with its first group of header words filled, and with due times in an open loop.
        to_worker: eventfd that wakes the worker.
        from_worker: eventfd that the worker wakes this process with.
        lifeline: descriptor that ends when the host does.
    """

    def __init__(self, table: RequestTable, to_worker: int, from_worker: int, lifeline: int) -> None:
        self._table = table
        self._words = table.words
        self._to_worker = to_worker
        self._from_worker = from_worker
        self._lifeline = lifeline
        self._timer = Timer()
        self._loop = asyncio.new_event_loop()
        self._users = self._words[Header.USERS]
        self._go_ns = 0
        self._cpu_ns = 0
        self._seen_done = 0
        self._warm = [self._words[Header.WARMUPS]] * self._users
        self._chains = Chains(table) if self._words[Header.CHAINED] else None
        self._measured = 0
        self._measured_since_ns = 0
        self._finished = False

    def run(self) -> None:
        """Wait for the worker, send everything, and sleep until the host closes the lifeline."""
        loop = self._loop
        loop.add_reader(self._lifeline, self._host_spoke)
        loop.add_reader(self._from_worker, self._worker_spoke)
        loop.add_reader(self._timer.file, self._due)
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            loop.run_forever()
        finally:
            loop.close()
            self._timer.close()

    def _host_spoke(self) -> None:
        if not os.read(self._lifeline, 64):
            self._loop.stop()

    def _worker_spoke(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._from_worker, 8)
        words = self._words
        if self._finished:
            return
        if words[Header.STOP]:
            self._finish()
        elif not self._go_ns:
            if words[Header.READY]:
                words[Header.REALTIME] = go_first()
                self._cpu_ns = time.process_time_ns()
                self._go_ns = words[Header.GO_NS] = clock.now_ns() + _HEADSTART_NS
                self._timer.fire_at(self._go_ns)
        elif self._chains is not None:
            self._follow(self._chains)
        elif self._users:
            self._answer()

    def _due(self) -> None:
        """Send whatever is due: all users' first requests, or the next ones of the schedule."""
        self._timer.fired()
        if self._finished:
            return
        if self._chains is not None:
            self._send_due(self._chains)
            return
        if self._users:
            for user in range(self._users):
                self._send(user, 0)
            self._wake()
            return
        words, table, go_ns = self._words, self._table, self._go_ns
        number, capacity, warmups = words[Header.SENT], table.capacity, words[Header.WARMUPS]
        while number < capacity:
            row = table.row(number)
            now_ns = clock.now_ns()
            due_ns = go_ns + words[row + Field.DUE]
            if due_ns > now_ns:
                break
            if not words[Header.PLANNED]:
                words[row + Field.MEASURED] = number >= warmups
            words[row + Field.SENT_NS] = now_ns
            table.send(number)
            number += 1
        self._wake()
        if number == capacity:
            self._finish()
        else:
            self._timer.fire_at(due_ns)

    def _follow(self, chains: Chains) -> None:
        """Let what was waiting for an answer be due after it."""
        done = self._words[Header.DONE]
        for number in self._table.finished(self._seen_done, done):
            chains.answered(number, self._go_ns)
        self._seen_done = done
        self._send_due(chains)

    def _send_due(self, chains: Chains) -> None:
        """Send what is due by now, and wait for what is due next."""
        while (due_ns := chains.next_due_ns()) is not None and self._go_ns + due_ns <= clock.now_ns():
            due_ns, user, number = chains.pop()
            self._write(number, user, due_ns, clock.now_ns())
            self._measured += self._words[self._table.row(number) + Field.MEASURED]
            if self._measured == self._words[Header.REQUESTS]:
                # What is left only kept others busy.
                self._finish()
                return
        self._wake()
        if self._words[Header.SENT] == self._table.capacity:
            self._finish()
        elif due_ns is not None:
            self._timer.fire_at(self._go_ns + due_ns)

    def _answer(self) -> None:
        """Closed loop: whoever has an answer sends the next request."""
        words, table = self._words, self._table
        done = words[Header.DONE]
        for number in table.finished(self._seen_done, done):
            if self._enough():
                self._finish()
                return
            row = table.row(number)
            self._send(words[row + Field.USER], words[row + Field.END_NS] - self._go_ns)
        self._seen_done = done
        self._wake()

    def _send(self, user: int, due_after_go_ns: int) -> None:
        """Send the next request of a user; due when the answer to the last one was there."""
        words = self._words
        number = words[Header.SENT]
        row = self._table.row(number)
        warm = not words[row + Field.MEASURED] if words[Header.PLANNED] else self._warm[user] > 0
        now_ns = clock.now_ns()
        if warm:
            self._warm[user] -= 1
        else:
            self._measured_since_ns = self._measured_since_ns or now_ns
            self._measured += 1
        words[row + Field.MEASURED] = not warm
        self._write(number, user, due_after_go_ns, now_ns)

    def _write(self, number: int, user: int, due_after_go_ns: int, now_ns: int) -> None:
        """Write that a request is sent, when it was due and by whom."""
        words, row = self._words, self._table.row(number)
        words[row + Field.DUE] = due_after_go_ns
        words[row + Field.USER] = user
        words[row + Field.SENT_NS] = now_ns
        self._table.send(number)

    def _enough(self) -> bool:
        """Say whether a closed loop has sent what it should."""
        words = self._words
        if words[Header.SENT] == self._table.capacity:
            return True
        if self._measured < words[Header.REQUESTS]:
            return False
        return clock.now_ns() - self._measured_since_ns >= words[Header.DURATION_NS]

    def _finish(self) -> None:
        self._finished = True
        self._words[Header.GENERATOR_CPU_NS] = time.process_time_ns() - self._cpu_ns
        self._words[Header.ALL_SENT] = 1
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._to_worker, 1)


def main(arguments: list[str]) -> int:
    """Serve one cell; the arguments are descriptors: table, eventfd to the worker, eventfd from it."""
    file, to_worker, from_worker = map(int, arguments)
    table = RequestTable(file)
    os.close(file)
    Dispatcher(table, to_worker, from_worker, lifeline=0).run()
    return 0
