"""What engines are asked at the gate: the logits of a text, and greedy tokens after its beginning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.types import ModelInfo
from enginecmp.wire.deadlines import Deadlines

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Answers(NamedTuple):
    """What one launch said of the text.

    Attributes:
        logits: teacher-forced, shape (T, vocabulary), float32; None where the engine has no `cmp_score`.
        greedy: ids of an ordinary request for the text's beginning; None where it was not asked or failed.
    """

    logits: NDArray[np.float32] | None
    greedy: list[int] | None


def score(
    config: EngineConfig, model: ModelInfo, token_ids: Sequence[int], log: Path, deadlines: Deadlines
) -> NDArray[np.float32] | None:
    """Launch an engine, return its logits at every position; None where it has no `cmp_score`.

    Raises:
        LaunchFailure: it crashed, hung or refused.
    """
    return ask(config, model, token_ids, log, deadlines, 0, None).logits


def ask(
    config: EngineConfig,
    model: ModelInfo,
    token_ids: Sequence[int],
    log: Path,
    deadlines: Deadlines,
    greedy_tokens: int,
    loaded: Callable[[str, Mapping[str, Any]], None] | None,
) -> Answers:
    """Launch an engine, score the text, and ask for greedy tokens after its beginning.

    Args:
        config: the engine, as it is loaded.
        model: the file that it is asked about.
        token_ids: the text.
        log: of the launch.
        deadlines: of the launch.
        greedy_tokens: ids of the beginning, and most ids to ask for; 0 asks for none.
        loaded: told the label and what loading answered.

    Raises:
        LaunchFailure: it crashed, hung or refused.
    """
    with Launch(config.label, config.plugin, log=log, options=config.options) as launch:
        told = launch.load(model, deadlines.load_seconds)
        if loaded is not None:
            loaded(config.label, told)
        logits = logits_of(launch, token_ids, deadlines)
        if logits is None:
            return Answers(None, None)
        greedy: list[int] | None = None
        if greedy_tokens:
            try:
                said = launch.request(tuple(token_ids[:greedy_tokens]), greedy_tokens, deadlines)
                greedy = None if said["error"] else said["ids"]
            except LaunchFailure:
                greedy = None  # information only: what matters will fail again where it is measured
    return Answers(logits, greedy)


def logits_of(launch: Launch, token_ids: Sequence[int], deadlines: Deadlines) -> NDArray[np.float32] | None:
    """Return a loaded engine's logits, shape (T, vocabulary); None where it has no `cmp_score`.

    Raises:
        LaunchFailure: it crashed, hung or refused.
    """
    import numpy as np

    answer = launch.call("score", deadlines.score_seconds, token_ids=list(token_ids))
    if answer["shape"] is None:
        return None
    return np.frombuffer(answer["data"], dtype=np.float32).reshape(answer["shape"])
