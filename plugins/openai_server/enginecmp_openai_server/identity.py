"""Which server answers: its kind and version, and how `cmp` would start one that can be asked the exact question."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from enginecmp import EngineError, did_you_mean

from .client import Client
from .kinds import KINDS, Kind, recognize
from .presets import of_kind
from .words import words_of

_LONGEST_NAME = 1000
_SHOWN_NAMES = 50
_LONGEST_VERSION = 60


class Identity(NamedTuple):
    """What a server said of itself.

    Attributes:
        name: key of `KINDS`.
        served: entry of /models of the model that is served.
        version: kind and version in words: "vLLM 0.32.0"; the kind alone where it tells no version.
    """

    name: str
    served: Mapping[str, Any]
    version: str

    @property
    def kind(self) -> Kind:
        """What needs to be told to it."""
        return KINDS[self.name]


def identify(client: Client, seconds: float | None = None) -> Identity:
    """Ask a server what it is; never inside a measured window.

    Args:
        client: the way to it.
        seconds: longest time of each question; the option timeout_seconds where nothing is said.

    Raises:
        EngineError: nobody answers, or no OpenAI-compatible server that serves one model or the one that was named.
    """
    reply = client.call("GET", "/models", seconds=seconds)
    served = served_entry(client, client.decoded(reply, "GET /models"))

    def ask(path: str) -> Any:
        with contextlib.suppress(EngineError):
            return client.decoded(client.call("GET", path, root=True, seconds=seconds), f"GET {path}")
        return None

    chosen = client.settings.server
    name = recognize(served, reply.headers, ask) if chosen == "auto" else chosen
    kind = KINDS[name]
    told = ask(kind.version[0]) if kind.version else None
    for key in kind.version[1:]:
        told = told.get(key) if isinstance(told, dict) else None
    said = client.redaction.said(told, _LONGEST_VERSION) if isinstance(told, str) else ""
    if not said and not kind.version:
        # Of an unknown kind the header is all there is, and more than nothing where it changes.
        said = client.redaction.said(reply.headers.get(b"server", b""), _LONGEST_VERSION)
    return Identity(name, served, f"{kind.title} {said}".rstrip())


def served_entry(client: Client, answer: Any) -> dict[str, Any]:
    """Return the entry of the one model that is served, or of the one that was named."""

    def said_of(text: str) -> str:
        return client.redaction.said(text, 120)

    try:
        entries = [entry for entry in answer["data"] if isinstance(entry, dict)]
    except (KeyError, TypeError):
        said = said_of(words_of(answer))
        msg = f"openai_server: expected a list of models from GET /models, got '{said}'; is the address right?"
        raise EngineError(msg) from None
    names = [str(entry.get("id"))[:_LONGEST_NAME] for entry in entries]
    wanted = client.settings.served_model
    if wanted:
        if wanted in names:
            return entries[names.index(wanted)]
        shown = [said_of(name) for name in names[:_SHOWN_NAMES]]
        msg = (
            f"openai_server: the server has no model '{wanted}'{did_you_mean(wanted, shown)}; pass one as served_model"
        )
        raise EngineError(msg)
    if len(entries) != 1:
        listed = ", ".join(said_of(name) for name in names[:8]) or "none"
        msg = (
            f"openai_server: expected one served model, got {len(names)} ({listed}); choose with -o "
            "LABEL.served_model=NAME"
        )
        raise EngineError(msg)
    return entries[0]


def starting_options(found: Identity) -> str:
    """Return the options, with "{label}" for the engine's label, with which `cmp` starts a server of this kind itself.

    Empty where the gate could ask nothing of such a server, whoever started it.
    """
    preset = of_kind(found.name)
    if not found.kind.score or preset is None:
        return ""
    return " ".join(f"-o '{{label}}.{key}={preset.options[key]}'" for key in ("start", "exact_flags"))
