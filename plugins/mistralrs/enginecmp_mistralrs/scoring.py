"""Teacher-forced distributions for the equivalence gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from enginecmp import EngineError, RoundTripError, hookimpl

from .generation import chat, check_context, proven_text
from .loading import Session
from .panics import Native

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_LOG_PROBABILITY = -104.0
"""Stands for a probability that underflowed: log of half the smallest float32 above zero, rounded down."""

SUM_TOLERANCE = 1e-3
"""How far a row's probabilities may sum from 1; measured: 1e-5 over 49152 ids."""

_SCORE = Native("score the prompt")


@hookimpl
def cmp_score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return log-probabilities of the next token after every prefix.

    One request per prefix, generating one token with the log-probabilities of the whole vocabulary: each row
    goes through the very path that is timed, prefill of the whole prefix. Entries carry token ids, so no text
    is matched.

    Returns:
        Log-probabilities, shape (T, vocabulary), float32.

    Raises:
        RoundTripError: a prefix does not read back as the same ids; the message names its length.
        ContextOverflow: T is larger than the session's context, in tokens.
        EngineError: a row is not a distribution over the vocabulary.
    """
    import numpy as np

    check_context(session, len(token_ids), 1)
    # Refuse before the first of T prefills, not in the middle of them.
    texts = [proven_text(session, token_ids[: end + 1]) for end in range(len(token_ids))]
    rows = np.empty((len(texts), session.vocabulary), dtype=np.float32)  # (T, vocabulary)
    for position, text in enumerate(texts):
        request = chat(session, text, max_tokens=1, logprobs=True, top_logprobs=session.vocabulary)
        with _SCORE:
            answer = session.runner.send_chat_completion_request(request)
            entries = answer.choices[0].logprobs.content[0].top_logprobs
        if answer.usage.prompt_tokens != position + 1:
            msg = f"mistralrs: prefix of {position + 1} tokens was counted as {answer.usage.prompt_tokens}; use another"
            raise RoundTripError(msg)
        rows[position] = _row(entries, session.vocabulary, position)
    return rows


def _row(entries: Sequence[Any], vocabulary: int, position: int) -> NDArray[np.float32]:
    """Return one row, shape (vocabulary,), from (token id, log-probability) entries in any order."""
    import numpy as np

    ids = np.fromiter((entry.token for entry in entries), dtype=np.int64, count=len(entries))
    values = np.fromiter((entry.logprob for entry in entries), dtype=np.float64, count=len(entries))
    if len(ids) != vocabulary or not np.array_equal(np.sort(ids), np.arange(vocabulary)):
        msg = (
            f"mistralrs: position {position}: expected each of {vocabulary} ids once, got {len(ids)}; report this model"
        )
        raise EngineError(msg)
    total = float(np.exp(values).sum())
    if not abs(total - 1.0) <= SUM_TOLERANCE:
        msg = f"mistralrs: position {position}: probabilities sum to {total:.6g}, expected 1; report this model"
        raise EngineError(msg)
    row = np.empty(vocabulary, dtype=np.float32)
    row[ids] = np.maximum(values, LEAST_LOG_PROBABILITY)
    return row
