"""One loaded server and the requests that are under way."""

from __future__ import annotations

import selectors
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import psutil

from enginecmp import GREEDY, Decoding

from .flight import Flight
from .process import Started
from .prompts import Reader
from .server import Server


@dataclass(slots=True)
class Session:
    """One loaded server and the requests that are under way.

    Attributes:
        server: the server.
        context_tokens: prompt plus output tokens that a request may have.
        max_sequences: most requests in flight.
        kind: of the server, a key of `kinds.KINDS`.
        version: kind and version of the server, in words.
        process: the server, where it was started here.
        family: the server's processes, where they run on this machine.
        cpu_seconds: what these had used when the last request, or batch of them, was prepared.
        reader: turns ids into text and proves it; None where ids are taken.
        active: the request of cmp_prefill.
        flights: requests of cmp_submit, by id.
        ready: those of them that have tokens to hand out or are over.
        selector: watches the connections of `flights`.
        wake: descriptor in `selector` that tells of requests to be submitted; -1 without one.
        looked: when those were looked at for which nothing arrived, on time.monotonic's clock.
        last: ids and output tokens of the last request.
        prepared: ids, output tokens and body of the request that cmp_prepare made ready.
        decoding: of the next request of cmp_prefill.
        told: of the server, the same for every request: the way to it, its GPUs.
        metrics: of the request that ended last.
        text: of the request that ended last, where it had to follow a JSON Schema; else None.
        counted: prompts and output tokens whose number a request of its own has proven.
    """

    server: Server
    context_tokens: int
    max_sequences: int
    kind: str = "openai"
    version: str = ""
    process: Started | None = None
    family: Sequence[psutil.Process] = ()
    cpu_seconds: float = 0.0
    reader: Reader | None = None
    active: Flight | None = None
    flights: dict[str, Flight] = field(default_factory=dict)
    ready: dict[str, Flight] = field(default_factory=dict)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    wake: int = -1
    looked: float = 0.0
    last: tuple[tuple[int, ...], int] | None = None
    prepared: tuple[tuple[int, ...], int, bytes] | None = None
    decoding: Decoding = GREEDY
    told: Mapping[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    text: str | None = None
    counted: set[tuple[tuple[int, ...], int]] = field(default_factory=set)

    def listen(self, wake: int) -> None:
        """Let `selector` watch this descriptor in place of the last one; -1 for none."""
        if self.wake != wake:
            if self.wake >= 0:
                self.selector.unregister(self.wake)
            if wake >= 0:
                self.selector.register(wake, selectors.EVENT_READ)
            self.wake = wake

    def exits(self) -> AbstractContextManager[None]:
        """Let no exception out of a hook that repeats the API key."""
        return self.server.client.redaction.exits()
