"""Teacher-forced distributions for the equivalence gate, from the servers that name the whole vocabulary by token id.

The OpenAI API itself names the most likely tokens by their text, and many tokens of a vocabulary share a text (parts
of a character have none), so nothing can be proven by it. Three servers have an answer of their own that names ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from enginecmp import EngineError

from .client import ANSWER_BYTES, Refused
from .requests import check_request
from .server import Server
from .session import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ENTRY_BYTES = 256
"""Longest entry of one token id: its text, its bytes, its log-probability."""
SUM_TOLERANCE = 1e-2
"""How far a row's probabilities may sum from 1; llama-server's float32 sums over 49152 ids are off by 1e-4."""


def score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return log-probabilities of the next token after every prefix.

    Returns:
        Log-probabilities, shape (T, vocabulary), float32.

    Raises:
        ContextOverflow: T is larger than the session's context, in tokens.
        EngineError: this server does not give the whole distribution, or gives something else.
    """
    ids = list(token_ids)
    check_request(session, ids, 1)
    server = session.server
    read = _READERS.get(server.kind.score)
    if read is None or not server.takes_ids:
        msg = (
            f"openai_server: expected log-probabilities of all {server.model.vocabulary} token ids, "
            f"{server.kind.title} names the most likely ones only, by text that several ids share, so nothing "
            "can be proven; use llama-server, vLLM or SGLang to have it proven"
        )
        raise EngineError(msg)
    return read(server, ids)


def _llama_server(server: Server, ids: list[int]) -> NDArray[np.float32]:
    """Ask for one token after every prefix; the answer's probabilities are those before any sampler."""
    import numpy as np

    # Where the token that it draws is part of a character, the answer has no probabilities; so it draws a letter. They
    # are read from the logits themselves, which a bias leaves alone.
    letter = _at(server.client.ask("POST", "/tokenize", {"content": "a"}, root=True), "tokens", -1)
    rows = np.empty((len(ids), server.model.vocabulary), np.float32)  # (T, vocabulary)
    for position in range(len(ids)):
        fields = {
            "prompt": ids[: position + 1],
            "n_predict": 1,
            "n_probs": server.model.vocabulary,
            "temperature": 0,
            "logit_bias": [[letter, 1e4]],
            "post_sampling_probs": False,
            # Every prefix goes on where the last one ended; what it computes is the same, for a T-th of the work.
            "cache_prompt": True,
        }
        answer = server.client.ask("POST", "/completion", fields, root=True, most_bytes=_most_bytes(server, 1))
        entries = _entries(_at(answer, "completion_probabilities", 0, "top_logprobs"), position)
        rows[position] = _row(server, [(_at(entry, "id"), _at(entry, "logprob")) for entry in entries], position)
    return rows


def _vllm(server: Server, ids: list[int]) -> NDArray[np.float32]:
    """Ask once for the whole prompt; distributions stand one place behind their prefix, so one more token is added."""
    import numpy as np

    fields = {
        "model": server.served_model,
        "prompt": [*ids, ids[0]],
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": -1,
    }
    try:
        answer = server.client.ask("POST", "/completions", fields, most_bytes=_most_bytes(server, len(ids) + 1))
    except Refused as refused:
        if refused.status != 400 or "logprobs" not in str(refused):
            raise
        msg = (
            f"openai_server: expected log-probabilities of all {server.model.vocabulary} token ids, the server gives "
            "fewer; start vLLM with --max-logprobs -1 (or run with --no-gate)"
        )
        raise EngineError(msg) from None
    places = _at(answer, "choices", 0, "prompt_logprobs")
    rows = np.empty((len(ids), server.model.vocabulary), np.float32)  # (T, vocabulary)
    for position in range(len(ids)):
        named = _at(places, position + 1)
        if not isinstance(named, dict):
            raise _unreadable(position, "no distribution")
        entries = [(_id(token), _at(entry, "logprob")) for token, entry in named.items()]
        rows[position] = _row(server, entries, position)
    return rows


def _sglang(server: Server, ids: list[int]) -> NDArray[np.float32]:
    """Ask once for the whole prompt, one token more than it has, as above."""
    import numpy as np

    fields = {
        "input_ids": [*ids, ids[0]],
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": server.model.vocabulary,
    }
    answer = server.client.ask("POST", "/generate", fields, root=True, most_bytes=_most_bytes(server, len(ids) + 1))
    places = _at(answer, "meta_info", "input_top_logprobs")
    rows = np.empty((len(ids), server.model.vocabulary), np.float32)  # (T, vocabulary)
    for position in range(len(ids)):
        entries = [(_at(entry, 1), _at(entry, 0)) for entry in _entries(_at(places, position + 1), position)]
        rows[position] = _row(server, entries, position)
    return rows


_READERS = {"completion": _llama_server, "prompt_logprobs": _vllm, "generate": _sglang}


def _most_bytes(server: Server, positions: int) -> int:
    """Return the longest answer that names the whole vocabulary at so many positions."""
    return ANSWER_BYTES + positions * server.model.vocabulary * _ENTRY_BYTES


def _row(server: Server, entries: Iterable[tuple[Any, Any]], position: int) -> NDArray[np.float32]:
    """Return one row, shape (vocabulary,), from (token id, log-probability) pairs in any order.

    Raises:
        EngineError: it does not name every id once, or is no distribution.
    """
    import numpy as np

    vocabulary = server.model.vocabulary
    pairs = list(entries)
    try:
        ids = np.array([token for token, _ in pairs], np.int64)
        values = np.array([value for _, value in pairs], np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _unreadable(position, "no numbers") from None
    named = ids[(ids >= 0) & (ids < vocabulary)]
    if len(ids) != vocabulary or len(np.unique(named)) != vocabulary:
        msg = (
            f"openai_server: expected log-probabilities of all {vocabulary} token ids at position {position}, "
            f"{server.kind.title} named {len(np.unique(ids))}; start it so that it gives all (vLLM: --max-logprobs -1)"
        )
        raise EngineError(msg)
    row = np.empty(vocabulary, np.float64)
    row[ids] = values
    total = float(np.exp(row).sum())
    if not abs(total - 1) <= SUM_TOLERANCE:
        msg = (
            f"openai_server: expected probabilities that sum to 1 at position {position}, they sum to {total:g}; "
            "report it"
        )
        raise EngineError(msg)
    return row.astype(np.float32)


def _id(name: str) -> int:
    """Return the token id that a key of an answer is; -1 for one that is none."""
    return int(name) if name.isdecimal() and len(name) < 20 else -1


def _entries(found: Any, position: int) -> list[Any]:
    """Return what must be a list of an answer.

    Raises:
        EngineError: it is none.
    """
    if not isinstance(found, list):
        raise _unreadable(position, type(found).__name__)
    return found


def _at(holder: Any, *keys: str | int) -> Any:
    """Return what lies at the end of a path of keys.

    Raises:
        EngineError: it is not there.
    """
    for key in keys:
        try:
            holder = holder[key]
        except (KeyError, IndexError, TypeError):
            raise _unreadable(key, "nothing") from None
    return holder


def _unreadable(at: str | int, what: str) -> EngineError:
    return EngineError(
        f"openai_server: expected log-probabilities by token id, got {what} at {at}; is this the kind of server it "
        "says it is? say so with -o LABEL.server=KIND"
    )
