"""What the small model learns from: the text that Python itself carries, cut into tokens of its own.

That is the language reference (`pydoc_data.topics`) and the docstrings of the standard library: English prose about
code, under the PSF licence. Another Python has another text, so the text's hash is part of a trained file's name.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

END, MASK = "<|endoftext|>", "<|mask|>"

HELD_OUT = 12
"""One text in so many is kept for telling how well the model predicts what it has not seen."""

_LEFT_OUT = {"__pycache__", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}


class Corpus(NamedTuple):
    """Text as ids, and what they mean.

    Attributes:
        train: ids to learn from, (n,).
        held_out: ids of the texts that are left out, (m,).
        tokens: every token's text in byte-level BPE; the end and the mask are the last two.
        merges: in the order in which they apply, "left right".
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    tokens: list[str]
    merges: list[str]


@functools.cache
def texts() -> tuple[str, ...]:
    """Return the topics of the language reference, then one text of docstrings for each module that has any."""
    return (*(topics[name] for name in sorted(topics)), *_docstrings(Path(sysconfig.get_path("stdlib"))))


def held_out_texts() -> list[str]:
    """Return the texts that are not learned from."""
    return [text for number, text in enumerate(texts()) if number % HELD_OUT == 0]


def text_sha256() -> str:
    """Return the hash of the text."""
    return hashlib.sha256("\0".join(texts()).encode()).hexdigest()


def read_corpus(vocabulary: int) -> Corpus:
    """Learn byte-level BPE of so many tokens from the text, and cut the text with it.

    Args:
        vocabulary: tokens in all, end and mask included; 258 are bytes without merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in learned["merges"]]
    end = len(tokens)
    cut = [[*encoded.ids, end] for encoded in tokenizer.encode_batch(list(texts()))]
    parts = [
        np.array([token for number, ids in enumerate(cut) if (number % HELD_OUT == 0) == held for token in ids])
        for held in (False, True)
    ]
    return Corpus(parts[0], parts[1], [*tokens, END, MASK], merges)


def _docstrings(library: Path) -> Iterator[str]:
    """Yield the docstrings of each module of the standard library, in the order of their paths."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in sorted(library.rglob("*.py")):
        if _LEFT_OUT.intersection(path.relative_to(library).parts):
            continue
        tree = ast.parse(path.read_bytes())
        found = [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]
        if found:
            yield "\n\n".join(found)
