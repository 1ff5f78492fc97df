"""Serve requests as they arrive: through the engine's own batching, or one after the other.

Runs where the engine is, between two requests or steps of which it looks at the board (`enginecmp.loadgen.board`) for
what the load generator has sent meanwhile. While there is work it makes no system call of its own; with none it
sleeps on an eventfd. Stamps go straight into the board, so nothing is kept here that a crash could take along.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from enginecmp import clock
from enginecmp.errors import CmpError, EngineError, RequestFailed
from enginecmp.generate import generate
from enginecmp.loadgen.board import FIELDS, Board, Field, Header, Stop
from enginecmp.loadgen.desk import Desk, serve_queue
from enginecmp.protocol import PHASES, Progress
from enginecmp.telemetry.contention import ContentionSensor, between
from enginecmp.types import ENDED, Request

_QUICK_NS = 100_000
_EMPTY_STEPS = 100
"""So many steps in a row that give nothing at once: the engine has lost its requests, it does not wait for them."""

_PREPARE, _PREFILL, _DECODE, _WAIT, _STEP = (
    PHASES.index(name) for name in ("prepare", "prefill", "decode", "wait", "step")
)


class _Flight(NamedTuple):
    """One request that the engine holds: its number and the index of its row."""

    number: int
    row: int


def serve_batching(
    hook: Any, session: Any, desk: Desk, requests: Sequence[Request], limit: int, progress: Progress
) -> None:
    """Serve requests through the engine's own batching: submit what it takes, step, stamp, again.

    Args:
        hook: relay to the engine's hooks.
        session: from `cmp_load`, empty.
        desk: where requests arrive.
        requests: by number.
        limit: most requests in flight.
        progress: shared with the host.

    Raises:
        EngineError: the engine answered for a request that it does not hold, or twice, or for none at all.
    """
    flying: dict[str, _Flight] = {}
    words, waiting, now_ns = desk.words, desk.waiting, clock.now_ns
    tokens = empty = 0
    while desk.look():
        while waiting and len(flying) < limit:
            number = waiting[0]
            request = requests[number]
            start_ns = now_ns()
            try:
                accepted = hook.cmp_submit(session=session, request=request)
            except BaseException as raised:  # a Rust panic arrives as a BaseException
                desk.start(waiting.popleft(), start_ns)
                desk.fail([number], "submit", raised)
                desk.answer()
                continue
            if not accepted:
                break
            flying[request.id] = _Flight(waiting.popleft(), desk.start(number, start_ns))
        if flying:
            progress.set(_STEP, tokens)
            before_ns = now_ns()
            try:
                pairs = hook.cmp_step(session=session)
            except RequestFailed as raised:
                if (failed := flying.pop(raised.request_id, None)) is None:
                    msg = f"cmp_step failed request {raised.request_id!r}, which is not in flight: {raised}"
                    raise EngineError(msg) from raised
                desk.fail([failed.number], "step", raised)
                desk.answer()
                continue
            except BaseException as raised:
                desk.fail([flight.number for flight in flying.values()], "step", raised)
                desk.answer()
                flying.clear()
                hook.cmp_reset(session=session)
                continue
            step_ns = now_ns()
            if pairs:
                tokens += len(pairs)
                empty = 0
                if _stamp(pairs, step_ns, flying, desk, requests):
                    desk.answer()
            elif step_ns - before_ns < _QUICK_NS:
                empty += 1
                if empty == _EMPTY_STEPS:
                    msg = f"cmp_step gave nothing {empty} times in a row while {_names(flying)} wait for tokens"
                    raise EngineError(msg)
        elif waiting and words[Header.STOP] != Stop.BROKEN:
            _require_nothing(hook, session, desk)
            msg = f"cmp_submit refused request {waiting[0]} although nothing is in flight"
            raise EngineError(msg)
        elif desk.over():
            _require_nothing(hook, session, desk)
            break
        else:
            progress.set(_WAIT, tokens)
            desk.sleep()


def _require_nothing(hook: Any, session: Any, desk: Desk) -> None:
    """Let an engine show that it has no more tokens to give once every request has its own.

    Raises:
        EngineError: it has.
    """
    if pairs := hook.cmp_step(session=session):
        raise EngineError(_wrong(pairs[0][0], False, set(), desk))


def _stamp(
    pairs: Sequence[tuple[str, int]], step_ns: int, flying: dict[str, _Flight], desk: Desk, requests: Sequence[Request]
) -> bool:
    """Write one step's tokens, all with the same stamp; return whether a request is over."""
    words = desk.words
    over = False
    seen: set[str] = set()
    for name, token in pairs:
        flight = flying.get(name)
        if flight is None or name in seen:
            raise EngineError(_wrong(name, flight is not None, seen, desk))
        seen.add(name)
        number, row = flight
        if token == ENDED:
            over = True
            del flying[name]
            desk.finish(number, step_ns, requests[number].output_tokens)
            continue
        marked = words[row + Field.MARKED]
        words[row + FIELDS + marked] = step_ns
        words[row + Field.MARKED] = marked + 1
        if marked + 1 == requests[number].output_tokens:
            over = True
            del flying[name]
            desk.finish(number, step_ns, marked + 1)
    return over


def _wrong(name: str, held: bool, seen: set[str], desk: Desk) -> str:
    """Return what is wrong with an answer of cmp_step."""
    if held or name in seen:
        return f"cmp_step gave two tokens for request {name} in one step, expected one at most"
    if name.isdecimal() and int(name) < desk.words[Header.SENT]:
        return f"cmp_step gave a token for request {name}, which already has all that it asked for"
    return f"cmp_step gave a token for request {name!r}, which was never submitted"


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
        message: `files` (board, eventfd from and to the generator), `prompts` (ids by number), `output_tokens`,
            `limit` (most requests in flight), `own` (use the engine's own batching).

    Returns:
        `errors` (number → text), `window` (what the machine did meanwhile), `metrics` (the engine's, at the end).

    Raises:
        EngineError: the engine broke the contract of cmp_submit and cmp_step, or replaced the clock.
    """
    files: list[int] = message["files"]
    try:
        return _serve(hook, session, progress, sensor, message, Board(files[0]))
    finally:
        for descriptor in files:
            os.close(descriptor)


def _serve(
    hook: Any, session: Any, progress: Progress, sensor: ContentionSensor, message: dict[str, Any], board: Board
) -> dict[str, Any]:
    if clock.now_ns is not time.perf_counter_ns:
        msg = "requests in flight at once need the machine's clock, this engine moves one of its own; pass clock=real"
        raise EngineError(msg)
    desk = Desk(board, *message["files"][1:])
    prompts: list[list[int]] = message["prompts"]
    output_tokens: int = message["output_tokens"]
    progress.set(_WAIT)
    hook.cmp_reset(session=session)
    before = []
    desk.began = lambda: before.append(sensor.read())
    own: bool = message["own"]
    requests = [Request(id=str(n), token_ids=ids, output_tokens=output_tokens) for n, ids in enumerate(prompts)]
    # What a cell needs stays until it ends: keep the collector from walking it while requests are served.
    gc.collect()
    gc.freeze()
    desk.open()
    if own:
        if not hook.cmp_submit.get_hookimpls():
            msg = "has a max_concurrency above 1 and no cmp_submit; implement it, or say max_concurrency=1"
            raise EngineError(msg)
        serve_batching(hook, session, desk, requests, message["limit"], progress)
    else:
        serve_queue(desk, _Runner(hook, session, desk, prompts, output_tokens, progress).run)
    board.words[Header.ENDED_NS] = clock.now_ns()
    after = sensor.read()
    found = hook.cmp_metrics(session=session) or {}
    hook.cmp_reset(session=session)
    return {
        "errors": {str(number): text for number, text in desk.errors.items()},
        "window": between(before[0], after) if before else {},
        "metrics": {str(name): float(value) for name, value in found.items()},
    }


class _Runner:
    """Runs single requests of a cell, stamps into the board."""

    def __init__(
        self, hook: Any, session: Any, desk: Desk, prompts: list[list[int]], output_tokens: int, progress: Progress
    ) -> None:
        self._hook = hook
        self._session = session
        self._desk = desk
        self._prompts = prompts
        self._output_tokens = output_tokens
        self._progress = progress
        self._tokens = 0

    def run(self, number: int) -> None:
        """Run one request to its end."""
        hook, session, desk, progress = self._hook, self._session, self._desk, self._progress
        words, now_ns, wanted = desk.words, clock.now_ns, self._output_tokens
        token_ids = self._prompts[number]
        row = desk.board.row(number)
        at = row + FIELDS
        count = row + Field.MARKED

        def mark(_: int) -> None:
            marked = words[count]
            words[at + marked] = now_ns()
            words[count] = marked + 1
            self._tokens += 1
            progress.set(_DECODE, self._tokens)

        where = _PREPARE
        progress.set(_PREPARE, self._tokens)
        try:
            hook.cmp_reset(session=session)
            hook.cmp_prepare(session=session, token_ids=token_ids, output_tokens=wanted)
            where = _PREFILL
            gc.disable()
            progress.set(_PREFILL, self._tokens)
            desk.start(number, now_ns())
            total = generate(hook, session, token_ids, wanted, mark)
            end_ns = now_ns()
        except BaseException as raised:  # a Rust panic arrives as a BaseException
            desk.fail([number], PHASES[_DECODE if words[count] else where], raised)
        else:
            desk.finish(number, end_ns, words[count] if total is None else total)
        finally:
            gc.enable()
        progress.set(_WAIT, self._tokens)


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
    import msgspec

    if not hook.cmp_submit.get_hookimpls():
        return None
    hook.cmp_reset(session=session)
    waiting = deque(msgspec.convert(request, Request) for request in message["requests"])
    every: int = message.get("every", 0)
    ids: dict[str, list[int]] = {request.id: [] for request in waiting}
    asked = {request.id: request.output_tokens for request in waiting}
    wanted = sum(asked.values())
    steps = submitted = 0
    while (had := sum(map(len, ids.values()))) < wanted:
        while waiting and submitted * every <= steps and hook.cmp_submit(session=session, request=waiting[0]):
            waiting.popleft()
            submitted += 1
        pairs = hook.cmp_step(session=session)
        steps += 1
        if not pairs and steps > 1000 * (wanted + every * len(ids)):
            msg = f"cmp_step gave {had} of {wanted} tokens and then nothing"
            raise CmpError(msg)
        for request_id, token in pairs:
            if token == ENDED:
                wanted -= asked[request_id] - len(ids[request_id])
            else:
                ids[request_id].append(token)
    return ids
