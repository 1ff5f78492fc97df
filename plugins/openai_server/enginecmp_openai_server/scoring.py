"""Teacher-forced distributions for the equivalence gate, from the servers that name the whole vocabulary by token id.

The OpenAI API itself names the most likely tokens by their text, and many tokens of a vocabulary share a text (parts
of a character have none), so nothing can be proven by it. Three servers have an answer of their own that names ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from enginecmp import EngineError

from .requests import check_request
from .session import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    read = _READERS.get(session.kind.score)
    if read is None or not session.takes_ids:
        msg = (
            f"openai_server: expected log-probabilities of all {session.model.vocabulary} token ids, "
            f"{session.kind.title} names the most likely ones only, by text that several ids share, so nothing can be "
            "proven; use llama-server, vLLM or SGLang to have it proven"
        )
        raise EngineError(msg)
    return read(session, ids)


def _llama_server(session: Session, ids: list[int]) -> NDArray[np.float32]:
    """Ask for one token after every prefix; the answer's probabilities are those before any sampler."""
    import numpy as np

    # Where the token that it draws is part of a character, the answer has no probabilities; so it draws a letter. They
    # are read from the logits themselves, which a bias leaves alone.
    letter = _at(session.ask("POST", "/tokenize", {"content": "a"}, root=True), "tokens", -1)
    rows = np.empty((len(ids), session.model.vocabulary), np.float32)  # (T, vocabulary)
    for position in range(len(ids)):
        fields = {
            "prompt": ids[: position + 1],
            "n_predict": 1,
            "n_probs": session.model.vocabulary,
            "temperature": 0,
            "logit_bias": [[letter, 1e4]],
            "post_sampling_probs": False,
            # Every prefix goes on where the last one ended; what it computes is the same, for a T-th of the work.
            "cache_prompt": True,
        }
        answer = session.ask("POST", "/completion", fields, root=True)
        entries = _at(answer, "completion_probabilities", 0, "top_logprobs")
        rows[position] = _row(session, [(_at(entry, "id"), _at(entry, "logprob")) for entry in entries], position)
    return rows


def _vllm(session: Session, ids: list[int]) -> NDArray[np.float32]:
    """Ask once for the whole prompt; distributions stand one place behind their prefix, so one more token is added."""
    import numpy as np

    fields = {
        "model": session.served_model,
        "prompt": [*ids, ids[0]],
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": -1,
    }
    answer = session.ask("POST", "/completions", fields)
    places = _at(answer, "choices", 0, "prompt_logprobs")
    rows = np.empty((len(ids), session.model.vocabulary), np.float32)  # (T, vocabulary)
    for position in range(len(ids)):
        named = _at(places, position + 1)
        if not isinstance(named, dict):
            raise _unreadable(position, "no distribution")
        entries = [(int(token), _at(entry, "logprob")) for token, entry in named.items()]
        rows[position] = _row(session, entries, position)
    return rows


def _sglang(session: Session, ids: list[int]) -> NDArray[np.float32]:
    """Ask once for the whole prompt, one token more than it has, as above."""
    import numpy as np

    fields = {
        "input_ids": [*ids, ids[0]],
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": session.model.vocabulary,
    }
    answer = session.ask("POST", "/generate", fields, root=True)
    places = _at(answer, "meta_info", "input_top_logprobs")
    rows = np.empty((len(ids), session.model.vocabulary), np.float32)  # (T, vocabulary)
    for position in range(len(ids)):
        entries = [(_at(entry, 1), _at(entry, 0)) for entry in _at(places, position + 1) or ()]
        rows[position] = _row(session, entries, position)
    return rows


_READERS = {"completion": _llama_server, "prompt_logprobs": _vllm, "generate": _sglang}


def _row(session: Session, entries: Iterable[tuple[Any, Any]], position: int) -> NDArray[np.float32]:
    """Return one row, shape (vocabulary,), from (token id, log-probability) pairs in any order.

    Raises:
        EngineError: it does not name every id once, or is no distribution.
    """
    import numpy as np

    vocabulary = session.model.vocabulary
    pairs = list(entries)
    try:
        ids = np.array([token for token, _ in pairs], np.int64)
        values = np.array([value for _, value in pairs], np.float64)
    except (TypeError, ValueError):
        raise _unreadable(position, "no numbers") from None
    named = ids[(ids >= 0) & (ids < vocabulary)]
    if len(ids) != vocabulary or len(np.unique(named)) != vocabulary:
        msg = (
            f"openai_server: expected log-probabilities of all {vocabulary} token ids at position {position}, "
            f"{session.kind.title} named {len(np.unique(ids))}; start it so that it gives all (vLLM: --max-logprobs -1)"
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
