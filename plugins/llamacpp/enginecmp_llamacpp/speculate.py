"""Guesses of what comes next, for llama.cpp to check several of them in one batch.

Leviathan et al. 2023 (arXiv:2211.17192) with greedy choice: a guess counts where it is the model's own choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from enginecmp import EngineError, LoadOptions, ModelInfo, UnsupportedModel, read_gguf

from .context import Context
from .native import as_ids, lib
from .options import Settings


class Wish(NamedTuple):
    """A sequence that wants guesses.

    Attributes:
        sequence: its number.
        tokens: everything so far, the prompt included.
        most: guesses at most.
    """

    sequence: int
    tokens: Sequence[int]
    most: int


class Guesser(Protocol):
    """Where guesses come from."""

    def guess(self, wishes: Sequence[Wish]) -> list[list[int]]:
        """Return guesses for every wish, at most as many as it wants."""
        ...

    def forget(self, sequence: int) -> None:
        """Forget a sequence that has ended."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Speculation(msgspec.Struct):
    """What guessing brought since the last reset.

    Attributes:
        guessed: tokens.
        accepted: those that were the model's own choice.
        steps: times that a sequence's next token was computed.
        tokens: that came of it.
    """

    guessed: int = 0
    accepted: int = 0
    steps: int = 0
    tokens: int = 0

    def metrics(self) -> dict[str, float]:
        """Return what `cmp_metrics` says of it; nothing where nothing was computed."""
        found = {"tokens_per_step": self.tokens / self.steps} if self.steps else {}
        return found | ({"draft_acceptance_rate": self.accepted / self.guessed} if self.guessed else {})


class Lookup:
    """From the text itself: what followed the last time the same tokens were there (prompt lookup, Saxena 2023).

    Args:
        length: how many tokens must be the same.
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def guess(self, wishes: Sequence[Wish]) -> list[list[int]]:
        """Return what followed, at most as many as each wish wants."""
        return [self._look_up(wish.tokens, wish.most) for wish in wishes]

    def forget(self, sequence: int) -> None:
        """Do nothing: nothing is kept."""

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _look_up(self, tokens: Sequence[int], most: int) -> list[int]:
        pattern = tokens[-self._length :]
        if len(tokens) <= self._length:
            return []
        for end in range(len(tokens) - 1, self._length - 1, -1):
            if tokens[end - 1] == pattern[-1] and tokens[end - self._length : end] == pattern:
                return list(tokens[end : end + most])
        return []


class DraftModel:
    """A second, smaller model that runs ahead.

    Args:
        model: what it guesses for.
        vocabulary: number of its token ids.
        options: what the host asks for.
        settings: with the draft's path.

    Raises:
        ModelError: the draft is no well-formed GGUF file.
        UnsupportedModel: llama.cpp does not load it, or it has another vocabulary.
    """

    def __init__(self, model: ModelInfo, vocabulary: int, options: LoadOptions, settings: Settings) -> None:
        # llama.cpp ends the process on some malformed files, and the host has checked only the model's.
        read_gguf(settings.draft)
        file = msgspec.structs.replace(model, name=settings.draft, path=settings.draft, parts=())
        self._context = Context(file, options, settings)
        if self._context.vocabulary != vocabulary:
            count = self._context.vocabulary
            self.close()
            msg = f"llamacpp: expected a draft model of {vocabulary} token ids, got {count}; name another one"
            raise UnsupportedModel(msg)
        self._known: dict[int, list[int]] = {}
        self._share = max(1, self._context.batch.capacity // options.max_sequences)

    @property
    def weights_bytes(self) -> float:
        """All tensors as stored in the file."""
        return self._context.metrics()["weights_bytes"]

    def guess(self, wishes: Sequence[Wish]) -> list[list[int]]:
        """Run ahead greedily, all sequences in one batch; where the draft's context is full it guesses nothing."""
        most = [min(wish.most, self._context.context_tokens - len(wish.tokens)) for wish in wishes]
        guesses: list[list[int]] = [[] for _ in wishes]
        waiting = [self._catch_up(wish) if limit > 0 else [] for wish, limit in zip(wishes, most, strict=True)]
        for number in range(max(most, default=0)):
            asking = [index for index, limit in enumerate(most) if number < limit]
            for index, token in zip(
                asking, self._run([(wishes[index].sequence, waiting[index]) for index in asking]), strict=True
            ):
                guesses[index].append(token)
                waiting[index] = [token]
        return guesses

    def forget(self, sequence: int) -> None:
        """Empty a sequence."""
        self._known.pop(sequence, None)
        lib.llama_memory_seq_rm(self._context.memory, sequence, -1, -1)

    def close(self) -> None:
        """Free the draft's context and model."""
        self._context.close()

    def _catch_up(self, wish: Wish) -> list[int]:
        """Go back to what is still true of a sequence; run all but the last piece of what is new and return that."""
        known = self._known.setdefault(wish.sequence, [])
        same = 0
        # The last token is run again: its guess is wanted.
        for mine, token in zip(known, wish.tokens[:-1], strict=False):
            if mine != token:
                break
            same += 1
        cut(self._context, wish.sequence, same)
        del known[same:]
        rest = list(wish.tokens[same:])
        while len(rest) > self._share:
            self._run([(wish.sequence, rest[: self._share])])
            rest = rest[self._share :]
        return rest

    def _run(self, pieces: Sequence[tuple[int, list[int]]]) -> list[int]:
        """Run pieces of different sequences in one batch; return the most likely token after each."""
        batch, end = self._context.batch, 0
        for sequence, tokens in pieces:
            known = self._known[sequence]
            end = batch.put(end, as_ids(tokens), len(known), sequence)
            batch.outputs[end - 1] = 1
            known += tokens
        self._context.run(end)
        chosen: list[int] = self._context.logits(len(pieces)).argmax(axis=1).tolist()
        return chosen


def cut(context: Context, sequence: int, position: int) -> None:
    """Forget a sequence's tokens from a position on.

    Raises:
        EngineError: llama.cpp cannot take back single tokens of this model.
    """
    if not lib.llama_memory_seq_rm(context.memory, sequence, position, -1):
        msg = "llamacpp: expected a cache that gives back tokens, this model's does not; leave out draft and lookup"
        raise EngineError(msg)
