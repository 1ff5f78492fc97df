"""What an importer hands over: requests of one load on one launch, and what the file says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, Literal

from enginecmp.format.records import Arrival, Cell, SamplePhase, Status

UNLIMITED = 0
"""`Cell.concurrency` of a load that named no limit of requests in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRequest:
    """One request as a foreign file tells it; the fields are those of `enginecmp.types.Sample`.

    Attributes:
        start_ns: when it was sent, on the file's own clock.
        end_ns: when it was over; equals `start_ns` when it failed and the file does not say when.
        prompt_tokens: tokens in the prompt.
        output_tokens: tokens generated.
        token_ns: the stamps that are known, see `known_stamps`.
        intended_ns: when it should have started; None when it started when it should.
        status: ok or error.
        error: what happened, else None.
        phase: load, warmup (cool-down too) or measure.
    """

    start_ns: int
    end_ns: int
    prompt_tokens: int
    output_tokens: int
    token_ns: Sequence[int] = ()
    intended_ns: int | None = None
    status: Status = "ok"
    error: str | None = None
    phase: SamplePhase = "measure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """What a file says of a load as a whole, where it does not hold every request with its time.

    Attributes:
        metrics: name of a metric of ours to the tool's own mean of it.
        requests: how many requests stand behind them, 0 where the file does not tell.
    """

    metrics: Mapping[str, float]
    requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The requests of one load (one cell) in one launch.

    Attributes:
        cell: the point of the grid.
        requests: in the order of the file; empty where it holds averages only.
        averages: what cannot be had from the requests; then nothing that a launch has one value of is taken from them.
        model: name of the model, "" when the file does not tell.
        version: version of the engine, "" when the file does not tell.
        device: what it ran on, "" when the file does not tell.
        tool_version: version of the tool that wrote the file, "" when it does not tell.
        conditions: what must be the same for all engines of a run: the load beyond the cell.
        options: what must be the same for all launches of one engine: how it was set up.
        machine: keys of `Manifest.environment` that the file tells.
        weights: keys of `RunModel` other than its name that the file tells.
        choices: what else of it --only may choose by, beside conditions and options.
        left_out: requests that ended because the test did; they neither succeeded nor failed.
        notes: what the reader should know of it, one sentence each.
    """

    cell: Cell
    requests: Sequence[ImportedRequest] = ()
    averages: Averages | None = None
    model: str = ""
    version: str = ""
    device: str = ""
    tool_version: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0
    notes: Sequence[str] = ()


Launch = list[Part]
"""Everything that one process, or one session against one server, was measured at."""


def known_stamps(stamps: Sequence[int], output_tokens: int) -> list[int]:
    """Return the stamps of chunks that may stand as stamps of tokens.

    A chunk is not a token. As many chunks as tokens: each has its stamp. Fewer: several tokens came at once, which
    the format knows. More: some carried no token (an empty last one is common), and which is not told; then the
    first and the last alone are kept, and with fewer than three tokens only the first, because two stamps of two
    tokens would pass for a known gap.

    Args:
        stamps: of all chunks, rising.
        output_tokens: tokens that were generated.
    """
    if len(stamps) <= output_tokens:
        return list(stamps)
    if output_tokens < 1:
        return []
    return [stamps[0], stamps[-1]] if output_tokens > 2 else [stamps[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests were sent, as far as a file tells.

    Attributes:
        users: that each send the next request when the last one is over; `UNLIMITED` where none are told.
        arrival: pattern of an open loop, "" for a closed one or where it is not told.
        rate: requests sent a second, None where it is not told.
        most: most requests in flight of an open loop: a limit that may never be reached, and no number of users.
    """

    users: int = UNLIMITED
    arrival: Arrival | Literal[""] = ""
    rate: float | None = None
    most: int | None = None

    def cell(self, prompt_tokens: int, output_tokens: int) -> Cell:
        """Return the cell of this load for prompts and outputs of these lengths."""
        if self.rate is None or not self.arrival:
            return Cell(prompt_tokens, output_tokens, self.users)
        return Cell(prompt_tokens, output_tokens, self.users, arrival=self.arrival, rate_per_second=self.rate)

    def typical_cell(self, requests: Sequence[ImportedRequest]) -> Cell:
        """Return the cell of requests whose lengths as asked are not recorded: medians over those that succeeded."""
        good = [request for request in requests if request.status == "ok" and request.phase == "measure"]
        good = good or list(requests)
        return self.cell(
            median_low(request.prompt_tokens for request in good) if good else 0,
            median_low(request.output_tokens for request in good) if good else 0,
        )

    @property
    def conditions(self) -> dict[str, Any]:
        """What of the load must be the same for all engines of a run, beside the cell."""
        told = {"request_rate": self.rate, "max_concurrency": self.most}
        return {key: value for key, value in told.items() if value is not None}


def positive(**told: float | None) -> dict[str, float]:
    """Return the averages that a file tells; what was not measured is written as 0, null or NaN."""
    return {name: value for name, value in told.items() if value is not None and value > 0}
