"""Serve requests as they arrive: through the engine's own batching, or one after the other.

Runs where the engine is, between two requests or steps of which it looks at the request table
(`enginecmp.wire.request_table`) for what the load generator has sent meanwhile. While there is work it makes no
system call of its own; with none it sleeps on an eventfd. Stamps go straight into the table, so nothing is kept here
that a crash could take along.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from enginecmp import clock
from enginecmp.errors import CmpError, EngineError, RequestFailed
from enginecmp.format.phases import Phase
from enginecmp.format.text import plain
from enginecmp.telemetry.contention import ContentionSensor, between
from enginecmp.types import ENDED, Decoding, Request
from enginecmp.wire.answers import MOST_TOKENS
from enginecmp.wire.protocol import Progress
from enginecmp.wire.request_intake import RequestIntake, serve_queue
from enginecmp.wire.request_table import FIELDS, Field, Header, RequestTable, Stop
from enginecmp.worker.generate import choose, generate
from enginecmp.worker.results import engine_metrics

_QUICK_NS = 100_000
_EMPTY_STEPS = 100
"""So many steps in a row that give nothing at once: the engine has lost its requests, it does not wait for them."""


class _Flight(NamedTuple):
    """One request that the engine holds: its number and the index of its row."""

    number: int
    row: int


def serve_batching(
    hook: Any, session: Any, intake: RequestIntake, requests: Sequence[Request], limit: int, progress: Progress
) -> None:
    """Serve requests through the engine's own batching: submit what it takes, step, stamp, again.

    Args:
        hook: relay to the engine's hooks.
        session: from `cmp_load`, empty.
        intake: where requests arrive.
        requests: by number.
        limit: most requests in flight.
        progress: shared with the host.

    Raises:
        EngineError: the engine answered for a request that it does not hold, or twice, or for none at all.
    """
    flying: dict[str, _Flight] = {}
    words, waiting, now_ns = intake.words, intake.waiting, clock.now_ns
    tokens = empty = 0
    while intake.look():
        while waiting and len(flying) < limit:
            number = waiting[0]
            request = requests[number]
            progress.set(Phase.SUBMIT, tokens)
            start_ns = now_ns()
            try:
                accepted = hook.cmp_submit(session=session, request=request)
            except BaseException as raised:  # a Rust panic arrives as a BaseException
                intake.start(waiting.popleft(), start_ns)
                intake.fail([number], Phase.SUBMIT, raised)
                intake.answer()
                continue
            if not accepted:
                break
            flying[request.id] = _Flight(waiting.popleft(), intake.start(number, start_ns))
        if flying:
            progress.set(Phase.STEP, tokens)
            before_ns = now_ns()
            try:
                pairs = hook.cmp_step(session=session, wake=intake.wake)
            except RequestFailed as raised:
                if (failed := flying.pop(raised.request_id, None)) is None:
                    msg = f"cmp_step failed request {raised.request_id!r}, which is not in flight: {raised}"
                    raise EngineError(msg) from raised
                intake.fail([failed.number], Phase.STEP, raised)
                intake.answer()
                continue
            except BaseException as raised:
                intake.fail([flight.number for flight in flying.values()], Phase.STEP, raised)
                intake.answer()
                flying.clear()
                hook.cmp_reset(session=session)
                continue
            step_ns = now_ns()
            if pairs:
                tokens += _length(pairs)
                empty = 0
                if _stamp(pairs, step_ns, flying, intake, requests):
                    intake.answer()
            elif not intake.heard() and step_ns - before_ns < _QUICK_NS:
                empty += 1
                if empty == _EMPTY_STEPS:
                    msg = f"cmp_step gave nothing {empty} times in a row while {_names(flying)} wait for tokens"
                    raise EngineError(msg)
        elif waiting and words[Header.STOP] != Stop.BROKEN:
            _require_nothing(hook, session, intake)
            msg = f"cmp_submit refused request {waiting[0]} although nothing is in flight"
            raise EngineError(msg)
        elif intake.over():
            _require_nothing(hook, session, intake)
            break
        else:
            progress.set(Phase.WAIT, tokens)
            intake.sleep()


def _require_nothing(hook: Any, session: Any, intake: RequestIntake) -> None:
    """Let an engine show that it has no more tokens to give once every request has its own.

    Raises:
        EngineError: it has.
    """
    if pairs := hook.cmp_step(session=session, wake=-1):
        _length(pairs)
        _stamp(pairs, 0, {}, intake, ())


def _length(pairs: Any) -> int:
    """Return how many tokens a step gave.

    Raises:
        EngineError: it gave something else.
    """
    if isinstance(pairs, list | tuple):
        return len(pairs)
    msg = f"cmp_step returned a {type(pairs).__name__}, expected a list of (request id, token id)"
    raise EngineError(msg)


def _stamp(
    pairs: Sequence[tuple[str, int]],
    step_ns: int,
    flying: dict[str, _Flight],
    intake: RequestIntake,
    requests: Sequence[Request],
) -> bool:
    """Write one step's tokens, all with the same stamp; return whether a request is over."""
    words = intake.words
    over = False
    rest: list[Any]
    seen: set[str] = set()
    for pair in pairs:
        try:
            name, token, *rest = pair
            flight, possible = flying.get(name), ENDED <= token < 1 << 31
        except (TypeError, ValueError) as error:
            msg = f"cmp_step returned {plain(repr(pair), 80)} in its list, expected (request id, token id)"
            raise EngineError(msg) from error
        if not possible:
            msg = f"cmp_step gave {plain(repr(token), 80)} for request {plain(repr(name), 80)}, expected a token id"
            raise EngineError(msg)
        if flight is None or name in seen:
            raise EngineError(_wrong(name, flight is not None, seen, intake))
        seen.add(name)
        number, row = flight
        if token == ENDED:
            over = True
            del flying[name]
            intake.finish(number, step_ns, _ended(requests[number], rest, words[row + Field.MARKED]))
            continue
        marked = words[row + Field.MARKED]
        words[row + FIELDS + marked] = step_ns
        words[row + Field.MARKED] = marked + 1
        request = requests[number]
        if marked + 1 == request.output_tokens or token in request.decoding.end_ids:
            over = True
            del flying[name]
            intake.finish(number, step_ns, marked + 1)
    return over


def _ended(request: Request, rest: Sequence[Any], marked: int) -> int:
    """Return how many tokens a request had that the engine ends.

    Raises:
        EngineError: it says no number where it may be any, or one that cannot be.
    """
    if not request.decoding.end_ids and not request.decoding.json_schema and not rest:
        return request.output_tokens
    tokens = rest[0] if len(rest) == 1 else None
    if type(tokens) is int and max(1, marked) <= tokens <= request.output_tokens:
        return tokens
    msg = (
        f"cmp_step ended request {request.id} with {plain(repr(tokens), 80)} tokens, expected (request id, ENDED, "
        f"tokens) with {max(1, marked)} to {request.output_tokens}"
    )
    raise EngineError(msg)


def _wrong(name: Any, held: bool, seen: set[str], intake: RequestIntake) -> str:
    """Return what is wrong with an answer of cmp_step."""
    if held or name in seen:
        return f"cmp_step gave two tokens for request {name} in one step, expected one at most"
    table = intake.table
    number = int(name) if isinstance(name, str) and name.isdecimal() else table.capacity
    if number < table.capacity and intake.words[table.row(number) + Field.SENT_NS]:
        return f"cmp_step gave a token for request {name}, which already has all that it asked for"
    return f"cmp_step gave a token for request {plain(repr(name), 80)}, which was never submitted"


def _names(flying: dict[str, _Flight]) -> str:
    names = ", ".join(list(flying)[:5])
    return f"request{'s' if len(flying) > 1 else ''} {names}{', …' if len(flying) > 5 else ''}"


def serve(
    hook: Any, session: Any, progress: Progress, sensor: ContentionSensor, message: dict[str, Any]
) -> dict[str, Any]:
    """Serve one cell until the generator has sent everything and everything is over.

    Args:
        hook: relay to the engine's hooks.
        session: from `cmp_load`.
        progress: shared with the host.
        sensor: read when the first request arrives and when the last one is over.
        message: `files` (table, eventfd from and to the generator), `prompts` (ids by number), `output_tokens` (by
            number), `limit` (most requests in flight), `continuous` (use the engine's own batching), and `decodings`
            (by number) where they are not all greedy.

    Returns:
        `errors` (number → text), `window` (what the machine did meanwhile), `metrics` (the engine's, at the end).

    Raises:
        EngineError: the engine broke the contract of cmp_submit and cmp_step, or replaced the clock.
    """
    files: list[int] = message["files"]
    try:
        return _serve(hook, session, progress, sensor, message, RequestTable(files[0]))
    finally:
        for descriptor in files:
            os.close(descriptor)


def _serve(
    hook: Any, session: Any, progress: Progress, sensor: ContentionSensor, message: dict[str, Any], table: RequestTable
) -> dict[str, Any]:
    if clock.now_ns is not time.perf_counter_ns:
        msg = "requests in flight at once need the machine's clock, this engine moves one of its own; pass clock=real"
        raise EngineError(msg)
    intake = RequestIntake(table, *message["files"][1:])
    prompts: list[list[int]] = message["prompts"]
    output_tokens: list[int] = message["output_tokens"]
    progress.set(Phase.PREPARE)
    hook.cmp_reset(session=session)
    progress.set(Phase.WAIT)
    before = []
    intake.began = lambda: before.append(sensor.read())
    continuous: bool = message["continuous"]
    decodings = msgspec.convert(message.get("decodings") or [{}] * len(prompts), list[Decoding])
    requests = [
        Request(id=str(n), token_ids=ids, output_tokens=wanted, decoding=decoding)
        for n, (ids, wanted, decoding) in enumerate(zip(prompts, output_tokens, decodings, strict=True))
    ]
    # What a cell needs stays until it ends: keep the collector from walking it while requests are served.
    gc.collect()
    gc.freeze()
    intake.open()
    if continuous:
        if not hook.cmp_submit.get_hookimpls():
            msg = "has a max_concurrency above 1 and no cmp_submit; implement it, or say max_concurrency=1"
            raise EngineError(msg)
        serve_batching(hook, session, intake, requests, message["limit"], progress)
    else:
        serve_queue(intake, _Runner(hook, session, intake, requests, progress).run)
    table.words[Header.ENDED_NS] = clock.now_ns()
    after = sensor.read()
    progress.set(Phase.METRICS)
    found = hook.cmp_metrics(session=session)
    hook.cmp_reset(session=session)
    return {
        "errors": {str(number): text for number, text in intake.errors.items()},
        "window": between(before[0], after) if before else {},
        "metrics": engine_metrics(found),
    }


class _Runner:
    """Runs single requests of a cell, stamps into the table."""

    def __init__(
        self,
        hook: Any,
        session: Any,
        intake: RequestIntake,
        requests: Sequence[Request],
        progress: Progress,
    ) -> None:
        self._hook = hook
        self._session = session
        self._intake = intake
        self._requests = requests
        self._progress = progress
        self._tokens = 0

    def run(self, number: int) -> None:
        """Run one request to its end."""
        hook, session, intake, progress = self._hook, self._session, self._intake, self._progress
        words, now_ns, decode = intake.words, clock.now_ns, Phase.DECODE
        request = self._requests[number]
        token_ids, wanted, end_ids = request.token_ids, request.output_tokens, request.decoding.end_ids
        row = intake.table.row(number)
        at = row + FIELDS
        count = row + Field.MARKED

        def mark(_: int) -> None:
            marked = words[count]
            words[at + marked] = now_ns()
            words[count] = marked + 1
            self._tokens += 1
            progress.set(decode, self._tokens)

        where = Phase.PREPARE
        progress.set(Phase.PREPARE, self._tokens)
        try:
            hook.cmp_reset(session=session)
            choose(hook, session, request.decoding)
            hook.cmp_prepare(session=session, token_ids=token_ids, output_tokens=wanted)
            where = Phase.PREFILL
            gc.disable()
            progress.set(Phase.PREFILL, self._tokens)
            intake.start(number, now_ns())
            total = generate(hook, session, token_ids, wanted, mark, end_ids)
            end_ns = now_ns()
            if total is not None and not words[count] <= total <= MOST_TOKENS:
                msg = f"cmp_decode returned {total - 1} as its number of tokens, it yielded {words[count] - 1} times"
                raise EngineError(msg)
        except BaseException as raised:  # a Rust panic arrives as a BaseException
            intake.fail([number], Phase.DECODE if words[count] else where, raised)
        else:
            intake.finish(number, end_ns, words[count] if total is None else total)
        finally:
            gc.enable()
        progress.set(Phase.WAIT, self._tokens)


def batch(hook: Any, session: Any, message: dict[str, Any]) -> dict[str, list[int]] | None:
    """Run several requests through the engine's own batching, unmeasured; return ids per request.

    Args:
        hook: relay to the engine's hooks.
        session: from `cmp_load`.
        message: `requests`, and `every`: steps between two submissions (0: as soon as the engine takes them).

    Returns:
        None where the engine has no `cmp_submit`.

    Raises:
        CmpError: it gave fewer tokens than asked for.
    """
    if not hook.cmp_submit.get_hookimpls():
        return None
    hook.cmp_reset(session=session)
    waiting = deque(msgspec.convert(request, Request) for request in message["requests"])
    every: int = message.get("every", 0)
    ids: dict[str, list[int]] = {request.id: [] for request in waiting}
    asked = {request.id: request.output_tokens for request in waiting}
    end_ids = {request.id: request.decoding.end_ids for request in waiting}
    wanted = sum(asked.values())
    steps = submitted = 0
    while (had := sum(map(len, ids.values()))) < wanted:
        while waiting and submitted * every <= steps and hook.cmp_submit(session=session, request=waiting[0]):
            waiting.popleft()
            submitted += 1
        pairs = hook.cmp_step(session=session, wake=-1)
        steps += 1
        if not pairs and steps > 1000 * (wanted + every * len(ids)):
            msg = f"cmp_step gave {had} of {wanted} tokens and then nothing"
            raise CmpError(msg)
        for request_id, token, *_ in pairs:
            if token != ENDED:
                ids[request_id].append(token)
            if token == ENDED or token in end_ids[request_id]:
                wanted -= asked[request_id] - len(ids[request_id])
    return ids
