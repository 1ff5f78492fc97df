"""Traces with lengths, in the formats in which they are published: when each request came, how long it was.

The format is told by the file's keys. Nothing of a text is kept but its length.

    Mooncake    JSON lines: timestamp (ms), input_length, output_length, hash_ids (of blocks of 512 tokens, each
                standing for all that is before it as well)
    BurstGPT    CSV: Timestamp (s), Request tokens, Response tokens
    Azure       CSV of Azure's LLM inference traces: TIMESTAMP (date and time), ContextTokens, GeneratedTokens
    ShareGPT    JSON: a list of {"conversations": [{"from": "human", "value": text}, {"from": "gpt", ...}, ...]}
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.documents import named_by_user, read_text
from enginecmp.format.text import plain
from enginecmp.prompts.lengths import MOST_TOKENS

MOST_REQUESTS = 100_000
MOST_SECONDS = 1e9
BLOCK_TOKENS = 512
"""Of a block that a hash of Mooncake's stands for."""
BYTES_PER_TOKEN = 4
"""A text of ShareGPT counts as a token for every four bytes of UTF-8: no tokenizer is the trace's own."""

Format = Literal["mooncake", "burstgpt", "azure", "sharegpt"]

_CSV: Mapping[Format, tuple[str, str, str]] = {
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
}
"""Columns of time, prompt and output."""


class Trace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Recorded requests as the manifest holds them, in the order in which they came.

    Attributes:
        format: of the file.
        seconds: when each conversation began, rising from 0; empty where the format has no times.
        turns: requests of each conversation.
        prompt_tokens: of each request, conversation after conversation: ids that are new in it.
        output_tokens: of each request.
        blocks: of each request, the numbers of the blocks that its prompt is made of; empty where the format has none.
        block_tokens: ids of a whole block.
        left_out: requests that were too long, or had no prompt or no answer.
    """

    format: Format
    seconds: tuple[float, ...] = ()
    turns: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...] = ()
    block_tokens: int = BLOCK_TOKENS
    left_out: int = 0

    @property
    def most_prompt_tokens(self) -> int:
        """Ids of the longest prompt, of the last turn of a conversation."""
        return max(self._whole_prompts(), default=0)

    @property
    def mean_prompt_tokens(self) -> float:
        """Ids of a whole prompt, with all that was said before it, on average."""
        return sum(self._whole_prompts()) / len(self.prompt_tokens)

    def _whole_prompts(self) -> Iterator[int]:
        """Yield the ids of each request's prompt, with all that was said before it."""
        said = zip(self.prompt_tokens, self.output_tokens, strict=True)
        for turns in self.turns:
            before = 0
            for prompt, output in islice(said, turns):
                yield before + prompt
                before += prompt + output


class TraceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A [workloads.NAME.trace] table: which file, and how it is fitted to a model and a machine.

    Attributes:
        file: relative to the scenario's.
        speed: how many times faster than recorded requests come.
        token_scale: what all lengths are multiplied by; no request has less than one token.
        most_prompt_tokens: longer prompts are left out, with what follows in their conversation; 0 for no limit.
        most_output_tokens: longer answers likewise.
    """

    file: str
    speed: float = 1.0
    token_scale: float = 1.0
    most_prompt_tokens: int = 0
    most_output_tokens: int = 0


class _Request(NamedTuple):
    seconds: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()


def read_trace_file(how: TraceFile, folder: Path) -> Trace:
    """Return the requests of a trace.

    Args:
        how: which file, and how it is fitted.
        folder: that its name is relative to.

    Raises:
        UsageError: a number out of range, a file that cannot be read, or one of no known format; names line and key.
    """
    path = folder / how.file
    for name, value in (("speed", how.speed), ("token_scale", how.token_scale)):
        if not 1e-6 <= value <= 1e6:
            msg = f"trace {path}: expected {name} from 1e-6 to 1e6, got {value:g}"
            raise UsageError(msg)
    with named_by_user("trace", plain(str(path))):
        text = read_text(path)
    try:
        kind, conversations = _conversations(text)
        return _fitted(how, kind, conversations)
    except RecursionError:
        msg = f"trace {path}: expected the keys of a request, got some that are nested too deep"
        raise UsageError(msg) from None
    except ValueError as error:
        msg = f"trace {path}: {plain(str(error), 300)}"
        raise UsageError(msg) from error


def _conversations(text: str) -> tuple[Format, list[list[_Request]]]:
    """Return the format of a trace and its conversations.

    Raises:
        ValueError: it is none of them.
    """
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith("["):
        return "sharegpt", list(_sharegpt(start))
    if start.startswith("{"):
        return "mooncake", [[request] for request in _mooncake(start)]
    return _table(start)


def _mooncake(text: str) -> Iterator[_Request]:
    for number, line in _numbered(text.splitlines()):
        try:
            entry = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            msg = f"line {number}: expected an object of Mooncake's format: {error}"
            raise ValueError(msg) from error
        blocks = entry.get("hash_ids", [])
        if not isinstance(blocks, list) or not all(type(block) is int and abs(block) < 1 << 62 for block in blocks):
            msg = f"line {number}: expected hash_ids, a list of numbers"
            raise ValueError(msg)
        yield _Request(
            _number(entry, "timestamp", number) / 1000,
            _tokens(entry, "input_length", number),
            _tokens(entry, "output_length", number),
            tuple(blocks),
        )


def _table(text: str) -> tuple[Format, list[list[_Request]]]:
    lines = text.splitlines()
    rows = csv.DictReader(lines, strict=True)
    try:
        names = rows.fieldnames or ()
        kind = next((kind for kind, columns in _CSV.items() if set(columns) <= set(names)), None)
        if kind is None:
            msg = (
                "expected the keys of Mooncake (JSON lines), ShareGPT (JSON), BurstGPT or Azure (CSV), "
                f"got a first line of {plain(repr(lines[0][:100]) if lines else 'nothing', 120)}"
            )
            raise ValueError(msg)
        time, prompt, output = _CSV[kind]
        found = []
        for number, row in _numbered(rows, 2):
            seconds = _date(row, time, number) if kind == "azure" else _number(row, time, number)
            found.append([_Request(seconds, _tokens(row, prompt, number), _tokens(row, output, number))])
    except csv.Error as error:
        msg = f"line {rows.line_num}: not CSV: {error}"
        raise ValueError(msg) from error
    return kind, found


def _sharegpt(text: str) -> Iterator[list[_Request]]:
    try:
        entries = msgspec.json.decode(text, type=list[dict[str, Any]])
    except msgspec.MsgspecError as error:
        msg = f"expected a list of conversations, as ShareGPT: {error}"
        raise ValueError(msg) from error
    turns = 0
    for number, entry in enumerate(entries, start=1):
        said = entry.get("conversations")
        if not isinstance(said, list) or not all(
            isinstance(one, dict) and isinstance(one.get("value"), str) and isinstance(one.get("from"), str)
            for one in said
        ):
            msg = f'conversation {number}: expected conversations, a list of {{"from": …, "value": …}}'
            raise ValueError(msg)
        conversation: list[_Request] = []
        asked = 0
        for one in said:
            tokens = -(-len(one["value"].encode(errors="replace")) // BYTES_PER_TOKEN)
            if one["from"] in ("gpt", "assistant", "chatgpt", "model"):
                if asked:
                    conversation.append(_Request(0.0, asked, tokens))
                asked = 0
            else:
                # A system prompt belongs to the question behind it.
                asked += tokens
        turns += len(conversation)
        if turns > MOST_REQUESTS:
            raise ValueError(_too_many())
        if conversation:
            yield conversation


def _numbered(rows: Iterable[Any], first: int = 1) -> Iterator[tuple[int, Any]]:
    """Yield number and row of a file, without empty lines.

    Raises:
        ValueError: there are too many.
    """
    found = 0
    for number, row in enumerate(rows, start=first):
        if isinstance(row, str) and not row.strip():
            continue
        found += 1
        if found > MOST_REQUESTS:
            raise ValueError(_too_many())
        yield number, row


def _too_many() -> str:
    return f"expected at most {MOST_REQUESTS} requests, got more; cut the file, e.g. with head -n"


def _value(row: Mapping[str, Any], key: str, number: int, what: str) -> Any:
    value = row.get(key)
    if value is None or isinstance(value, bool | list | dict):
        msg = f"line {number}: expected {key}, {what}, got {plain(repr(value), 80)}"
        raise ValueError(msg)
    return value


def _number(row: Mapping[str, Any], key: str, number: int) -> float:
    value = _value(row, key, number, "a time")
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        seconds = math.nan
    if not abs(seconds) <= 1000 * MOST_SECONDS:
        msg = f"line {number}: expected {key}, a time, got {plain(repr(value), 80)}"
        raise ValueError(msg)
    return seconds


def _date(row: Mapping[str, Any], key: str, number: int) -> float:
    value = str(_value(row, key, number, "a date and time"))
    try:
        # Their seconds have seven digits, one more than Python reads.
        whole, _, part = value.strip().partition(".")
        part, zone = (part[:-6], part[-6:]) if part[-6:-5] in ("+", "-") else (part, "")
        moment = datetime.datetime.fromisoformat(whole + zone)
        share = float(f"0.{part}") if part else 0.0
    except ValueError:
        msg = f"line {number}: expected {key}, a date and time as 2023-11-16 18:15:46.6805900, got {value[:40]!r}"
        raise ValueError(msg) from None
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp() + share


def _tokens(row: Mapping[str, Any], key: str, number: int) -> int:
    value = _value(row, key, number, "a number of tokens")
    try:
        tokens = float(value)
    except (ValueError, OverflowError):
        tokens = math.nan
    if not 0 <= tokens < MOST_TOKENS or tokens != int(tokens):
        msg = f"line {number}: expected {key}, a number of tokens, got {plain(repr(value), 80)}"
        raise ValueError(msg)
    return int(tokens)


def _fitted(how: TraceFile, kind: Format, conversations: list[list[_Request]]) -> Trace:
    """Return a trace in the order of time, scaled, without what is too long.

    Raises:
        ValueError: nothing is left.
    """
    conversations = sorted(conversations, key=lambda some: some[0].seconds)
    kept: list[list[_Request]] = []
    left_out = 0
    for conversation in conversations:
        scaled = [_scaled(request, how.token_scale) for request in conversation]
        fitting, said = 0, 0
        for request in scaled:
            said += request.prompt
            if (
                not request.prompt
                or not request.output
                or said > (how.most_prompt_tokens or MOST_TOKENS)
                or request.output > (how.most_output_tokens or MOST_TOKENS)
            ):
                break
            said += request.output
            fitting += 1
        left_out += len(scaled) - fitting
        if fitting:
            kept.append(scaled[:fitting])
    if not kept:
        msg = f"expected a request with a prompt and an answer within the limits, got none ({left_out} left out)"
        raise ValueError(msg)
    requests = [request for conversation in kept for request in conversation]
    return Trace(
        format=kind,
        seconds=()
        if kind == "sharegpt"
        else tuple(round((some[0].seconds - kept[0][0].seconds) / how.speed, 9) for some in kept),
        turns=tuple(map(len, kept)),
        prompt_tokens=tuple(request.prompt for request in requests),
        output_tokens=tuple(request.output for request in requests),
        blocks=tuple(request.blocks for request in requests) if kind == "mooncake" else (),
        block_tokens=max(1, round(BLOCK_TOKENS * how.token_scale)),
        left_out=left_out,
    )


def _scaled(request: _Request, scale: float) -> _Request:
    """Return a request with scaled lengths; what had a token keeps one."""
    prompt, output = (max(1, round(n * scale)) if n else 0 for n in (request.prompt, request.output))
    return request._replace(prompt=prompt, output=output)
