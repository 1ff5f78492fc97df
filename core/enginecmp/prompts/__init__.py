"""Prompts: bundled texts, tokenized once by the host and cut to exact lengths; every engine gets the same ids.

The texts (folder `texts`) were written for this project: essays, stories and dialogues in English, and code in
three languages. A window is handed out only when the host's own tokenizer reads its text back as the same ids,
because an engine that takes text only must be able to receive exactly that prompt.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from enginecmp.errors import ModelError, UsageError
from enginecmp.models.end_tokens import end_tokens
from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
from enginecmp.types import ModelInfo

TEXTS = Path(__file__).parent / "texts"

TRIES = 1000
"""Windows that are tried before a length is given up."""

_HALVES = 64
"""Up to so many ids to score are one piece of English and one of code."""

_PIECE = 128
"""Most ids of one piece where there are more."""

_SCORED = ("01-english-bread.txt", "02-code-python-timetable.txt")
"""The two texts that the equivalence gate reads, half and half."""


class PromptSet:
    """The bundled texts as one model's token ids.

    Attributes:
        tokenizer: the model's.
        sha256: of the texts; the same for every model.
        tokens: number of ids that all texts have together.
    """

    def __init__(self, model: ModelInfo) -> None:
        self._model = model
        self.tokenizer = IsolatedTokenizer(model.path)
        texts = corpus()
        self.sha256 = hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in texts.items()).encode()).hexdigest()
        self._texts = texts
        self._ids = self.tokenizer.encode("\n\n".join(texts.values()))
        self.tokens = len(self._ids)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a text of this model."""
        return end_tokens(self._model.path)

    def take(self, length_tokens: int, key: int, seed: int) -> tuple[int, ...]:
        """Return a prompt of exactly that many ids.

        The same arguments give the same ids, for every engine and on every machine. Keys that follow each other
        give windows from different places of the texts.

        Args:
            length_tokens: ids in the prompt, the model's begin-of-sequence id included where it wants one.
            key: which window.
            seed: moves all windows.

        Raises:
            UsageError: the length is below 1 (or leaves no room beside a begin-of-sequence id), longer than the
                model's context or than the texts.
            ModelError: no window of that length is read back as the same ids.
        """
        return self.take_turns((length_tokens,), key, seed)

    def take_turns(self, lengths: Sequence[int], key: int, seed: int, after: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return a conversation: a prompt of the last length, of which every beginning of a length is a prompt too.

        Args:
            lengths: ids in each prompt, rising, what is in `after` (or the begin-of-sequence id) included.
            key: which window.
            seed: moves all windows.
            after: ids that it begins with, from an earlier call; empty begins as `take` does.

        Raises:
            UsageError: as `take`.
            ModelError: as `take`.
        """
        length_tokens = lengths[-1]
        first = after or (() if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,))
        # The begin-of-sequence id is no text.
        before = list(after if self.tokenizer.bos_id is None else after[1:])
        length = length_tokens - len(first)
        self._require_length(length_tokens, length)
        starts = len(self._ids) - length + 1
        start = random.Random(f"{seed} {length_tokens}").randrange(starts) + key * _stride(starts)
        ends = [end - len(first) for end in lengths]
        for step in range(min(TRIES, starts)):
            at = (start + step) % starts
            window = self._ids[at : at + length]
            if all(self._reads_back(before + window[:end]) for end in ends):
                return (*first, *window)
        msg = f"{self._model.name}: expected a window of {length} tokens that reads back as the same ids, found none"
        raise ModelError(msg)

    def score_ids(self, n: int) -> tuple[int, ...]:
        """Return the fixed window of the equivalence gate: English and code in turn, the same at every call.

        Every beginning of it reads back as the same ids, not only the whole. Up to 64 ids are half English, half
        code; more are pieces of both, each as long as its beginnings read back.

        Args:
            n: ids in all, the begin-of-sequence id included where the model wants one.

        Raises:
            UsageError: n is below 2 or longer than the model's context or the two texts.
            ModelError: no window of that length is read back as the same ids.
        """
        first = () if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,)
        length = n - len(first)
        self._require_length(n, length)
        english, code = (self.tokenizer.encode(self._texts[name]) for name in _SCORED)
        half = length // 2
        if n > _HALVES:
            window = self._readable_pieces((english, code), length)
        else:
            window = self._readable_window([], english, half)
            window = self._readable_window(window, code, length - half) if window or not half else []
        if window:
            return (*first, *window)
        msg = f"{self._model.name}: expected {n} tokens to score that read back as the same ids, found none"
        raise ModelError(msg)

    def _readable_window(self, before: list[int], ids: list[int], length: int) -> list[int]:
        """Return `before` and the first window after it whose every beginning reads back, or nothing.

        A text-only engine is scored beginning by beginning, and text that ends in the middle of blank lines, say,
        reads back as other ids.
        """
        for offset in range(min(TRIES, len(ids) - length + 1)):
            window = before + ids[offset : offset + length]
            if all(self._reads_back(window[:end]) for end in range(len(before) + 1, len(window) + 1)):
                return window
        return []

    def _readable_pieces(self, texts: Sequence[list[int]], length: int) -> list[int]:
        """Return pieces of the texts in turn, each from where its text was left, or nothing where they run out."""
        window: list[int] = []
        at = [0] * len(texts)
        turn = 0
        while len(window) < length and any(start < len(ids) for start, ids in zip(at, texts, strict=True)):
            ids, most = texts[turn], min(length, len(window) + _PIECE)
            while at[turn] < len(ids) and len(window) < most:
                longer = [*window, ids[at[turn]]]
                at[turn] += 1
                if not self._reads_back(longer):
                    break
                window = longer
            turn = (turn + 1) % len(texts)
        return window if len(window) == length else []

    def _reads_back(self, window: Sequence[int]) -> bool:
        """Say whether the window's text gives the same ids again."""
        return self.tokenizer.encode(self.tokenizer.decode(window)) == list(window)

    def _require_length(self, asked: int, length: int) -> None:
        """Refuse lengths that cannot be cut from the texts or that the model cannot hold."""
        if length < 1:
            msg = f"{self._model.name}: expected a prompt of at least {1 + asked - length} tokens, got {asked}"
            raise UsageError(msg)
        if asked > self._model.context_tokens:
            msg = (
                f"{self._model.name}: the model's context holds {self._model.context_tokens} tokens, got a prompt "
                f"of {asked}; choose a scenario with shorter prompts"
            )
            raise UsageError(msg)
        if length > len(self._ids):
            msg = f"{self._model.name}: the bundled texts have {len(self._ids)} tokens, got a prompt of {asked}"
            raise UsageError(msg)


@lru_cache(maxsize=1)
def corpus() -> dict[str, str]:
    """Return the bundled texts by file name, in the order in which they are joined."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(TEXTS.glob("*.txt"))}


def _stride(starts: int) -> int:
    """Return a step that visits every start once before it comes back, near the golden section.

    Consecutive multiples of the golden section spread most evenly (Knuth, TAOCP 3, 6.4, theorem S).
    """
    from math import gcd

    step = max(1, round(starts * 0.6180339887))
    while gcd(step, starts) != 1:
        step += 1
    return step
