"""Does an engine that guesses ahead say what it says without guessing? A gate of its own, before anything is timed.

Speculation is meant to change no greedy id. The same engine is launched twice, with its options and without those that
let it guess, and answers the same prompts. Where ids part, the plain launch is asked how likely both are: guesses are
checked in batches, and sums in another order decide a tie otherwise. Parting on a tie is said and passes; any other
difference is another computation, and no speed of it counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from enginecmp.errors import CmpError
from enginecmp.format.records import DIFFERENT, IDENTICAL, IDENTICAL_TO_TIES, NOT_CHECKED, SpeculationCheck
from enginecmp.format.text import plain
from enginecmp.gate.answers import logits_of
from enginecmp.gate.quality import common_beginning
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import Launch
from enginecmp.types import NO_ID, ModelInfo
from enginecmp.wire.deadlines import Deadlines

SPECULATIVE = ("draft", "lookup", "draft_tokens")
"""Options of engines that say what guesses, and how far ahead."""

TIE_NATS = 1e-2
"""Two ids whose logits are nearer than that are a tie: rounding of quantized products reaches as far."""

PROMPT_TOKENS = 48
OUTPUT_TOKENS = 48


def speculates(config: EngineConfig) -> bool:
    """Return whether an engine is to guess ahead."""
    return config.options.extra.get("draft", "") != "" or config.options.extra.get("lookup", "0") != "0"


def check_speculation(
    configs: Sequence[EngineConfig],
    model: ModelInfo,
    prompts: Sequence[tuple[int, ...]],
    logs: Path,
    deadlines: Deadlines,
    say: Callable[[str], None],
) -> list[SpeculationCheck]:
    """Hold every engine that guesses against itself without guessing, on the file being timed.

    Args:
        configs: engines of the run.
        model: the file being timed.
        prompts: ids of the requests; each asks for `OUTPUT_TOKENS`.
        logs: folder for the launches' logs.
        deadlines: of the launches.
        say: told each answer.

    Returns:
        One entry for each engine that guesses.
    """
    found = []
    for config in filter(speculates, configs):
        room = max(config.options.context_tokens, max(map(len, prompts)) + OUTPUT_TOKENS)
        options = msgspec.structs.replace(config.options, context_tokens=room)
        extra = {name: value for name, value in options.extra.items() if name not in SPECULATIVE}
        without = msgspec.structs.replace(config, options=msgspec.structs.replace(options, extra=extra))
        guessing = msgspec.structs.replace(config, options=options)
        entry = SpeculationCheck(engine=config.label, requests=len(prompts), output_tokens=OUTPUT_TOKENS)
        try:
            entry = _compare(entry, guessing, without, model, prompts, logs, deadlines)
        except CmpError as error:
            entry.verdict, entry.note = NOT_CHECKED, plain(str(error), 500)
        found.append(entry)
        say(f"speculation: {describe(entry)}")
    return found


def _compare(
    entry: SpeculationCheck,
    guessing: EngineConfig,
    without: EngineConfig,
    model: ModelInfo,
    prompts: Sequence[tuple[int, ...]],
    logs: Path,
    deadlines: Deadlines,
) -> SpeculationCheck:
    label = guessing.label
    with _loaded(guessing, model, logs / f"speculation-{label}.log", deadlines) as launch:
        mine = _answers(launch, guessing, prompts, deadlines)
    with _loaded(without, model, logs / f"speculation-{label}-without.log", deadlines) as launch:
        wanted = _answers(launch, without, prompts, deadlines)
        if any(NO_ID in ids for ids in (*mine, *wanted)):
            entry.note = "it hands out text, so its ids cannot be compared"
            return entry
        entry.verdict = IDENTICAL
        for number, (ids, others) in enumerate(zip(mine, wanted, strict=True)):
            if ids == others:
                entry.identical += 1
                continue
            place = common_beginning(ids, others)
            prompt = prompts[number % len(prompts)]
            gap = _gap(launch, [*prompt, *others[:place]], ids[place : place + 1], deadlines)
            if gap < TIE_NATS:
                entry.verdict = IDENTICAL_TO_TIES if entry.verdict == IDENTICAL else entry.verdict
                continue
            entry.verdict = DIFFERENT
            entry.note = entry.note or (
                f"request {number}, token {place}: {ids[place] if place < len(ids) else 'nothing'} in place of "
                f"{others[place] if place < len(others) else 'nothing'}, which is {gap:.2g} nats likelier"
            )
    entry.requests = len(mine)
    return entry


@contextlib.contextmanager
def _loaded(config: EngineConfig, model: ModelInfo, log: Path, deadlines: Deadlines) -> Iterator[Launch]:
    with Launch(config.label, config.plugin, log=log, options=config.options) as launch:
        launch.load(model, deadlines.load_seconds)
        yield launch


def _answers(
    launch: Launch, config: EngineConfig, prompts: Sequence[tuple[int, ...]], deadlines: Deadlines
) -> list[list[int]]:
    """Return the ids of each prompt by itself and, of an engine that batches, of each prompt beside the others."""
    found: list[list[int]] = []
    for prompt in prompts:
        answer = launch.request(prompt, OUTPUT_TOKENS, deadlines)
        if answer["error"] is not None:
            raise CmpError(answer["error"]["message"])
        found.append(answer["ids"])
    if config.plugin.batches and config.options.max_sequences > 1:
        requests = [
            {"id": str(number), "token_ids": list(prompt), "output_tokens": OUTPUT_TOKENS}
            for number, prompt in enumerate(prompts)
        ]
        together: Any = launch.call("batch", deadlines.decode_seconds * 2, requests=requests, every=0)
        found += [together[str(number)] for number in range(len(prompts))]
    return found


def _gap(launch: Launch, token_ids: Sequence[int], other: Sequence[int], deadlines: Deadlines) -> float:
    """Return by how many nats the likeliest id after some ids is likelier than another one; infinity where unknown."""
    if not other:
        return float("inf")
    logits = logits_of(launch, token_ids, deadlines)
    if logits is None:
        return float("inf")
    last = logits[-1].astype(np.float64)
    return float(last.max() - last[other[0]])


def describe(entry: SpeculationCheck) -> str:
    """Return one line about an entry."""
    many = f"{entry.identical} of {entry.requests} requests of {entry.output_tokens} greedy ids"
    why = f": {entry.note}" if entry.note else ""
    if entry.verdict == NOT_CHECKED:
        return f"{entry.engine}: {entry.verdict}{why}"
    return f"{entry.engine}: {entry.verdict} with and without guesses ({many} the same){why}"
