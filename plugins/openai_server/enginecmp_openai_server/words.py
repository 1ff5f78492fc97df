"""What a server's JSON says, and what it says is wrong; within bounds, whatever it sends."""

from __future__ import annotations

from typing import Any

import msgspec

_OF_ERRORS = frozenset({"error", "object", "message", "detail", "type", "code", "param", "status_code"})
"""Keys beside the words of an error; an object with others may say something else by "message"."""


class Unreadable(Exception):
    """No JSON, or nested too deep; internal, always caught."""


def decoded(body: bytes | str) -> Any:
    """Return decoded JSON.

    Raises:
        Unreadable: it is none, or nested deeper than the interpreter goes.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise Unreadable(str(error)) from None


def words_of(found: Any) -> str:
    """Return the message inside an error object, however it is wrapped; else the whole object."""
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    if isinstance(found, str):
        return found
    try:
        return msgspec.json.encode(found).decode()
    except (OverflowError, RecursionError):
        return type(found).__name__


def words_in(body: bytes) -> str:
    """Return the message inside an error's body, or the body."""
    try:
        return words_of(decoded(body))
    except Unreadable:
        return body.decode("utf-8", "replace")


def is_error(found: Any) -> bool:
    """Say whether an answer that claims to be good is an error object.

    Besides {"error": …} there are {"object": "error", "message": …} of earlier vLLM and of SGLang, {"detail": …} of
    FastAPI and {"message": …} of gateways.
    """
    if not isinstance(found, dict) or found.get("choices") or found.get("data"):
        return False
    if found.get("error") or found.get("object") == "error":
        return True
    return bool(found.get("message") or found.get("detail")) and found.keys() <= _OF_ERRORS
