"""One request: prove the prompt, stream the answer, hold the engine to what was asked."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from enginecmp import NO_ID, ContextOverflow, EngineError, RoundTripError, hookimpl

from .loading import Active, Session
from .panics import Native

_TOKENIZE = Native("turn token ids into text")
_PREFILL = Native("run the prompt")
_DECODE = Native("go on generating")
_SETTLE = Native("end the interrupted request")


@hookimpl
def cmp_prepare(session: Session, token_ids: Sequence[int], output_tokens: int) -> None:
    """Prove the prompt's round trip (once per prompt) and build the request.

    Raises:
        RoundTripError: the engine does not read the prompt's text back as the same ids.
        ContextOverflow: T + output_tokens - 1 does not fit, in tokens.
    """
    ids = tuple(token_ids)
    check_context(session, len(ids), output_tokens)
    text = session.texts.get(ids)
    if text is None:
        text = session.texts[ids] = proven_text(session, ids)
    request = chat(session, text, max_tokens=output_tokens, stream=True)
    session.prepared = (ids, output_tokens, text, request)


@hookimpl
def cmp_prefill(session: Session, token_ids: Sequence[int], output_tokens: int) -> int:
    """Send the request and return `NO_ID` when its first chunk is there.

    Without a `cmp_prepare` for the same prompt before it, the proof is part of what is timed.

    Raises:
        RoundTripError: as `cmp_prepare`, or the engine counts another number of prompt tokens.
        ContextOverflow: T + output_tokens - 1 does not fit, in tokens.
        EngineError: the request before was not ended by `cmp_reset`.
    """
    if session.active is not None:
        msg = "mistralrs: expected an empty session, got one with a request in it; call cmp_reset first"
        raise EngineError(msg)
    prepared = session.prepared
    if prepared is None or prepared[0] != tuple(token_ids) or prepared[1] != output_tokens:
        cmp_prepare(session, token_ids, output_tokens)
        prepared = session.prepared
        assert prepared is not None
    session.prepared = None
    ids, _, text, request = prepared
    active = session.active = Active(None, text, len(ids), output_tokens)
    with _PREFILL:
        active.stream = session.runner.send_chat_completion_request(request)
        active.last = next(active.stream)
    active.chunks = 1
    if output_tokens == 1:
        _finish(session, active)
    return NO_ID


@hookimpl
def cmp_decode(session: Session, n_tokens: int) -> Iterator[int]:
    """Yield `NO_ID` for every further chunk; the iterator returns the number of tokens after the first.

    Raises:
        EngineError: nothing was prefilled, another number of tokens was promised to `cmp_prefill`, or the
            engine generated another number than asked.
    """
    active = session.active
    if active is None or active.chunks != 1 or active.output_tokens == 1:
        msg = "mistralrs: expected a fresh prompt to go on from, got none; call cmp_prefill with output_tokens > 1"
        raise EngineError(msg)
    if n_tokens != active.output_tokens - 1:
        msg = (
            f"mistralrs: generates in one call: cmp_prefill was told {active.output_tokens} tokens in all, cmp_decode "
            f"asks for {n_tokens} more; ask for {active.output_tokens - 1}"
        )
        raise EngineError(msg)
    return _chunks(session, active)


@hookimpl
def cmp_metrics(session: Session) -> dict[str, float]:
    """Return the engine's own times and the number of chunks of the request that just ended.

    `engine_prefill_seconds` and `engine_decode_seconds` are a cross-check and no more: the engine cuts every
    step to whole milliseconds before it adds them up, so they read up to one millisecond a step low.
    """
    return dict(session.metrics)


@hookimpl
def cmp_reset(session: Session) -> None:
    """Forget the last request; one whose caller stopped early is cancelled and waited for."""
    active, session.active = session.active, None
    session.prepared = None
    session.metrics = {}
    if active is None or active.stream is None:
        return
    # The engine notices a dropped stream when it hands out the next token. With one sequence at a time, an
    # answered request proves that the slot is free, so that nothing runs on into the next measured window.
    active.stream = None
    with _SETTLE:
        session.runner.send_chat_completion_request(chat(session, active.text, max_tokens=1))


def chat(session: Session, text: str, **options: Any) -> Any:
    """Return a greedy request for `text` as it is, end-of-sequence ignored."""
    with _TOKENIZE:
        return session.chat_request(
            messages=[{"role": "user", "content": text}],
            model="default",
            temperature=0.0,
            ignore_eos=True,
            **options,
        )


def check_context(session: Session, prompt_tokens: int, output_tokens: int) -> None:
    """Refuse what does not fit; the engine itself would stop short without saying so.

    Raises:
        ContextOverflow: the last generated token needs no room, so T + output_tokens - 1 is held to the context.
    """
    if prompt_tokens < 1 or output_tokens < 1:
        msg = f"mistralrs: expected at least 1 token in and out, got {prompt_tokens} and {output_tokens}; ask for more"
        raise EngineError(msg)
    needed = prompt_tokens + output_tokens - 1
    if needed > session.context_tokens:
        msg = (
            f"mistralrs: {prompt_tokens} prompt and {output_tokens} output tokens need {needed} places, the context "
            f"holds {session.context_tokens}; load it with a larger context_tokens, or choose a shorter cell"
        )
        raise ContextOverflow(msg)


def proven_text(session: Session, ids: Sequence[int]) -> str:
    """Return the text that the engine reads as exactly these ids.

    The chat path tokenizes with special tokens added unless the text opens with the model's own begin token,
    so both readings must agree with the ids.

    Raises:
        RoundTripError: they do not; the message names the prompt's length and the first differing position.
    """
    outside = [at for at, token in enumerate(ids) if not 0 <= token < session.vocabulary]
    if outside:
        msg = (
            f"mistralrs: expected ids in [0, {session.vocabulary}), got {ids[outside[0]]} at position {outside[0]}; "
            "tokenize the prompt with this model's tokenizer"
        )
        raise EngineError(msg)
    wanted = list(ids)
    with _TOKENIZE:
        text: str = session.runner.detokenize_text(wanted, False)
        readings = [session.runner.tokenize_text(text, special, None) for special in (False, True)]
    for read in readings:
        if read != wanted:
            raise RoundTripError(_difference(wanted, read))
    return text


def _difference(wanted: Sequence[int], read: Sequence[int]) -> str:
    pairs = zip(wanted, read, strict=False)
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(wanted), len(read)))
    return (
        f"mistralrs: takes text only, and this prompt of {len(wanted)} tokens reads back as {len(read)}: first "
        f"difference at position {at}, expected {_id_at(wanted, at)}, got {_id_at(read, at)}; use another prompt"
    )


def _id_at(ids: Sequence[int], at: int) -> str:
    return str(ids[at]) if at < len(ids) else "the end"


def _chunks(session: Session, active: Active) -> Generator[int, None, int]:
    while True:
        if active.stream is None:
            msg = "mistralrs: expected the request to go on, but cmp_reset ended it; call cmp_prefill again"
            raise EngineError(msg)
        with _DECODE:
            chunk = next(active.stream, None)
        if chunk is None:
            return _finish(session, active)
        active.last = chunk
        active.chunks += 1
        yield NO_ID


def _finish(session: Session, active: Active) -> int:
    """Hold the engine's own counts to what was asked and return the tokens after the first."""
    active.stream = None
    usage = active.last.usage
    if usage is None:
        msg = f"mistralrs: the stream ended after {active.chunks} chunks without its usage; run the request again"
        raise EngineError(msg)
    if usage.prompt_tokens != active.prompt_tokens:
        msg = (
            f"mistralrs: the prompt has {active.prompt_tokens} tokens, the engine counted {usage.prompt_tokens} "
            "(a begin token added silently?); use another prompt or model"
        )
        raise RoundTripError(msg)
    if usage.completion_tokens != active.output_tokens:
        msg = (
            f"mistralrs: expected {active.output_tokens} tokens, the engine generated {usage.completion_tokens}; "
            "check the model's context length"
        )
        raise EngineError(msg)
    session.metrics = {
        "engine_prefill_seconds": usage.total_prompt_time_sec,
        "engine_decode_seconds": usage.total_completion_time_sec,
        "stream_chunk_count": float(active.chunks),
    }
    return active.output_tokens - 1
