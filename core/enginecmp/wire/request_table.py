"""The memory that host, load generator and worker share during one cell: who was sent when, and every token's stamp.

One anonymous file of int64 words. Nothing is encoded, sent or copied while an engine runs: the generator writes that
a request is sent, the worker writes each stamp as it reads the clock, and the host reads all of it afterwards. What
was written outlives the process that wrote it, so a crash of the engine loses no finished request.

A socket would do less well: a dispatch of four bytes takes about 800 bytes of the kernel's buffer, and with the
default limits some 280 of them block the sender while the engine is in a long step.

    header       `Header`, one word each
    done         capacity words: numbers of the requests that are over, in that order
    sent         capacity words: numbers of the requests that are sent, likewise
    rows         capacity rows: `Field`, then the stamps of the tokens

Every word has one writer. Readers on processors with weakly ordered memory are safe because each crossing is followed
by a system call on an eventfd, or because a word that is not there yet reads as 0 and is looked at again.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum

from enginecmp.wire.descriptors import shared_memory

WORD = 8


class Header(IntEnum):
    """Words at the beginning of the table; the first group is written before the generator starts."""

    CAPACITY = 0
    """Rows: the most requests that can be sent."""
    STAMPS = 1
    """Stamps a row: output tokens, and one for an engine that overruns."""
    USERS = 2
    """Users of a closed loop; 0 in an open one."""
    WARMUPS = 3
    """Requests that warm up: of each user in a closed loop, in all in an open one."""
    REQUESTS = 4
    """Measured requests to send at least."""
    DURATION_NS = 5
    """Closed loop: go on sending for so long after the first measured request; 0 counts requests alone."""
    QUEUE_LIMIT = 6
    """Open loop: requests waiting in front of the engine from which it counts as overloaded."""
    QUEUE_NS = 7
    """Open loop: nanoseconds of waiting from which the engine counts as overloaded."""
    READY = 8
    """The worker can take requests."""
    GO_NS = 9
    """When the generator began; `Field.DUE` counts from there."""
    SENT = 10
    """Requests sent so far."""
    ALL_SENT = 11
    """The generator sends no more."""
    DONE = 12
    """Requests that are over."""
    STOP = 13
    """One of `Stop`."""
    GENERATOR_CPU_NS = 14
    """CPU time of the generator from its beginning to its last request."""
    ENDED_NS = 15
    """When the worker was through."""
    REALTIME = 16
    """1 where the kernel lets the generator go before everybody else."""
    PLANNED = 17
    """1 where `Field.MEASURED` is written before the generator starts; else the generator decides it."""
    CHAINED = 18
    """1 where some requests are sent only when another one is answered (`Field.AFTER`)."""


class Stop(IntEnum):
    """Why sending ends before its time."""

    NO = 0
    ABORT = 1
    """The host wants the end at once; what is in flight is given up."""
    OVERLOADED = 2
    """Too many requests wait, or one waits for too long."""
    LOST = 3
    """The generator is gone; what is in flight is finished."""
    BROKEN = 4
    """The engine refused several requests in a row."""


class Field(IntEnum):
    """Words at the beginning of a row."""

    DUE = 0
    """When the request should be sent, after GO_NS, in nanoseconds."""
    SENT_NS = 1
    """When it was."""
    USER = 2
    """Closed loop: which user sent it."""
    MEASURED = 3
    """1, or 0 for warm-up."""
    START_NS = 4
    """When the prompt was handed to the engine."""
    END_NS = 5
    """When it was over."""
    STATE = 6
    """One of `State`."""
    OUTPUT = 7
    """Tokens that the engine generated."""
    MARKED = 8
    """Stamps written."""
    AFTER = 9
    """1 + the number of the request whose answer this one waits for; 0 where it waits for none."""
    THINK_NS = 10
    """Nanoseconds between that answer and when this request is due."""


class State(IntEnum):
    """What became of a request."""

    OPEN = 0
    OK = 1
    FAILED = 2
    NEVER_STARTED = 3


FIELDS = len(Field)


class RequestTable:
    """A view of the shared memory.

    Args:
        file: descriptor of it; the table keeps no hold on it.

    Attributes:
        words: all of it, by index.
        capacity: rows.
        stamps: stamps a row.
    """

    def __init__(self, file: int) -> None:
        self._map = mmap.mmap(file, os.fstat(file).st_size)
        self.words = memoryview(self._map).cast("q")
        self.capacity = self.words[Header.CAPACITY]
        self.stamps = self.words[Header.STAMPS]
        self._done = len(Header)
        self._sent = self._done + self.capacity
        self._rows = self._sent + self.capacity
        self._row = FIELDS + self.stamps

    def row(self, number: int) -> int:
        """Return the index of a request's first word."""
        return self._rows + number * self._row

    def stamps_of(self, number: int) -> list[int]:
        """Return the stamps of a request's tokens so far, in nanoseconds."""
        row = self.row(number)
        first = row + FIELDS
        return self.words[first : first + min(max(0, self.words[row + Field.MARKED]), self.stamps)].tolist()

    def finish(self, number: int, state: State, end_ns: int, output_tokens: int) -> None:
        """Write that a request is over; the generator sees it when it is woken."""
        words, row = self.words, self.row(number)
        words[row + Field.END_NS] = end_ns
        words[row + Field.OUTPUT] = output_tokens
        words[row + Field.STATE] = state
        done = words[Header.DONE]
        words[self._done + done] = number
        words[Header.DONE] = done + 1

    def send(self, number: int) -> None:
        """Write that a request is sent."""
        words = self.words
        sent = words[Header.SENT]
        words[self._sent + sent] = number
        words[Header.SENT] = sent + 1

    def sent(self, start: int, stop: int) -> list[int]:
        """Return the numbers of the requests that were sent as the `start`-th up to before the `stop`-th."""
        return self.words[self._sent + start : self._sent + stop].tolist()

    def finished(self, start: int, stop: int) -> list[int]:
        """Return the numbers of the requests that were over as the `start`-th up to before the `stop`-th."""
        return self.words[self._done + start : self._done + stop].tolist()

    def close(self) -> None:
        """Let the memory go."""
        self.words.release()
        self._map.close()


def new_request_table(capacity: int, output_tokens: int) -> int:
    """Return a descriptor of an empty table.

    Args:
        capacity: most requests.
        output_tokens: most of one request.
    """
    stamps = output_tokens + 1
    # Pages are only taken when they are written.
    size = WORD * (len(Header) + capacity * (2 + FIELDS + stamps))
    file = shared_memory("cmp-load", -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    with mmap.mmap(file, mmap.PAGESIZE) as start:
        words = memoryview(start).cast("q")
        words[Header.CAPACITY] = capacity
        words[Header.STAMPS] = stamps
        words.release()
    return file
