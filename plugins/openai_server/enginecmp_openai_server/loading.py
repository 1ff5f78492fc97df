"""Find or start a server, and learn what it can do before anything is timed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from enginecmp import EngineError, LoadOptions, ModelInfo, UnsupportedModel, did_you_mean

from . import process
from .flight import Flight
from .options import Settings, read_settings
from .prompts import Reader, end_tokens, usage_of
from .servers import KINDS, recognize
from .session import Refused, Session

_NOT_ABOUT_IDS = (401, 403, 404, 429, 503)
"""Refusals that say nothing of whether a server takes ids."""
_FIELD_REFUSED = (400, 422)


def load(model: ModelInfo, options: LoadOptions) -> Session:
    """Start the server where a command says how, wait for it, and learn what it can do.

    Raises:
        UnknownOption: an option that does not exist.
        UnsupportedModel: the server serves another model.
        EngineError: there is no server, or none that can be compared.
    """
    settings = read_settings(options)
    session = Session(
        settings=settings,
        model=model,
        context_tokens=options.context_tokens,
        max_sequences=options.max_sequences,
    )
    try:
        if settings.start:
            session.process = process.start(process.arguments_of(settings.start, places(settings, model, options)))
            process.wait_until(lambda: _answers(session), session.process, settings.start_seconds)
        _learn(session)
    except BaseException:
        unload(session)
        raise
    print(_introduction(session), file=sys.stderr, flush=True)
    return session


def unload(session: Session) -> None:
    """Hang up, and stop a server that was started here."""
    for flight in [*session.flights.values(), *([session.active] if session.active else [])]:
        flight.abandon()
    for connection in session.idle:
        connection.close()
    session.idle.clear()
    session.selector.close()
    started, session.process = session.process, None
    stop = session.settings.stop
    try:
        if stop:
            process.run_once(process.arguments_of(stop, {"port": str(session.settings.address.port)}))
    finally:
        if started is not None:
            process.end(started)


def places(settings: Settings, model: ModelInfo, options: LoadOptions) -> Mapping[str, str]:
    """Return what a start command may name in braces."""
    return {
        "model": model.path,
        "threads": str(options.threads),
        "context": str(options.context_tokens),
        "sequences": str(options.max_sequences),
        "all_contexts": str(options.context_tokens * options.max_sequences),
        "device": options.device,
        "host": settings.address.host,
        "port": str(settings.address.port),
    }


def _answers(session: Session) -> bool:
    """Say whether a server that was just started is ready."""
    with contextlib.suppress(EngineError):
        return session.call("GET", "/models").status not in (404, 502, 503)
    return False


def _learn(session: Session) -> None:
    settings = session.settings
    reply = session.call("GET", "/models")
    if reply.status != 200:
        raise session.refusal(reply, "GET /models")
    served = _served(session, reply.body)
    session.served_model = str(served.get("id", settings.served_model))

    def ask(path: str) -> Any:
        with contextlib.suppress(EngineError, msgspec.MsgspecError):
            found = session.call("GET", path, root=True)
            return msgspec.json.decode(found.body) if found.status == 200 else None
        return None

    found = recognize(served, reply.headers, ask) if settings.server == "auto" else settings.server
    session.kind = KINDS[found]
    _compare_model(session, ask("/props") if found == "llama_server" else None, served)
    if session.kind.alone:
        session.max_sequences = 1
    session.takes_ids = _takes_ids(session)
    if not session.takes_ids:
        if session.kind.control_bias:
            session.control_ids = end_tokens(session.model.path)
        session.reader = Reader(session)
        session.reader.learn()
    _learn_streaming(session)
    session.family = process.computing(session.process, settings.address)


def _served(session: Session, body: bytes) -> dict[str, Any]:
    """Return the entry of the one model that is served, or of the one that was named."""
    try:
        entries = [entry for entry in msgspec.json.decode(body)["data"] if isinstance(entry, dict)]
    except (msgspec.MsgspecError, KeyError, TypeError):
        said = session.clean(body[:120].decode("utf-8", "replace"))
        msg = f"openai_server: expected a list of models from GET /models, got '{said}'; is the address right?"
        raise EngineError(msg) from None
    names = [str(entry.get("id")) for entry in entries]
    wanted = session.settings.served_model
    if wanted:
        if wanted in names:
            return entries[names.index(wanted)]
        msg = (
            f"openai_server: the server has no model '{wanted}'{did_you_mean(wanted, names)}; pass one as served_model"
        )
        raise EngineError(msg)
    if len(entries) != 1:
        listed = ", ".join(names[:8]) or "none"
        msg = (
            f"openai_server: expected one served model, got {len(names)} ({listed}); choose with -o "
            "LABEL.served_model=NAME"
        )
        raise EngineError(msg)
    return entries[0]


def _compare_model(session: Session, props: Any, served: Mapping[str, Any]) -> None:
    """Refuse what is plainly another model, and keep the server's own context length.

    Raises:
        UnsupportedModel: the server names another GGUF file, or another number of token ids.
    """
    meta = served.get("meta")
    for holder, key in ((served, "max_model_len"), (meta, "n_ctx")):
        if isinstance(holder, dict) and isinstance(holder.get(key), int):
            session.context_tokens = min(session.context_tokens, holder[key])
    if session.settings.trust_model:
        return
    vocabulary = meta.get("n_vocab") if isinstance(meta, dict) else None
    if isinstance(vocabulary, int) and vocabulary != session.model.vocabulary:
        msg = (
            f"openai_server: expected a model of {session.model.vocabulary} token ids, the server's has {vocabulary}; "
            f"serve {session.model.path}"
        )
        raise UnsupportedModel(msg)
    told = props.get("model_path") if isinstance(props, dict) else None
    name = PurePath(str(told or session.served_model)).name
    if name.endswith(".gguf") and name != PurePath(session.model.path).name:
        msg = (
            f"openai_server: expected a server of {PurePath(session.model.path).name}, it serves {name}; serve that "
            "file, or say trust_model=yes if both are the same"
        )
        raise UnsupportedModel(msg)


def _takes_ids(session: Session) -> bool:
    """Find out whether the server takes a list of ids as a prompt, and reads it as that many tokens."""
    settings = session.settings
    if settings.api == "chat" or settings.prompt == "text":
        if settings.prompt == "ids":
            msg = "openai_server: expected prompt=text with api=chat, which has no place for ids; use api=completions"
            raise EngineError(msg)
        return False
    half = session.model.vocabulary // 2
    ids = (half, half // 2, half)
    session.takes_ids = True
    try:
        usage = usage_of(session, ids, 1)
    except Refused as refused:
        if settings.prompt == "ids" or refused.status in _NOT_ABOUT_IDS:
            raise
        return False
    if usage.prompt_tokens == len(ids):
        return True
    if settings.prompt == "ids":
        msg = (
            f"openai_server: expected a prompt of {len(ids)} ids to count as such, the server counted "
            f"{usage.prompt_tokens}; use prompt=text"
        )
        raise EngineError(msg)
    return False


def _learn_streaming(session: Session) -> None:
    """Find out whether streams end with a usage, and whether the field that asks for it is accepted."""
    half = session.model.vocabulary // 2
    prompt: Any = (half, half // 2, half) if session.takes_ids else "the end of the river"
    while True:
        body = msgspec.json.encode(session.request(prompt, 2, stream=True))
        try:
            flight = Flight(session, body, 0, 2, verify=False)
            while not flight.over:
                flight.wait()
        except Refused as refused:
            if not session.stream_options or refused.status not in _FIELD_REFUSED:
                raise
            session.stream_options = False
            continue
        break
    usage = flight.answer.usage
    session.counts_streams = usage is not None and usage.completion_tokens is not None


def _introduction(session: Session) -> str:
    """Return what the launch's log keeps of a server."""
    prompts = "token ids" if session.takes_ids else "proven text"
    counts = "counts its streams" if session.counts_streams else "does not count its streams"
    return (
        f"openai_server: {session.kind.title} at {session.settings.address}, model {session.served_model}, prompts as "
        f"{prompts}, {counts}; weights by "
        f"{'the word of the user' if session.settings.trust_model else 'the gate alone'}"
    )
