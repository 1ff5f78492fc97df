"""enginecmp engine `openai_server`: any server with an OpenAI-compatible endpoint.

This module holds the hooks and imports next to nothing, because the host imports it for every command. What they do is
in `probing` (is there a server, and which), `loading` (find or start it, learn what it can do), `requests` (one request
or many at once) and `scoring` (teacher-forced distributions where the server names token ids). Below them: `options`
and `address` (what the user says), `kinds` (what each kind of server needs to be told), `identity` (which kind and
version one is), `process` (a server of our own), `http` (HTTP/1.1 over h11), `client` (a question and its whole
answer), `server` (a request as this server wants it), `sse`, `answer` and `flight` (a streamed answer, piece by
piece), `prompts` (ids as text, and the proof of it), `sensor` (what a server says of itself on
/metrics; `announcement`: which server that is, `metric_names`: how each kind calls it), `words` (what JSON of a server
says) and `redaction` (what leaves the plugin is rid of the API key; `log_filter`: a started server's log too).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from enginecmp import Decoding, LoadOptions, ModelInfo, Request, hookimpl

from .facts import cmp_engine, cmp_probe, cmp_telemetry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .requests import Pair
    from .session import Session

__all__ = ["cmp_engine", "cmp_probe", "cmp_telemetry"]


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Start the server where a command says how, wait for it, and learn what it can do."""
    # The requests' modules too: nothing is left to import when the first one is timed.
    from . import loading, requests  # noqa: F401

    return loading.load(model, options)


@hookimpl
def cmp_version(session: Session) -> str:
    """Return kind and version of the server."""
    return session.version


@hookimpl
def cmp_decoding(session: Session, decoding: Decoding) -> None:
    """Send the next request with this temperature, top-p, seed and JSON Schema, and let the server end it."""
    session.decoding = decoding


@hookimpl
def cmp_text(session: Session) -> str | None:
    """Return what the last request said where it had to follow a JSON Schema, as the server streamed it."""
    return session.text


@hookimpl
def cmp_prepare(session: Session, token_ids: Sequence[int], output_tokens: int) -> None:
    """Prove the prompt, empty the server's prefix cache as far as it can be, and have a connection open."""
    from . import requests

    with session.exits():
        requests.prepare(session, token_ids, output_tokens)


@hookimpl
def cmp_prefill(session: Session, token_ids: Sequence[int], output_tokens: int) -> int:
    """Send the request; return when the first chunk with content is there."""
    from . import requests

    with session.exits():
        return requests.prefill(session, token_ids, output_tokens)


@hookimpl
def cmp_decode(session: Session, n_tokens: int) -> Iterator[int]:
    """Yield once for every further chunk with content; the iterator returns the number of tokens after the first."""
    from . import requests

    with session.exits():
        return requests.decode(session, n_tokens)


@hookimpl
def cmp_submit(session: Session, request: Request) -> bool:
    """Send a request at once, its connection watched from then on."""
    from . import requests

    with session.exits():
        return requests.submit(session, request)


@hookimpl
def cmp_step(session: Session, wake: int) -> Sequence[Pair]:
    """Return as soon as any stream has a new chunk with content, at most one pair for each."""
    from . import requests

    with session.exits():
        return requests.step(session, wake)


@hookimpl
def cmp_score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return log-probabilities at every position, from the servers that name the whole vocabulary by id."""
    from . import scoring

    with session.exits():
        return scoring.score(session, token_ids)


@hookimpl
def cmp_metrics(session: Session) -> Mapping[str, float]:
    """Return what is known of the way to the last answer and of the server's own work."""
    from . import requests

    with session.exits():
        return requests.metrics(session)


@hookimpl
def cmp_reset(session: Session) -> None:
    """Forget the last request; one whose caller stopped early is hung up on and waited for."""
    from . import requests

    with session.exits():
        requests.reset(session)


@hookimpl
def cmp_unload(session: Session) -> None:
    """Hang up, and stop a server that was started here."""
    from . import loading

    with session.exits():
        loading.unload(session)
