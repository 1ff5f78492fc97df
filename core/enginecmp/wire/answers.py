"""What a worker may answer, operation by operation: types, ranges and sizes, held where an answer arrives.

A worker is an engine's process, so that nothing it says is taken as it comes. What passes here obeys the rules of the
results format: numbers are finite, stamps are whole nanoseconds that rise, counts are possible, names and texts are
printable and short. A wrong answer is that launch's failure and nobody else's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Generic, NotRequired, TypedDict, TypeVar

import msgspec

from enginecmp.format.phases import Phase
from enginecmp.types import NO_ID, Probe

T = TypeVar("T")

MAX_MESSAGE_BYTES = 1 << 31
"""Logits are the largest message: 8,192 positions of a vocabulary of 50,000 are 1.6 GB."""

SMALL_BYTES = 1 << 20
"""Most of an answer that holds no arrays."""

MOST_TOKENS = 1 << 20
"""Most output tokens that one request can be said to have."""

TEXT_CHARACTERS = 2000
"""Most of an error's text that is kept."""

HOST_METRICS = frozenset(
    {
        "rss_bytes",
        "peak_rss_bytes",
        "rss_file_bytes",
        "empty_rss_bytes",
        "startup_seconds",
        "first_token_from_start_seconds",
        "page_cache_share",
        "dispatch_lag_seconds",
        "calls",
        "operation_seconds",
    }
)
"""Numbers that the host reads or derives: no answer may hold one."""

WORKER_METRICS = frozenset(
    {
        "process_cpu_seconds",
        "involuntary_switches",
        "foreign_cpu_seconds",
        "cpu_pressure_seconds",
        "steal_seconds",
    }
)
"""Numbers that our worker reads around an engine: no engine may say one."""

Stamp = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
TokenId = Annotated[int, msgspec.Meta(ge=NO_ID, lt=1 << 31)]
Size = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Numbers = Annotated[dict[Name, float], msgspec.Meta(max_length=1000)]


class Failed(msgspec.Struct):
    """An operation that ended in an exception: its class, one line about it, and where it was raised."""

    type: str
    message: str
    traceback: str = ""


class Message(msgspec.Struct, Generic[T]):
    """One answer: what came of the operation, or how it failed."""

    ok: T | msgspec.UnsetType = msgspec.UNSET
    error: Failed | msgspec.UnsetType = msgspec.UNSET


class Loaded(TypedDict):
    """Of `load`; `version` where the engine tells it only now."""

    start_ns: Stamp
    end_ns: Stamp
    metrics: Numbers
    version: NotRequired[str]


class FailedRequest(TypedDict):
    """An exception inside a request."""

    type: str
    message: str
    traceback: NotRequired[str]


class Answered(TypedDict):
    """Of `request`; `where` is the phase of an error, `text` what an engine without ids generated."""

    start_ns: Stamp
    token_ns: list[Stamp]
    end_ns: Stamp
    ids: list[TokenId]
    output_tokens: Tokens
    metrics: Numbers
    where: NotRequired[str]
    text: NotRequired[str]
    error: FailedRequest | None


class Matrix(TypedDict):
    """float32 values, row by row; no shape where the engine has no `cmp_score`."""

    shape: Annotated[list[Size], msgspec.Meta(min_length=2, max_length=2)] | None
    data: memoryview


class Prepared(TypedDict):
    """Of `prepare_operation`."""

    calls: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Operated(TypedDict):
    """Of `operation`; `marks_ns` are the stamps of what an operation yielded."""

    start_ns: Stamp
    end_ns: Stamp
    result: Matrix | str | int | list[int | list[int] | str]
    metrics: Numbers
    marks_ns: NotRequired[list[Stamp]]


class Profiled(TypedDict):
    """Of `profile`."""

    start_ns: Stamp
    end_ns: Stamp
    seconds: dict[Name, Annotated[float, msgspec.Meta(ge=0)]]
    metrics: NotRequired[Numbers]


class Served(TypedDict):
    """Of `serve`: texts by the number of a request, and two sets of metrics."""

    errors: dict[Name, str]
    window: Numbers
    metrics: Numbers


ANSWERS: Mapping[str, Any] = {
    "start": Message[int],
    "probe": Message[Probe],
    "load": Message[Loaded],
    "request": Message[Answered],
    "score": Message[Matrix],
    "prepare_operation": Message[Prepared | None],
    "operation": Message[Operated],
    "profile": Message[Profiled | None],
    "serve": Message[Served],
    "batch": Message[dict[Name, list[TokenId]] | None],
    "unload": Message[bool | None],
}
"""Type of the whole message that answers each operation."""


def most_bytes(operation: str, asked: Mapping[str, Any], vocabulary: int) -> int:
    """Return how long an answer may be.

    Args:
        operation: one of `ANSWERS`.
        asked: the operation's arguments.
        vocabulary: of the model that is loaded; 0 where none is.
    """
    match operation:
        case "request":
            return SMALL_BYTES + 64 * int(asked["output_tokens"])
        case "score":
            # Twice as many columns as the vocabulary has: a padded head is then told by its shape, not by its bytes.
            return min(MAX_MESSAGE_BYTES, SMALL_BYTES + 8 * len(asked["token_ids"]) * max(vocabulary, 1))
        case "serve":
            return SMALL_BYTES + 4 * TEXT_CHARACTERS * len(asked["prompts"])
        case "batch":
            return SMALL_BYTES + 16 * sum(int(request["output_tokens"]) for request in asked["requests"])
        case "operation":
            return MAX_MESSAGE_BYTES
    return SMALL_BYTES


def require(operation: str, answer: Any, asked: Mapping[str, Any], vocabulary: int, since_ns: int) -> None:
    """Hold an answer against what was asked.

    Args:
        operation: one of `ANSWERS`.
        answer: of the type that belongs to it.
        asked: the operation's arguments.
        vocabulary: of the model that is loaded; 0 where none is.
        since_ns: the last stamp of the launch's answer before.

    Raises:
        ValueError: what was expected and what it got.
    """
    if not isinstance(answer, dict):
        return
    if "start_ns" in answer:
        _require_rising(since_ns, answer)
    for key in ("metrics", "window", "seconds"):
        _require_numbers(key, answer.get(key, {}))
        if taken := sorted(HOST_METRICS.intersection(answer.get(key, {}))):
            msg = f"expected {key} without names that the host writes, got {taken[0]}"
            raise ValueError(msg)
    match operation:
        case "request":
            _require_request(answer, vocabulary)
        case "score":
            _require_matrix(answer, len(asked["token_ids"]))
        case "operation" if isinstance(answer["result"], dict):
            _require_matrix(answer["result"], None)
        case "batch":
            _require_batch(answer, asked)


def require_own_metrics(source: str, metrics: Mapping[str, float]) -> None:
    """Hold the metrics of an engine against the names that are ours.

    Args:
        source: who says them.
        metrics: what it says.

    Raises:
        ValueError: one has a name under which host or worker write what they read; no engine may replace it.
    """
    if taken := sorted((HOST_METRICS | WORKER_METRICS).intersection(metrics)):
        msg = f"{source} holds {taken[0]}, which the host reads itself; give it another name, e.g. engine_{taken[0]}"
        raise ValueError(msg)
    if metrics.get("engine_cpu_seconds", 0.0) < 0:
        msg = f"{source} holds engine_cpu_seconds = {metrics['engine_cpu_seconds']}, expected 0 or more"
        raise ValueError(msg)


def last_stamp(answer: Any, since_ns: int) -> int:
    """Return the last stamp of an answer, or the one before where it has none."""
    return int(answer["end_ns"]) if isinstance(answer, dict) and "end_ns" in answer else since_ns


def phase_named(name: str) -> Phase:
    """Return the phase that a worker names; unknown where there is none of that name."""
    return Phase.__members__.get(name.upper(), Phase.UNKNOWN)


def _require_rising(since_ns: int, answer: Mapping[str, Any]) -> None:
    stamps = [answer["start_ns"], *answer.get("token_ns", ()), *answer.get("marks_ns", ()), answer["end_ns"]]
    if stamps[0] < since_ns:
        msg = f"expected start_ns after the end of the answer before, {since_ns}, got {stamps[0]}"
        raise ValueError(msg)
    for before, after in pairwise(stamps):
        if after < before:
            msg = f"expected start_ns <= token_ns (rising) <= end_ns, got {after} after {before}"
            raise ValueError(msg)


def _require_numbers(key: str, numbers: Mapping[str, float]) -> None:
    for name, value in numbers.items():
        if not name.isprintable():
            msg = f"expected printable names in {key}, got {name!a}"
            raise ValueError(msg)
        if not math.isfinite(value):
            msg = f"expected finite numbers in {key}, got {name} = {value}"
            raise ValueError(msg)


def _require_request(answer: Mapping[str, Any], vocabulary: int) -> None:
    tokens, stamps, ids = answer["output_tokens"], answer["token_ns"], answer["ids"]
    if len(stamps) > tokens:
        msg = f"expected at most one stamp for each of {tokens} output tokens, got {len(stamps)}"
        raise ValueError(msg)
    if len(ids) > tokens:
        msg = f"expected at most {tokens} ids, one for each output token, got {len(ids)}"
        raise ValueError(msg)
    if vocabulary and ids and max(ids) >= vocabulary:
        msg = f"expected ids in [0, {vocabulary}), got {max(ids)}"
        raise ValueError(msg)


def _require_matrix(answer: Mapping[str, Any], rows: int | None) -> None:
    shape, data = answer["shape"], answer["data"]
    if shape is None:
        return
    if rows is not None and shape[0] != rows:
        msg = f"expected a row of logits for each of {rows} tokens, got shape {tuple(shape)}"
        raise ValueError(msg)
    if 4 * shape[0] * shape[1] != len(data):
        msg = f"expected {4 * shape[0] * shape[1]} bytes of float32 for shape {tuple(shape)}, got {len(data)}"
        raise ValueError(msg)


def _require_batch(answer: Mapping[str, list[int]], asked: Mapping[str, Any]) -> None:
    wanted = {request["id"]: request["output_tokens"] for request in asked["requests"]}
    if answer.keys() != wanted.keys():
        msg = f"expected ids for each of {len(wanted)} requests, got {len(answer)}"
        raise ValueError(msg)
    for name, ids in answer.items():
        if len(ids) > wanted[name]:
            msg = f"expected at most {wanted[name]} ids for request {name}, got {len(ids)}"
            raise ValueError(msg)
