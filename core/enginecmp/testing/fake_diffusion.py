"""Denoising of the fake engine: the schedule is real, the model is a hash of everything that is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from enginecmp.denoising import Committed, denoise, likeliest, require_shares
from enginecmp.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from enginecmp.testing.fake_session import FakeSession


def denoised(
    session: FakeSession, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
) -> Iterator[Committed]:
    """Yield what each step commits; its mask is the vocabulary's last id.

    Raises:
        EngineError: the model is none of diffusion, or what is asked for cannot be denoised.
        ContextOverflow: it does not fit.
    """
    if not session.diffuses:
        msg = "fake: expected a diffusion model to denoise with, got one that predicts the next token"
        raise EngineError(msg)
    require_shares("fake", token_ids, output_tokens, steps, block_tokens)
    for prompt in token_ids:
        session.require(prompt, output_tokens + 1)
    return _steps(session, token_ids, output_tokens, steps, block_tokens)


def _steps(
    session: FakeSession, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
) -> Iterator[Committed]:
    import numpy as np

    mask = session.vocabulary - 1

    def predict(
        ids: NDArray[np.int64], sequences: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        places = zip(sequences.tolist(), positions.tolist(), strict=True)
        return likeliest(np.stack([session.logits_among(at, ids[sequence].tolist()) for sequence, at in places]), mask)

    session.begin_request()
    session.draw_factor(token_ids[0])
    wanted = steps - int(session.settings["short"])
    for number, step in enumerate(denoise(predict, token_ids, output_tokens, steps, block_tokens, mask)):
        if number == wanted:
            break
        session.fault.maybe("decode", number)
        session.spend(session.number("decode_us") / 1e6)
        yield step
    for _ in range(int(session.settings["long"])):
        yield []
    session.end_request()
