"""Requests: one after the other through cmp_prefill and cmp_decode, or many at once through cmp_submit and cmp_step."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TypeAlias

import msgspec

from enginecmp import ENDED, GREEDY, NO_ID, ContextOverflow, Decoding, EngineError, Request, RequestFailed

from .answer import check_prompt, unlike
from .flight import Flight
from .process import cpu_seconds
from .prompts import settle, usage_of
from .session import Session

STEP_SECONDS = 1e-3
"""Longest that cmp_step sleeps where nobody wakes it: whoever waits to be submitted waits so long."""
WOKEN_STEP_SECONDS = 2e-2
"""Longest that it sleeps where somebody does: a thousand wake-ups a second would take from the server what it needs."""
Pair: TypeAlias = tuple[str, int] | tuple[str, int, int]
_LOOK_SECONDS = 1e-2
"""How often requests are looked at for which nothing arrives."""


def prepare(session: Session, token_ids: Sequence[int], output_tokens: int) -> None:
    """Prove the prompt, empty the server's prefix cache as far as it can be, and have a connection open.

    Raises:
        RoundTripError: the server does not read the prompt as the same ids.
        ContextOverflow: T + output_tokens - 1 does not fit, in tokens.
    """
    ids = tuple(token_ids)
    client = session.server.client
    body = _body(session, ids, output_tokens, session.decoding)
    if session.server.kind.flush:
        session.server.client.call("POST", session.server.kind.flush, root=True)
    if session.server.kind.evict:
        settle(session.server, _prompt(session, ids))
    # The connection is the client's affair: it is open before the clock starts, unless the server will not keep it.
    client.give_back(client.take_connection()[0])
    session.prepared = (ids, output_tokens, body)
    session.cpu_seconds = cpu_seconds(session.family)


def prefill(session: Session, token_ids: Sequence[int], output_tokens: int) -> int:
    """Send the request; return when the first chunk with content is there.

    Returns:
        The chunk's first id where the server names ids, else `NO_ID`.

    Raises:
        EngineError: the request before was not ended by `cmp_reset`, or the server misbehaved.
    """
    if session.active is not None:
        msg = "openai_server: expected an empty session, got one with a request in it; call cmp_reset first"
        raise EngineError(msg)
    prepared = session.prepared
    if prepared is None or prepared[0] != tuple(token_ids) or prepared[1] != output_tokens:
        prepare(session, token_ids, output_tokens)
        prepared = session.prepared
        assert prepared is not None
    session.prepared = None
    session.last = (prepared[0], output_tokens)
    decoding = session.decoding
    flight = session.active = Flight(
        session.server,
        prepared[2],
        len(prepared[0]),
        output_tokens,
        may_end=bool(decoding.end_ids),
        keep_text=bool(decoding.json_schema),
    )
    while not flight.started:
        flight.wait()
    return flight.answer.tokens.popleft() if flight.answer.tokens else NO_ID


def decode(session: Session, n_tokens: int) -> Iterator[int]:
    """Yield once for every further chunk with content; the iterator returns the number of tokens after the first.

    Raises:
        EngineError: nothing was prefilled, another number of tokens was promised to `cmp_prefill`, or the server
            misbehaved.
    """
    flight = session.active
    if flight is None or flight.output_tokens == 1:
        msg = "openai_server: expected a prompt to go on from, got none; call cmp_prefill with output_tokens > 1"
        raise EngineError(msg)
    if n_tokens != flight.output_tokens - 1:
        msg = (
            f"openai_server: generates in one call: cmp_prefill was told {flight.output_tokens} tokens in all, "
            f"cmp_decode asks for {n_tokens} more; ask for {flight.output_tokens - 1}"
        )
        raise EngineError(msg)
    return _guarded(session, flight)


def _guarded(session: Session, flight: Flight) -> Generator[int, None, int]:
    with session.exits():
        return (yield from _chunks(session, flight))


def _chunks(session: Session, flight: Flight) -> Generator[int, None, int]:
    tokens = flight.answer.tokens
    while True:
        while tokens:
            yield tokens.popleft()
        if flight.over:
            return flight.answer.counted - 1
        if session.active is not flight:
            msg = "openai_server: expected the request to go on, but cmp_reset ended it; call cmp_prefill again"
            raise EngineError(msg)
        flight.wait()


def metrics(session: Session) -> dict[str, float]:
    """Return what is known of the way to the last answer and of the server's own work.

    A request for one token is read to its end here, and a number of tokens that the stream could not prove is proven by
    the same request, unstreamed: both outside the measured window.

    Raises:
        EngineError: the answer turns out to be wrong.
    """
    used = dict(session.told)
    if session.family:
        used["engine_cpu_seconds"] = cpu_seconds(session.family) - session.cpu_seconds
    flight = session.active
    if flight is None:
        return session.metrics | used
    while not flight.over:
        flight.wait()
        flight.answer.tokens.clear()
    session.active = None
    if not flight.answer.proven and session.last is not None:
        if session.decoding.end_ids:
            _prove_end(session, *session.last, flight.answer.counted)
        else:
            _prove(session, *session.last)
    session.metrics = flight.metrics()
    session.text = flight.answer.text if session.decoding.json_schema else None
    return session.metrics | used


def submit(session: Session, request: Request) -> bool:
    """Send a request at once, its connection watched from then on.

    Raises:
        ContextOverflow: it can never fit.
        EngineError: nobody takes it.
    """
    if len(session.flights) >= session.max_sequences:
        return False
    ids = tuple(request.token_ids)
    body = _body(session, ids, request.output_tokens, request.decoding)
    session.flights[request.id] = Flight(
        session.server,
        body,
        len(ids),
        request.output_tokens,
        name=request.id,
        selector=session.selector,
        may_end=bool(request.decoding.end_ids),
    )
    return True


def step(session: Session, wake: int) -> Sequence[Pair]:
    """Return as soon as any stream has a new chunk with content, at most one pair for each.

    Sleeps on the sockets and on `wake`, so that new requests are not kept waiting; an empty answer while requests are
    in flight says that nothing came.

    Args:
        session: with requests in flight.
        wake: readable when another request may have come; -1 where nobody tells.

    Raises:
        RequestFailed: a server that misbehaves; the other requests go on.
    """
    pairs = _hand_out(session)
    now = time.monotonic()
    session.listen(wake)
    until = now + (STEP_SECONDS if wake < 0 else WOKEN_STEP_SECONDS)
    if session.looked + _LOOK_SECONDS <= now:
        # The busy ones must not hide those that wait: for a token, or to be sent again.
        session.looked = now
        for flight in list(session.flights.values()):
            _advance(session, flight, idle=True)
    while not pairs and session.flights:
        left = until - time.monotonic()
        if left <= 0:
            break
        ready = session.selector.select(left)
        for key, _ in ready:
            if key.data is not None:
                _advance(session, key.data)
        pairs = _hand_out(session)
        if any(key.data is None for key, _ in ready):
            break
    return pairs


def _advance(session: Session, flight: Flight, *, idle: bool = False) -> None:
    try:
        if not idle or flight.resume_at:
            flight.pump()
        else:
            flight.require_progress()
        if flight.over and not flight.answer.proven:
            raise flight.answer.unproven()
    except EngineError as error:
        flight.abandon()
        session.flights.pop(flight.name, None)
        session.ready.pop(flight.name, None)
        _count(session, flight)
        msg = str(error).replace("openai_server: ", f"openai_server: request {flight.name}: ", 1)
        raise RequestFailed(msg, flight.name) from None
    if flight.started:
        session.ready[flight.name] = flight


def _count(session: Session, flight: Flight) -> None:
    """Add up how often requests of a batch were sent again; what else is known of one says nothing of the others."""
    session.metrics = {name: session.metrics.get(name, 0.0) + count for name, count in flight.counts().items()}


def _hand_out(session: Session) -> list[Pair]:
    """Take one token from every stream that has one; the last of a request waits for the check of the count."""
    pairs: list[Pair] = []
    for name, flight in list(session.ready.items()):
        tokens = flight.answer.tokens
        if tokens and (flight.over or flight.handed + 1 < flight.output_tokens):
            flight.handed += 1
            pairs.append((name, tokens.popleft()))
        elif flight.over and not tokens:
            counted = flight.answer.counted
            pairs.append((name, ENDED) if counted == flight.output_tokens else (name, ENDED, counted))
            flight.handed = flight.output_tokens
        if flight.over and flight.handed == flight.output_tokens:
            del session.flights[name], session.ready[name]
            _count(session, flight)
        elif not flight.over and (not tokens or flight.handed + 1 == flight.output_tokens):
            del session.ready[name]
    return pairs


def reset(session: Session) -> None:
    """Forget the last request; one whose caller stopped early is hung up on and waited for."""
    left = [*session.flights.values(), *([session.active] if session.active else [])]
    cut = [flight for flight in left if not flight.over]
    session.active = None
    session.prepared = None
    session.decoding = GREEDY
    session.flights.clear()
    session.ready.clear()
    session.metrics = {}
    session.text = None
    session.listen(-1)
    for flight in cut:
        flight.abandon()
    if cut:
        # A server notices a caller that is gone at its next token; an answered request says that it has.
        settle(session.server)
    session.cpu_seconds = cpu_seconds(session.family)


def _prompt(session: Session, ids: tuple[int, ...]) -> str | tuple[int, ...]:
    """Return a prompt as the server takes it."""
    return ids if session.reader is None else session.reader.text_of(ids)


def _body(session: Session, ids: tuple[int, ...], output_tokens: int, decoding: Decoding) -> bytes:
    """Return the body of a streamed request whose prompt is proven."""
    check_request(session, ids, output_tokens)
    prompt = _prompt(session, ids)
    if not session.server.counts_streams and not session.server.takes_ids and session.server.kind.tokenize is None:
        _prove(session, ids, 1)
    salt = os.urandom(16).hex()
    return msgspec.json.encode(session.server.request(prompt, output_tokens, stream=True, salt=salt, decoding=decoding))


def _prove(session: Session, ids: tuple[int, ...], output_tokens: int) -> None:
    """Hold the server's counts of an unstreamed request to what was asked, once per prompt and number of tokens.

    Raises:
        RoundTripError: another number of prompt tokens.
        EngineError: another number of generated ones.
    """
    if (ids, output_tokens) in session.counted:
        return
    usage = usage_of(session.server, _prompt(session, ids), output_tokens)
    check_prompt(usage, len(ids))
    if usage.completion_tokens != output_tokens:
        raise unlike(output_tokens, f"the server counted {usage.completion_tokens}", "")
    session.counted.add((ids, output_tokens))


def _prove_end(session: Session, ids: tuple[int, ...], output_tokens: int, counted: int) -> None:
    """Hold the chunks of an answer that ended by itself to the server's count of the same request, unstreamed.

    Raises:
        RoundTripError: another number of prompt tokens.
        EngineError: another number of generated ones: its chunks are no tokens.
    """
    usage = usage_of(session.server, _prompt(session, ids), output_tokens, session.decoding)
    check_prompt(usage, len(ids))
    if usage.completion_tokens != counted:
        raise unlike(counted, f"as many as the stream had chunks, the server counted {usage.completion_tokens}", "stop")


def check_request(session: Session, ids: Sequence[int], output_tokens: int) -> None:
    """Refuse what cannot be; a server may stop short, or wrap an id around, without saying so.

    Args:
        session: whose model and context count.
        ids: the prompt.
        output_tokens: to generate.

    Raises:
        EngineError: nothing to do, or an id outside the vocabulary.
        ContextOverflow: T + output_tokens - 1 is more than the context holds.
    """
    prompt_tokens, vocabulary = len(ids), session.server.model.vocabulary
    if prompt_tokens < 1 or output_tokens < 1:
        msg = (
            f"openai_server: expected at least 1 token in and out, got {prompt_tokens} and {output_tokens}; ask for "
            "more"
        )
        raise EngineError(msg)
    outside = next((at for at, token in enumerate(ids) if not 0 <= token < vocabulary), None)
    if outside is not None:
        msg = (
            f"openai_server: expected ids in [0, {vocabulary}), got {ids[outside]} at position {outside}; "
            "tokenize the prompt with this model's tokenizer"
        )
        raise EngineError(msg)
    needed = prompt_tokens + output_tokens - 1
    if needed > session.context_tokens:
        msg = (
            f"openai_server: {prompt_tokens} prompt and {output_tokens} output tokens need {needed} places, the "
            f"context holds {session.context_tokens}; load it with a larger context_tokens, give the "
            "server a longer one, or choose a shorter cell"
        )
        raise ContextOverflow(msg)
