"""Find or start a server, and learn what it can do before anything is timed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import PurePath
from typing import Any

import msgspec

from enginecmp import EngineError, LoadOptions, ModelInfo, UnsupportedModel, end_tokens

from . import process
from .announcement import announce, withdraw
from .client import Client, Refused
from .flight import Flight
from .gpus import gpus_of
from .identity import identify
from .options import Settings, read_settings
from .prompts import Reader, usage_of
from .redaction import redaction_of
from .round_trip import round_trips
from .server import Server
from .session import Session
from .words import Unreadable, decoded

_NOT_ABOUT_IDS = (401, 403, 404, 429, 503)
"""Refusals that say nothing of whether a server takes ids."""
_FIELD_REFUSED = (400, 422)

_SECONDS_TO_GO = 3.0
"""For the server of an earlier launch."""


def load(model: ModelInfo, options: LoadOptions) -> Session:
    """Start the server where a command says how, wait for it, and learn what it can do.

    Raises:
        UnknownOption: an option that does not exist.
        UnsupportedModel: the server serves another model.
        EngineError: there is no server, or none that can be compared.
    """
    with redaction_of(options.extra).exits():
        return _load(model, options)


def _load(model: ModelInfo, options: LoadOptions) -> Session:
    settings = read_settings(options)
    session = Session(
        server=Server(Client(settings), model),
        context_tokens=options.context_tokens,
        max_sequences=options.max_sequences,
    )
    try:
        if settings.start:
            arguments = process.arguments_of(settings.start, places(settings, model, options))
            _require_silence(session.server.client)
            session.process = process.start(arguments, settings.api_key_env)
            process.wait_until(partial(_answers, session.server.client), session.process, settings.start_seconds)
        _learn(session)
        session.told = {**round_trips(session.server.client), **gpus_of(settings, options.device)}
    except BaseException:
        unload(session)
        raise
    announce(session.kind, options.extra)
    print(session.server.client.redaction.clean(_introduction(session)), file=sys.stderr, flush=True)
    return session


def unload(session: Session) -> None:
    """Hang up, and stop a server that was started here."""
    withdraw()
    for flight in [*session.flights.values(), *([session.active] if session.active else [])]:
        flight.abandon()
    session.server.client.close()
    session.selector.close()
    started, session.process = session.process, None
    settings = session.server.settings
    stop = settings.stop
    try:
        if stop:
            named = {"port": str(settings.address.port), "api_key": settings.secret}
            process.run_once(process.arguments_of(stop, named), settings.api_key_env)
    finally:
        if started is not None:
            process.end(started)


_SCORING_TOKENS = 2
"""Beside the prompt that is scored: one after it, whose distributions stand one place behind, and one to generate."""


def places(settings: Settings, model: ModelInfo, options: LoadOptions) -> Mapping[str, str]:
    """Return what a start command may name in braces.

    The context has room for what scoring adds to a prompt: vLLM takes what does not fit from the tokens to generate,
    and then refuses to generate none.
    """
    context_tokens = options.context_tokens + _SCORING_TOKENS
    return {
        "model": model.path,
        "hf_model": model.hf_folder,
        "threads": str(options.threads),
        "context": str(context_tokens),
        "sequences": str(options.max_sequences),
        "all_contexts": str(context_tokens * options.max_sequences),
        "device": options.device,
        "host": settings.address.host,
        "port": str(settings.address.port),
        "api_key": settings.secret,
    }


def _require_silence(client: Client) -> None:
    """Wait a little until nothing answers where a server is to be started: its answers would be taken for that one's.

    Raises:
        EngineError: something goes on answering.
    """
    until = time.monotonic() + _SECONDS_TO_GO
    while _answers(client, 1.0):
        if time.monotonic() > until:
            msg = (
                f"openai_server: expected nothing at {client.settings.address} before the server is started, something "
                "answers there; stop it, or give this one another place, as url=http://127.0.0.1:18090/v1"
            )
            raise EngineError(msg)
        time.sleep(0.1)


def _answers(client: Client, seconds: float) -> bool:
    """Say whether a server that was just started is ready, within so many seconds: whether it has a model to serve."""
    with contextlib.suppress(EngineError, Unreadable):
        reply = client.call("GET", "/models", seconds=seconds)
        if reply.status not in (404, 502, 503):
            found = decoded(reply.body) if reply.status == 200 else None
            return not (isinstance(found, dict) and found.get("data") in ([], None))
    return False


def _learn(session: Session) -> None:
    server, client = session.server, session.server.client
    settings = server.settings
    found = identify(client)
    server.served_model = str(found.served.get("id", settings.served_model))
    server.kind, session.kind, session.version = found.kind, found.name, found.version
    props = None
    if found.name == "llama_server":
        with contextlib.suppress(EngineError):
            props = client.ask("GET", "/props", root=True)
    _compare_model(session, props, found.served)
    if server.kind.alone:
        session.max_sequences = 1
    server.takes_ids = _takes_ids(server)
    if not server.takes_ids:
        if server.kind.control_bias:
            server.control_ids = end_tokens(server.model.path)
        session.reader = Reader(server)
        session.reader.learn()
    _learn_streaming(server)
    session.family = process.computing(session.process, settings.address)


def _compare_model(session: Session, props: Any, served: Mapping[str, Any]) -> None:
    """Refuse what is plainly another model, and keep the server's own context length.

    Raises:
        UnsupportedModel: the server names another GGUF file, or another number of token ids.
    """
    meta = served.get("meta")
    for holder, key in ((served, "max_model_len"), (meta, "n_ctx")):
        told = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(told, int) and told > 0:
            session.context_tokens = min(session.context_tokens, told)
    server, said = session.server, session.server.client.redaction.said
    if server.settings.trust_model:
        return
    vocabulary = meta.get("n_vocab") if isinstance(meta, dict) else None
    if isinstance(vocabulary, int) and vocabulary != server.model.vocabulary:
        msg = (
            f"openai_server: expected a model of {server.model.vocabulary} token ids, the server's has "
            f"{said(str(vocabulary), 40)}; "
            f"serve {server.model.path}"
        )
        raise UnsupportedModel(msg)
    told = props.get("model_path") if isinstance(props, dict) else None
    name = PurePath(str(told or server.served_model)).name
    if name.endswith(".gguf") and name != PurePath(server.model.path).name:
        msg = (
            f"openai_server: expected a server of {PurePath(server.model.path).name}, it serves {said(name)}; serve "
            "that file, or say trust_model=yes if both are the same"
        )
        raise UnsupportedModel(msg)


def _takes_ids(server: Server) -> bool:
    """Find out whether the server takes a list of ids as a prompt, and reads it as that many tokens."""
    settings = server.settings
    if settings.api == "chat" or settings.prompt == "text":
        if settings.prompt == "ids":
            msg = "openai_server: expected prompt=text with api=chat, which has no place for ids; use api=completions"
            raise EngineError(msg)
        return False
    half = server.model.vocabulary // 2
    ids = (half, half // 2, half)
    server.takes_ids = True
    try:
        usage = usage_of(server, ids, 1)
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


def _learn_streaming(server: Server) -> None:
    """Find out whether streams end with a usage, and whether the field that asks for it is accepted."""
    half = server.model.vocabulary // 2
    prompt: Any = (half, half // 2, half) if server.takes_ids else "the end of the river"
    while True:
        body = msgspec.json.encode(server.request(prompt, 2, stream=True))
        try:
            flight = Flight(server, body, 0, 2, verify=False)
            while not flight.over:
                flight.wait()
        except Refused as refused:
            if not server.stream_options or refused.status not in _FIELD_REFUSED:
                raise
            server.stream_options = False
            continue
        break
    usage = flight.answer.usage
    server.counts_streams = usage is not None and usage.completion_tokens is not None


def _introduction(session: Session) -> str:
    """Return what the launch's log keeps of a server."""
    server = session.server
    name = server.client.redaction.said(server.served_model)
    prompts = "token ids" if server.takes_ids else "proven text"
    counts = "counts its streams" if server.counts_streams else "does not count its streams"
    way = "".join(
        f", {name.removesuffix('_seconds').replace('_', ' ')} {1e3 * value:.3g} ms"
        for name, value in session.told.items()
        if name.endswith("_seconds")
    )
    return (
        f"openai_server: {session.version} at {server.settings.address}, model {name}, prompts as "
        f"{prompts}, {counts}; weights by "
        f"{'the word of the user' if server.settings.trust_model else 'the gate alone'}{way}"
    )
