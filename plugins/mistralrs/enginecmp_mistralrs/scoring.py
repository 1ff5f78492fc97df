"""Teacher-forced distributions for the equivalence gate, out of an API that gives them for its own next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

MARGIN = 1.0
"""Nats by which a forced token must lead, so that rounding cannot turn the choice."""

MOST_BIAS = 40.0
"""Nats of bias that still leave float32 the other tokens' probabilities down to exp(-64)."""

_SCORE = Native("score the prompt")


@hookimpl
def cmp_score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32]:
    r"""Return log-probabilities of the next token after every prefix.

    One request per prefix, with the log-probabilities of the whole vocabulary. Entries carry token ids, so no
    text is matched.

    Many prefixes of a sound prompt do not read back by themselves: "\n" "\n" in front of a word is one token
    at the end of a text, and a character's first byte is no text at all. Such a prefix is reached from the
    longest shorter one that reads back: the engine generates the missing tokens, made its first choice by a logit
    bias, and the bias is taken out of the row that follows.

    Returns:
        Log-probabilities, shape (T, vocabulary), float32.

    Raises:
        RoundTripError: not even the first token reads back, or a missing token is too unlikely to be forced.
        ContextOverflow: T is larger than the session's context, in tokens.
        EngineError: a row is not a distribution over the vocabulary.
    """
    import numpy as np

    ids = list(token_ids)
    check_context(session, len(ids), 1)
    rows = np.empty((len(ids), session.vocabulary), dtype=np.float32)  # (T, vocabulary)
    base, text = 0, ""
    for position in range(len(ids)):
        try:
            text = proven_text(session, ids[: position + 1])
            base = position + 1
        except RoundTripError:
            if base == 0:
                raise
        forced = ids[base : position + 1]
        biases = _biases(forced, rows[base - 1 : position], position)
        request = chat(
            session,
            text,
            max_tokens=len(forced) + 1,
            logprobs=True,
            top_logprobs=session.vocabulary,
            logit_bias=biases or None,
        )
        with _SCORE:
            answer = session.runner.send_chat_completion_request(request)
            steps = [step.top_logprobs for step in answer.choices[0].logprobs.content]
        if answer.usage.prompt_tokens != base or len(steps) != len(forced) + 1:
            msg = (
                f"mistralrs: expected {base} prompt and {len(forced) + 1} output tokens, the engine counted "
                f"{answer.usage.prompt_tokens} and {len(steps)}; use another prompt"
            )
            raise RoundTripError(msg)
        # Entries come most likely first.
        went = [step[0].token for step in steps[:-1]]
        if went != forced:
            msg = f"mistralrs: position {position}: expected the forced tokens {forced}, got {went}; use another prompt"
            raise EngineError(msg)
        rows[position] = _row(steps[-1], session.vocabulary, biases, position)
    return rows


def _biases(forced: Sequence[int], before: NDArray[np.float32], position: int) -> dict[int, float]:
    """Return the least logit biases under which each forced token leads where it is due.

    One set of biases holds for all steps of a request, so a token may not be lifted over one that is due earlier
    or later: a system of difference constraints, solved by relaxation (Cormen et al., section 24.4), which has no
    solution if it has not settled after as many rounds as it has tokens.

    Args:
        forced: the tokens, in order.
        before: log-probabilities before each of them, shape (len(forced), vocabulary).
        position: for the message.

    Raises:
        RoundTripError: no set of biases up to `MOST_BIAS` does it.
    """
    import numpy as np

    biases = dict.fromkeys(forced, 0.0)
    for _ in range(len(biases) + 1):
        settled = True
        for token, row in zip(forced, before, strict=True):
            others = row.astype(np.float64)
            others[list(biases)] += list(biases.values())
            own = others[token]
            others[token] = -np.inf
            lack = float(others.max() + MARGIN - own)
            # Below rounding: a constraint that an earlier round met exactly.
            if lack > 1e-6:
                biases[token] += lack
                settled = False
        if settled and max(biases.values(), default=0.0) <= MOST_BIAS:
            return biases
    msg = (
        f"mistralrs: takes text only, and the prefix that ends at position {position} is neither a text that reads "
        f"back nor reachable by generating tokens {list(forced)}; use another prompt"
    )
    raise RoundTripError(msg)


def _row(entries: Sequence[Any], vocabulary: int, biases: Mapping[int, float], position: int) -> NDArray[np.float32]:
    """Return one row, shape (vocabulary,), from (token id, log-probability) entries in any order, biases taken out."""
    import numpy as np

    ids = np.fromiter((entry.token for entry in entries), dtype=np.int64, count=len(entries))
    values = np.fromiter((entry.logprob for entry in entries), dtype=np.float64, count=len(entries))
    if len(ids) != vocabulary or not np.array_equal(np.sort(ids), np.arange(vocabulary)):
        msg = f"mistralrs: position {position}: expected each of {vocabulary} ids once, got {len(ids)}; report this"
        raise EngineError(msg)
    total = float(np.exp(values).sum())
    if not abs(total - 1.0) <= SUM_TOLERANCE:
        msg = f"mistralrs: position {position}: probabilities sum to {total:.6g}, expected 1; report this"
        raise EngineError(msg)
    row = np.empty(vocabulary, dtype=np.float64)
    row[ids] = np.maximum(values, LEAST_LOG_PROBABILITY)
    if biases:
        row[list(biases)] -= list(biases.values())
        row -= np.log(np.exp(row).sum())
    return row.astype(np.float32)
