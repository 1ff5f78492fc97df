"""Where requests are taken in and given back: the engine's end of the table."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Sequence

from enginecmp import clock
from enginecmp.format.phases import Phase
from enginecmp.wire.protocol import describe
from enginecmp.wire.request_table import Field, Header, RequestTable, State, Stop

FAILURES_IN_A_ROW = 3
"""After that many the rest of a cell would only repeat the message."""


class RequestIntake:
    """Where requests are taken in and given back: the engine's end of the table.

    Args:
        table: shared with generator and host.
        arrived: eventfd that the generator writes when it has sent something.
        tell: eventfd that wakes the generator.
        check: called about once a second while there is nothing to do; None sleeps until something comes.

    Attributes:
        waiting: numbers of requests that are sent and not started, in the order in which they came.
        errors: number of a request → what went wrong.
        began: called when the first request has arrived.
        wake: descriptor that is readable when the generator or the host has something to say.
    """

    def __init__(self, table: RequestTable, arrived: int, tell: int, check: Callable[[], None] | None = None) -> None:
        self.table = table
        self.words = table.words
        self.waiting: deque[int] = deque()
        self.errors: dict[int, str] = {}
        self.began: Callable[[], None] = lambda: None
        self.wake = arrived
        self._check = check
        self._tell = tell
        self._poll = select.poll()
        self._poll.register(arrived, select.POLLIN)
        self._closed_loop = bool(self.words[Header.USERS])
        self._tells = self._closed_loop or bool(self.words[Header.CHAINED])
        self._seen = 0
        self._in_a_row = 0

    def open(self) -> None:
        """Tell the generator to begin."""
        self.words[Header.READY] = 1
        os.eventfd_write(self._tell, 1)

    def look(self) -> bool:
        """Take in what has arrived; return whether to go on, as against giving up at once."""
        words = self.words
        sent = words[Header.SENT]
        if sent > self._seen:
            if not self._seen:
                self.began()
            self.waiting.extend(self.table.sent(self._seen, sent))
            self._seen = sent
        stop = words[Header.STOP]
        if stop in (Stop.ABORT, Stop.BROKEN):
            return False
        if self.waiting and not self._closed_loop and (stop == Stop.OVERLOADED or self._overloaded()):
            self._refuse()
        return True

    def _overloaded(self) -> bool:
        words = self.words
        due_ns = words[Header.GO_NS] + words[self.table.row(self.waiting[0]) + Field.DUE]
        return len(self.waiting) > words[Header.QUEUE_LIMIT] or clock.now_ns() - due_ns > words[Header.QUEUE_NS]

    def _refuse(self) -> None:
        """Write that all who wait will never be started."""
        now_ns = clock.now_ns()
        for number in self.waiting:
            self.table.finish(number, State.NEVER_STARTED, now_ns, 0)
        self.waiting.clear()
        self._stop(Stop.OVERLOADED)

    def _stop(self, reason: Stop) -> None:
        self.words[Header.STOP] = reason
        os.eventfd_write(self._tell, 1)

    def over(self) -> bool:
        """Say whether no request can come any more."""
        words = self.words
        ended = words[Header.ALL_SENT] or words[Header.STOP] == Stop.LOST
        return bool(ended) and words[Header.SENT] == self._seen

    def sleep(self) -> None:
        """Sleep until the generator or the host has something to say."""
        while not self._poll.poll(None if self._check is None else 1000):
            assert self._check is not None
            self._check()
        os.eventfd_read(self.wake)

    def heard(self) -> bool:
        """Say whether `wake` was readable; what it told is on the table, and is taken in by the next look."""
        try:
            return bool(os.eventfd_read(self.wake))
        except BlockingIOError:
            return False

    def start(self, number: int, start_ns: int) -> int:
        """Write that a request is handed to the engine; return its row."""
        row = self.table.row(number)
        self.words[row + Field.START_NS] = start_ns
        return row

    def finish(self, number: int, end_ns: int, output_tokens: int) -> None:
        """Write that a request is over."""
        self._in_a_row = 0
        self.table.finish(number, State.OK, end_ns, output_tokens)

    def fail(self, numbers: Sequence[int], where: Phase, error: BaseException) -> None:
        """Write that requests failed together; several failures in a row end the cell."""
        now_ns = clock.now_ns()
        for number in numbers:
            self.errors[number] = f"in {where}: {describe(error)['message']}"
            marked = self.words[self.table.row(number) + Field.MARKED]
            self.table.finish(number, State.FAILED, now_ns, marked)
        self._in_a_row += 1
        if self._in_a_row == FAILURES_IN_A_ROW:
            self._stop(Stop.BROKEN)

    def answer(self) -> None:
        """Tell the generator that requests are over, where somebody sends the next one then."""
        if self._tells:
            os.eventfd_write(self._tell, 1)


def serve_queue(intake: RequestIntake, one: Callable[[int], None]) -> None:
    """Serve requests first in, first out.

    Args:
        intake: where they arrive.
        one: runs one request, by its number, to its end.
    """
    while intake.look():
        if intake.waiting:
            one(intake.waiting.popleft())
            intake.answer()
        elif intake.over():
            break
        else:
            intake.sleep()
