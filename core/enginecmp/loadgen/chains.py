"""Requests that wait for an answer: the turns of conversations, each due some time after the one before it."""

from __future__ import annotations

import heapq
from collections import deque

from enginecmp.wire.request_table import Field, Header, RequestTable


class Chains:
    """What is due when, in a cell where requests follow each other.

    In a closed loop every user takes the first request of a chain, goes through it turn by turn, and takes the next
    chain. In an open loop chains begin when they are due, whoever is still at work on others.

    Args:
        table: with `Field.AFTER` and `Field.THINK_NS` of every row filled, and with `Field.DUE` in an open loop.
    """

    def __init__(self, table: RequestTable) -> None:
        self._table = table
        words = table.words
        self._users = words[Header.USERS]
        self._next: dict[int, int] = {}
        firsts: deque[int] = deque()
        for number in range(table.capacity):
            after = words[table.row(number) + Field.AFTER]
            if after:
                self._next[after - 1] = number
            else:
                firsts.append(number)
        self._due: list[tuple[int, int, int]] = []
        if self._users:
            self._due = [(0, user, firsts.popleft()) for user in range(min(self._users, len(firsts)))]
        else:
            self._due = [(words[table.row(number) + Field.DUE], 0, number) for number in firsts]
            firsts.clear()
        self._firsts = firsts
        heapq.heapify(self._due)

    def next_due_ns(self) -> int | None:
        """Return when the next request is due, in nanoseconds after the start; None while all wait for answers."""
        return self._due[0][0] if self._due else None

    def pop(self) -> tuple[int, int, int]:
        """Return (when due, user, number) of that request, and go on to the one after it."""
        return heapq.heappop(self._due)

    def answered(self, number: int, go_ns: int) -> None:
        """Let what follows a request be due: the next turn after its think time, or the user's next chain at once."""
        words = self._table.words
        row = self._table.row(number)
        over_ns, user = words[row + Field.END_NS] - go_ns, words[row + Field.USER]
        following = self._next.get(number)
        if following is not None:
            think_ns = words[self._table.row(following) + Field.THINK_NS]
            heapq.heappush(self._due, (over_ns + think_ns, user, following))
        elif self._users and self._firsts:
            heapq.heappush(self._due, (over_ns, user, self._firsts.popleft()))
