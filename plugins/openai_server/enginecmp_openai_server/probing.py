"""What is found out before a run begins: options, address, the server behind it or the command that starts it."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Mapping

from enginecmp import EngineError, LoadOptions, Probe

from .client import Client
from .http import Misanswered
from .identity import identify, starting_options
from .options import Settings, read_settings
from .process import arguments_of, is_variable
from .redaction import redaction_of

ANSWER_SECONDS = 4.0
"""A server that is up answers what it is in milliseconds; the host waits 20 s in all."""


def probe(options: LoadOptions) -> Probe:
    """Say whether these options lead to a server, and to which."""
    try:
        with redaction_of(options.extra).exits():
            settings = read_settings(options)
            return _will_start(settings, options.extra) if settings.start else _runs_already(settings)
    except EngineError as error:
        return Probe(ok=False, reason=str(error).removeprefix("openai_server: "))


def _runs_already(settings: Settings) -> Probe:
    client = Client(settings)
    try:
        found = identify(client, ANSWER_SECONDS)
    except Misanswered:
        # Busy, or broken: its launches will tell, and take nothing from the other engines.
        return Probe(ok=True, running=True)
    finally:
        client.close()
    return Probe(ok=True, running=True, version=found.version, prove=starting_options(found))


def _will_start(settings: Settings, extra: Mapping[str, str]) -> Probe:
    """Refuse a command that cannot start, and an address where somebody else would answer in its place.

    Raises:
        EngineError: either.
    """
    for key in ("start", "start_exact", "stop"):
        arguments = arguments_of(extra[key], {}) if extra.get(key) else ["true"]
        program = next((word for word in arguments if not is_variable(word)), "")
        if shutil.which(program) is None:
            msg = f"expected option {key} to begin with a program, got '{program}', which is not on PATH; install it"
            raise EngineError(msg)
    address = settings.address
    with contextlib.suppress(OSError):
        socket.create_connection((address.host, address.port), timeout=ANSWER_SECONDS).close()
        msg = (
            f"expected {address} to be free for the server that option start starts, something listens there already; "
            "stop it, or give url and start another port"
        )
        raise EngineError(msg)
    return Probe(ok=True)
