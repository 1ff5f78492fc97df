"""Scores of answers as sufficient statistics an item, so that any sample of items has its score.

A corpus score (BLEU, chrF) is no mean of items: the statistics of the sampled items are added up and scored, as
sacrebleu's own paired bootstrap does it. ROUGE-L and pass@1 are means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginecmp_text_quality.items import Item
from enginecmp_text_quality.sandbox import passes

Floats = NDArray[np.float64]


class Scored(NamedTuple):
    """One metric of one engine.

    Attributes:
        metric: its name.
        signature: how it was computed, to be quoted with it.
        per_item: (N, S) sufficient statistics.
        of_sums: (S,) sums over items to the score, 0 to 100.
    """

    metric: str
    signature: str
    per_item: Floats
    of_sums: Callable[[Floats], float]

    @property
    def value(self) -> float:
        """Return the score over all items, 0 to 100."""
        return self.of_sums(self.per_item.sum(axis=0))


def score_texts(items: Sequence[Item], answers: Sequence[str]) -> list[Scored]:
    """Return BLEU, chrF and ROUGE-L.

    Args:
        items: with references.
        answers: one a item.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    texts = [" ".join(answer.split()) for answer in answers]
    most = max(len(item.references) for item in items)
    # sacrebleu takes None where an item has fewer references than another.
    columns = [[dict(enumerate(item.references)).get(n) for item in items] for n in range(most)]
    return [
        *(_corpus(name, metric, texts, columns) for name, metric in (("BLEU", BLEU()), ("chrF", CHRF()))),
        _rouge(items, texts),
    ]


def _corpus(name: str, metric: object, texts: list[str], columns: list[list[str | None]]) -> Scored:
    """Return a corpus metric of sacrebleu with its statistics an item."""
    known: Any = metric
    known.corpus_score(texts, columns)  # tells the signature how many references there are
    statistics = np.array(known._extract_corpus_statistics(texts, columns), np.float64)

    def of_sums(sums: Floats) -> float:
        return float(known._compute_score_from_stats(sums.tolist()).score)

    return Scored(name, str(known.get_signature()), statistics, of_sums)


def _rouge(items: Sequence[Item], texts: Sequence[str]) -> Scored:
    """Return ROUGE-L, F measure, of the reference that fits best (Lin 2004, section 3.1)."""
    from importlib.metadata import version

    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    best = [
        scorer.score_multi(item.references, text)["rougeL"].fmeasure for item, text in zip(items, texts, strict=True)
    ]
    return _mean("ROUGE-L", f"rouge-score:{version('rouge-score')}|rougeL|fmeasure|stemmer:no|best reference", best)


def score_code(items: Sequence[Item], answers: Sequence[str]) -> list[Scored]:
    """Return pass@1: every answer is run behind its prompt, with its tests, locked up.

    Raises:
        CmpError: this machine cannot lock a process up.
    """
    found = [
        pass_at_k(1, int(passes(item.prompt + text, item.tests)), 1) for item, text in zip(items, answers, strict=True)
    ]
    return [_mean("pass@1", "greedy|n:1|k:1|unbiased", found)]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate that one of k samples passes (Chen et al. 2021, arXiv:2107.03374, eq. 1).

    Args:
        n: samples that were drawn.
        c: of them passed.
        k: samples that are asked about, at most n.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _mean(name: str, signature: str, values: Sequence[float]) -> Scored:
    """Return a metric that is the mean over items."""
    per_item = np.array([[value, 1.0] for value in values])
    return Scored(name, signature, per_item, lambda sums: float(100 * sums[0] / sums[1]))
