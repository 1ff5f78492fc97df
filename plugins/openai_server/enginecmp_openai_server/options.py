"""What a user may set with `-o LABEL.KEY=VALUE`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from enginecmp import EngineError, LoadOptions
from enginecmp.plugin_tools.engine_options import EngineOptions

from .address import EXAMPLE, Address, read_address
from .kinds import KINDS
from .redaction import redaction_of


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a server and what to tell it.

    Attributes:
        address: where it is.
        served_model: the model's name there; empty where the server serves one only.
        api: "completions" or "chat".
        api_key_env: the variable that holds the API key; empty without one.
        secret: the API key's value, for the Authorization header and for nothing else; empty without one.
        start: command that starts the server, further flags at its end, placeholders not yet replaced; empty for one
            that runs already.
        stop: command that stops it.
        start_seconds: longest time until a started server answers.
        retries: how often a request that the server turned away before its first byte of an answer is sent again.
        prompt: "ids", "text" or "auto".
        server: its kind, one of `kinds.KINDS`; "auto" finds it out.
        timeout_seconds: longest time to the next token, and to a whole answer that is not streamed.
        trust_model: the user's word that the server serves this run's file.
        body: further fields of every request.
        gpus: on which it computes; 0 where nobody said.
    """

    address: Address
    served_model: str = ""
    api: str = "completions"
    api_key_env: str = ""
    secret: str = ""
    start: str = ""
    stop: str = ""
    start_seconds: float = 240.0
    retries: int = 0
    prompt: str = "auto"
    server: str = "auto"
    timeout_seconds: float = 100.0
    trust_model: bool = False
    body: Mapping[str, Any] = {}
    gpus: int = 0

    def __repr__(self) -> str:
        return f"Settings({self.address})"  # the generated one would show the secret


_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}|[a-z_][a-z_]{0,31}")
"""How people name variables; keys have small letters and digits, or are longer."""
_SECRET = re.compile(
    r"""(?i:-(?:api-?key|(?:(?:api|auth|hf|access)[-_])?token|password|secret)(?:=|\s+))["']?(?![-$"'\s]|\{api_key\})\S
    | \b(?:(?i:\w*(?:api_?key|password|secret))|\w*_TOKEN)=["']?(?![$"'\s]|\{api_key\})\S
    | (?i:\bbearer\s+)(?![$]|\{api_key\})\S | (?i:["'](?:api_?key|authorization|token|password|secret)["']\s*:)""",
    re.VERBOSE,
)
"""What gives a secret to a command or a server, by the names that they are given by."""

_COMMANDS = ("start", "start_exact", "flags", "exact_flags", "stop", "body")
KEYS = (
    *("url", "served_model", "api", "api_key_env", "start", "start_exact", "flags", "exact_flags", "stop"),
    "start_seconds",
    *("retries", "prompt", "server", "timeout_seconds", "trust_model", "body", "gpus"),
)


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    Where numerics "exact" are asked for, `exact_flags` are added to the start command, and `start_exact` takes the
    place of `start`.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed, or no address.
    """
    extra = options.extra
    require_no_secrets(extra)
    given = EngineOptions("openai_server", options, KEYS)
    if not extra.get("url"):
        msg = f"openai_server: expected the server's address, got none; pass --engines openai:{EXAMPLE}"
        raise EngineError(msg)
    start = extra.get("start", "")
    added = [extra.get("flags", "")]
    if options.numerics == "exact":
        start = extra.get("start_exact", start)
        added.append(extra.get("exact_flags", ""))
    if any(added) and not start:
        msg = "openai_server: expected option start with flags, got flags alone; pass -o LABEL.start=COMMAND"
        raise EngineError(msg)
    start = " ".join(filter(None, (start, *added)))
    return Settings(
        address=read_address(extra["url"]),
        served_model=extra.get("served_model", ""),
        api=given.choice("api", ("completions", "chat")),
        api_key_env=extra.get("api_key_env", ""),
        secret=_secret(extra.get("api_key_env", "")),
        start=start,
        stop=extra.get("stop", ""),
        start_seconds=given.seconds("start_seconds", 240.0),
        retries=given.whole("retries", 0, least=0, most=100),
        prompt=given.choice("prompt", ("auto", "ids", "text")),
        server=given.choice("server", ("auto", *KINDS)),
        timeout_seconds=given.seconds("timeout_seconds", 100.0),
        trust_model=given.choice("trust_model", ("no", "yes")) == "yes",
        body=_body(extra.get("body", "{}")),
        gpus=given.whole("gpus", 0, least=0, most=10_000),
    )


def require_no_secrets(extra: Mapping[str, str]) -> None:
    """Refuse options that hold a secret: all of them are written into the manifest.

    Raises:
        EngineError: one does; the message repeats no part of it.
    """
    name = extra.get("api_key_env", "")
    if name and not _VARIABLE.fullmatch(name):
        # Whoever pastes the key itself must not find it in a log.
        msg = (
            "openai_server: expected api_key_env to name an environment variable in capitals, got no such name; "
            "export the key in one, and name it"
        )
        raise EngineError(msg)
    redaction = redaction_of(extra)
    for key, value in extra.items():
        if redaction.is_in(value) or (key in _COMMANDS and _SECRET.search(value)):
            msg = (
                f"openai_server: expected option {key} without a secret, got one with it; it would be written into the "
                "results: name a variable with api_key_env, which a started server inherits, and write {api_key} where "
                "a command needs the key itself"
            )
            raise EngineError(msg)
    if extra.get("url"):
        read_address(extra["url"])


def _secret(name: str) -> str:
    """Return the API key that a variable holds; its value appears in no message."""
    if not name:
        return ""
    secret = os.environ.get(name, "").strip()
    if not secret:
        msg = f"openai_server: expected an API key in the environment variable {name}, it is empty; export it"
        raise EngineError(msg)
    if not (secret.isascii() and secret.isprintable()):
        msg = f"openai_server: expected an API key of printable ASCII in {name}, it has other characters; set it again"
        raise EngineError(msg)
    return secret


def _body(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        msg = f"openai_server: option body expects a JSON object, got '{text[:80]}' ({error}); correct it"
        raise EngineError(msg) from error
