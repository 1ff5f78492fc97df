"""Requests that are not all alike: what a cell with `workload = "NAME"` is made of, from the table [workloads.NAME]."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.documents import converted, named_by_user, read_text
from enginecmp.prompts.lengths import MOST_TOKENS, MOST_VALUES, Exponential, Lengths, Seconds, limits, mean, problems
from enginecmp.scenarios.traces import Trace, TraceFile, read_trace_file

MOST_TURNS = 1000
MOST_THINK_SECONDS = 3600.0


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of requests.

    Attributes:
        prompt_tokens: ids that are new in each request, a begin-of-sequence id included: what the user says.
        output_tokens: ids to ask for.
        turns: requests of a conversation. The prompt of each is all that was said before it and what is new; in the
            place of answers it has ids of the same number, the same for every engine.
        think_seconds: between an answer and the next turn.
        shared_prefix_tokens: ids at the beginning of a conversation that it shares with others, before what is new.
        shared_prefixes: how many of these beginnings there are.
        trace: recorded requests, in place of the lengths and turns above.
        shared_prefix_share: which share of the conversations begins with one of them; the others begin with as many
            ids of their own.
    """

    prompt_tokens: Lengths = 0
    output_tokens: Lengths = 0
    turns: Lengths = 1
    think_seconds: Seconds = 0.0
    shared_prefix_tokens: int = 0
    shared_prefixes: int = 1
    shared_prefix_share: float = 1.0
    trace: Trace | None = None

    @property
    def has_turns(self) -> bool:
        """Whether some requests follow others."""
        return self.most_turns > 1

    @property
    def most_turns(self) -> int:
        """Requests of the longest conversation."""
        return limits(self.turns)[1] if self.trace is None else max(self.trace.turns)

    @property
    def most_prompt_tokens(self) -> int:
        """Ids of the longest prompt: of the last turn of the longest conversation."""
        if self.trace is not None:
            return self.shared_prefix_tokens + self.trace.most_prompt_tokens
        turns = self.most_turns
        said = turns * limits(self.prompt_tokens)[1] + (turns - 1) * self.most_output_tokens
        return self.shared_prefix_tokens + said

    @property
    def most_output_tokens(self) -> int:
        """Ids of the longest answer."""
        return limits(self.output_tokens)[1] if self.trace is None else max(self.trace.output_tokens)

    @property
    def mean_tokens(self) -> tuple[float, float]:
        """Ids of a whole prompt, with all that was said before it, and ids of an answer, on average; for a forecast."""
        if self.trace is None:
            turns, said, output = mean(self.turns), mean(self.prompt_tokens), mean(self.output_tokens)
            return self.shared_prefix_tokens + said * (turns + 1) / 2 + output * (turns - 1) / 2, output
        n = len(self.trace.prompt_tokens)
        return self.shared_prefix_tokens + self.trace.mean_prompt_tokens, sum(self.trace.output_tokens) / n

    @property
    def mean_think_seconds(self) -> float:
        """Time that passes before a request because its user thinks, on average; a first turn waits for nothing."""
        think = self.think_seconds
        turns = mean(self.turns) if self.trace is None else len(self.trace.prompt_tokens) / len(self.trace.turns)
        return (think.mean if isinstance(think, Exponential) else think) * (1 - 1 / turns)


def read_workload(raw: Any, folder: Path, where: str) -> Any:
    """Return a [workloads.NAME] table with the files that it names read into it.

    Args:
        raw: the table.
        folder: that of the scenario's file, which names are relative to.
        where: for messages.

    Raises:
        UsageError: a file cannot be read, or is not what it should be.
    """
    if not isinstance(raw, dict):
        return raw
    read = {key: _with_lengths(value, folder, f"{where}.{key}") for key, value in raw.items()}
    if isinstance(raw.get("trace"), dict):
        read["trace"] = read_trace_file(converted(raw["trace"], TraceFile, f"{where}.trace"), folder)
    return read


def _with_lengths(raw: Any, folder: Path, where: str) -> Any:
    if not isinstance(raw, dict) or raw.get("distribution") != "file":
        return raw
    if set(raw) != {"distribution", "file"} or not isinstance(raw["file"], str):
        msg = f'{where}: expected {{ distribution = "file", file = "NAME" }}, got the keys {", ".join(sorted(raw))}'
        raise UsageError(msg)
    path = folder / raw["file"]
    with named_by_user("lengths", str(path)):
        lines = [line.split("#")[0].strip() for line in read_text(path).splitlines()]
    values = [line for line in lines if line]
    if wrong := next((line for line in values if not line.isascii() or not line.isdigit()), None):
        msg = f"{path}: expected a number of tokens a line, got {wrong[:80]!r}"
        raise UsageError(msg)
    if len(values) > MOST_VALUES:
        msg = f"{path}: expected at most {MOST_VALUES} lengths, got {len(values)}"
        raise UsageError(msg)
    return {"distribution": "recorded", "values": [int(value) for value in values]}


def workload_problems(name: str, workload: Workload) -> Iterator[tuple[str, object]]:
    """Yield (what was expected, what came) for a workload that cannot be."""
    trace = workload.trace
    if trace is not None:
        if (workload.prompt_tokens, workload.output_tokens, workload.turns) != (0, 0, 1):
            yield (
                f"workloads.{name}: no prompt_tokens, output_tokens or turns beside a trace, which has its own",
                "some",
            )
        if trace.blocks and workload.shared_prefix_tokens:
            yield f"workloads.{name}: no shared_prefix_tokens beside a trace with hash_ids, which tells its own", "some"
        if workload.most_turns > MOST_TURNS:
            yield f"workloads.{name}: at most {MOST_TURNS} turns", workload.most_turns
    elif not isinstance(workload.prompt_tokens, int) or workload.prompt_tokens or workload.output_tokens:
        yield from problems(f"workloads.{name}.prompt_tokens", workload.prompt_tokens)
        yield from problems(f"workloads.{name}.output_tokens", workload.output_tokens)
    else:
        yield f"workloads.{name}: prompt_tokens and output_tokens, or a trace", "neither"
    yield from problems(f"workloads.{name}.turns", workload.turns)
    think = workload.think_seconds
    seconds = think.mean if isinstance(think, Exponential) else think
    rules = [
        (0 <= seconds <= MOST_THINK_SECONDS, f"think_seconds from 0 to {MOST_THINK_SECONDS:g}", seconds),
        (limits(workload.turns)[1] <= MOST_TURNS, f"turns: at most {MOST_TURNS}", limits(workload.turns)[1]),
        (0 <= workload.shared_prefix_tokens < MOST_TOKENS, "shared_prefix_tokens >= 0", workload.shared_prefix_tokens),
        (1 <= workload.shared_prefixes <= 1 << 20, "shared_prefixes >= 1", workload.shared_prefixes),
        (0 <= workload.shared_prefix_share <= 1, "shared_prefix_share from 0 to 1", workload.shared_prefix_share),
    ]
    yield from ((f"workloads.{name}.{expected}", got) for right, expected, got in rules if not right)
