"""What a user may set with `-o LABEL.KEY=VALUE`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from enginecmp import EngineError, LoadOptions, UnknownOption, did_you_mean

from .address import EXAMPLE, Address, read_address
from .servers import KINDS


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a server and what to tell it.

    Attributes:
        address: where it is.
        served_model: the model's name there; empty where the server serves one only.
        api: "completions" or "chat".
        secret: the API key's value, for the Authorization header and for nothing else; empty without one.
        start: command that starts the server, placeholders not yet replaced; empty for one that runs already.
        stop: command that stops it.
        start_seconds: longest time until a started server answers.
        retries: how often a request that the server turned away before its first byte of an answer is sent again.
        prompt: "ids", "text" or "auto".
        server: its kind, one of `servers.KINDS`; "auto" finds it out.
        timeout_seconds: longest silence of a server in the middle of a request.
        trust_model: the user's word that the server serves this run's file.
        body: further fields of every request.
    """

    address: Address
    served_model: str = ""
    api: str = "completions"
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

    def __repr__(self) -> str:
        return f"Settings({self.address})"  # the generated one would show the secret


KEYS = (
    *(
        "url",
        "served_model",
        "api",
        "api_key_env",
        "start",
        "start_exact",
        "stop",
        "start_seconds",
        "retries",
        "prompt",
    ),
    *("server", "timeout_seconds", "trust_model", "body"),
)


def read_settings(options: LoadOptions) -> Settings:
    """Return the settings that these options ask for.

    `start_exact` is the start command where numerics "exact" are asked for; `start` serves both without it.

    Raises:
        UnknownOption: a key that does not exist.
        EngineError: a value that is not allowed, or no address.
    """
    extra = options.extra
    for key in extra:
        if key not in KEYS:
            msg = f"openai_server: unknown option '{key}'{did_you_mean(key, KEYS)}"
            raise UnknownOption(msg)
    if not extra.get("url"):
        msg = f"openai_server: expected the server's address, got none; pass --engines openai:{EXAMPLE}"
        raise EngineError(msg)
    start = extra.get("start", "")
    if options.numerics == "exact":
        start = extra.get("start_exact", start)
    return Settings(
        address=read_address(extra["url"]),
        served_model=extra.get("served_model", ""),
        api=_one_of(extra, "api", ("completions", "chat")),
        secret=_secret(extra.get("api_key_env", "")),
        start=start,
        stop=extra.get("stop", ""),
        start_seconds=_number(extra, "start_seconds", 240.0),
        retries=_retries(extra),
        prompt=_one_of(extra, "prompt", ("auto", "ids", "text")),
        server=_one_of(extra, "server", ("auto", *KINDS)),
        timeout_seconds=_number(extra, "timeout_seconds", 100.0),
        trust_model=_one_of(extra, "trust_model", ("no", "yes")) == "yes",
        body=_body(extra.get("body", "{}")),
    )


def _secret(name: str) -> str:
    """Return the API key that a variable holds; its value appears in no message."""
    if not name:
        return ""
    if not name.isidentifier():
        # Whoever pastes the key itself must not find it in a log.
        msg = (
            "openai_server: expected api_key_env to name an environment variable, got no name; the key itself is no "
            "name"
        )
        raise EngineError(msg)
    secret = os.environ.get(name, "").strip()
    if not secret:
        msg = f"openai_server: expected an API key in the environment variable {name}, it is empty; export it"
        raise EngineError(msg)
    if not (secret.isascii() and secret.isprintable()):
        msg = f"openai_server: expected an API key of printable ASCII in {name}, it has other characters; set it again"
        raise EngineError(msg)
    return secret


def _one_of(extra: Mapping[str, str], key: str, allowed: tuple[str, ...]) -> str:
    value = extra.get(key, allowed[0])
    if value not in allowed:
        msg = f"openai_server: option {key} expects one of {', '.join(allowed)}, got '{value}'; choose one"
        raise EngineError(msg)
    return value


def _number(extra: Mapping[str, str], key: str, default: float) -> float:
    try:
        value = float(extra.get(key, default))
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        msg = f"openai_server: option {key} expects seconds above 0, got '{extra[key]}'; pass a number"
        raise EngineError(msg)
    return value


def _retries(extra: Mapping[str, str]) -> int:
    text = extra.get("retries", "0")
    if not text.isdecimal() or int(text) > 100:
        msg = f"openai_server: option retries expects a whole number from 0 to 100, got '{text}'; pass one"
        raise EngineError(msg)
    return int(text)


def _body(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        msg = f"openai_server: option body expects a JSON object, got '{text[:80]}' ({error}); correct it"
        raise EngineError(msg) from error
