"""What one engine answers: greedy ids of every item, in one launch, cut where the text is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from enginecmp.errors import CmpError, EngineError
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import Launch
from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
from enginecmp.types import NO_ID, ModelInfo
from enginecmp.wire.deadlines import Deadlines
from enginecmp_text_quality.items import Item


def prompt_ids(items: Sequence[Item], tokenizer: IsolatedTokenizer, model: ModelInfo) -> list[tuple[int, ...]]:
    """Return the ids of every prompt, the begin-of-sequence id in front where the model wants one.

    Raises:
        CmpError: a prompt with its answer does not fit the model's context.
    """
    first = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    found = []
    for item in items:
        ids = (*first, *tokenizer.encode(item.prompt))
        if len(ids) + item.output_tokens > model.context_tokens:
            needed = len(ids) + item.output_tokens
            msg = f"item {item.id}: needs {needed} tokens, {model.name} was made for {model.context_tokens}"
            raise CmpError(msg)
        found.append(ids)
    return found


def answers_of(
    config: EngineConfig,
    model: ModelInfo,
    items: Sequence[Item],
    prompts: Sequence[tuple[int, ...]],
    tokenizer: IsolatedTokenizer,
    end_id: int | None,
    log: Path,
    say: Callable[[str], None],
) -> list[str]:
    """Return an engine's continuation of every item.

    Args:
        config: the engine.
        model: weights file.
        items: what is asked.
        prompts: their ids.
        tokenizer: turns ids into text.
        end_id: id at which a text is over; None where the model has none.
        log: file for what the engine prints.
        say: told how far it is.

    Raises:
        LaunchFailure: it cannot be loaded, crashed or hung.
        EngineError: it hands out text and no ids, or refused an item.
    """
    deadlines = Deadlines()
    texts = []
    with Launch(config.label, config.plugin, log=log, options=config.options) as launch:
        launch.load(model, deadlines.load_seconds)
        for number, (item, ids) in enumerate(zip(items, prompts, strict=True), start=1):
            answer = launch.request(ids, item.output_tokens, deadlines)
            if answer["error"] is not None:
                msg = f"{config.label}: item {item.id}: {answer['error']['message']}"
                raise EngineError(msg)
            if NO_ID in answer["ids"]:
                msg = f"{config.label}: hands out text and no token ids; its texts cannot be compared with the others'"
                raise EngineError(msg)
            texts.append(cut(tokenizer.decode(until(answer["ids"], end_id)), item.stop))
            if number % 10 == 0:
                say(f"{config.label}: {number} of {len(items)} items")
    return texts


def until(ids: Sequence[int], end_id: int | None) -> Sequence[int]:
    """Return the ids before the one at which the text is over: engines go on after it."""
    return ids if end_id is None or end_id not in ids else ids[: ids.index(end_id)]


def cut(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first place where one of the stops begins."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
