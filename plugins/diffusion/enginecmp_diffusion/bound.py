"""A bound on the perplexity of a diffusion model, from what engines score: the evidence lower bound by Monte Carlo.

A masked-diffusion model has no likelihood that can be computed, but a bound: of a text of T tokens, draw a number l
from 1 to T, mask l positions, and take the mean of what predicting them costs; its expectation is at least the
negative log-likelihood per token (Nie et al. 2025, arXiv:2502.09992, eq. 6). Every engine gets the same masks.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import CmpError, ModelError, UsageError
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.types import ModelInfo
from enginecmp_analysis.statistics.student import t_quantile

TEXT_TOKENS = 128

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class Question(NamedTuple):
    """One text with some of it masked.

    Attributes:
        text: number of the text.
        ids: of the text, (T,).
        masked: positions that are not seen, (l,).
    """

    text: int
    ids: Ids
    masked: Ids


def questions(texts: Ids, draws: int, seed: int) -> list[Question]:
    """Return every text with masks of its own, `draws` times.

    The numbers of masked positions are spread evenly over 1 to T from a random start: less noise than independent ones.

    Args:
        texts: (texts, T) ids.
        draws: masks of a text.
        seed: of the masks.
    """
    random, found = np.random.default_rng(seed), []
    length = texts.shape[1]
    for number, ids in enumerate(texts):
        start = random.random()
        for draw in range(draws):
            count = 1 + int(length * ((start + draw / draws) % 1))
            found.append(Question(number, ids, np.sort(random.permutation(length)[:count])))
    return found


def cost(question: Question, logits: NDArray[np.float32]) -> float:
    """Return the mean negative log-likelihood of what is masked, nats a token, from logits (T, vocabulary)."""
    rows = logits[question.masked].astype(np.float64)  # (l, vocabulary)
    rows -= rows.max(axis=1, keepdims=True)
    told = rows[np.arange(len(rows)), question.ids[question.masked]]
    return float((np.log(np.exp(rows).sum(axis=1)) - told).mean())


def bounds(model: str, engines: str, threads: str, texts: int, draws: int, seed: int) -> Mapping[str, Floats]:
    """Return the bound of every text, nats a token, by engine; an engine that fails is told and left out.

    Raises:
        CmpError: no diffusion model, an engine that is not there, or none that answered.
    """
    from enginecmp.models.diffusion import AUTOREGRESSIVE, mask_of
    from enginecmp.models.gguf_file import read_gguf
    from enginecmp.plugins.discovery import discover
    from enginecmp.run.prepare import find_model
    from enginecmp.run.probe import probe
    from enginecmp.run.selection import choose, parse_engines, resolve_threads

    if texts < 2 or draws < 1:
        msg = f"expected at least 2 texts and 1 draw, got {texts} and {draws}"
        raise UsageError(msg)
    info = find_model(model)
    mask = mask_of(read_gguf(Path(info.path)))
    if mask is None:
        msg = f"{model}: expected a diffusion model ({', '.join(AUTOREGRESSIVE)}), got one of {info.architecture}"
        raise ModelError(msg)
    asked = questions(_texts(info, texts), draws, seed)
    found: dict[str, Floats] = {}
    with tempfile.TemporaryDirectory(prefix="cmp-bound-") as logs:
        configs = choose(
            parse_engines(engines, discover()),
            info,
            everything=False,
            devices={},
            threads=resolve_threads(threads),
            context_tokens=TEXT_TOKENS,
            extra={},
            probe=lambda plugin, device, extra: probe(plugin, device, Path(logs), extra),
            say=_say,
        )
        for config in configs:
            try:
                costs = _asked(config, info, asked, mask, Path(logs) / f"{config.label}.log")
            except CmpError as error:
                _say(f"left out: {str(error).partition('; log:')[0]}")
            else:
                found[config.label] = np.reshape(costs, (texts, draws)).mean(axis=1)
    if not found:
        msg = "no engine answered; see above"
        raise CmpError(msg)
    return found


def table(found: Mapping[str, Floats]) -> Iterator[str]:
    """Yield a line an engine: the bound with its interval over texts, the perplexity, the difference from the first."""
    first_label, first = next(iter(found.items()))
    width = max(len("engine"), *map(len, found))
    yield f"{'engine':<{width}}  {'nats a token, at most':<24}  {'perplexity, at most':<24}  less {first_label}"
    for label, values in found.items():
        middle, half = mean_of(values)
        apart, apart_half = mean_of(values - first)
        told = "" if label == first_label else f"{apart:+.2e} ± {apart_half:.1e} nats"
        low, high = math.exp(middle - half), math.exp(middle + half)
        nats = f"{middle:.3f} [{middle - half:.3f}, {middle + half:.3f}]"
        yield f"{label:<{width}}  {nats:<24}  {f'{math.exp(middle):.1f} [{low:.1f}, {high:.1f}]':<24}  {told}".rstrip()


def mean_of(values: Floats) -> tuple[float, float]:
    """Return a mean and half its 95 % interval: Student's t over texts."""
    n = len(values)
    return float(values.mean()), float(t_quantile(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)


def _asked(config: EngineConfig, model: ModelInfo, asked: Sequence[Question], mask: int, log: Path) -> list[float]:
    from enginecmp.gate.answers import logits_of
    from enginecmp.launch.launch import Launch
    from enginecmp.wire.deadlines import Deadlines

    deadlines, costs = Deadlines(), []
    with Launch(config.label, config.plugin, log=log, options=config.options) as launch:
        launch.load(model, deadlines.load_seconds)
        for question in asked:
            seen = question.ids.copy()
            seen[question.masked] = mask
            logits = logits_of(launch, seen.tolist(), deadlines)
            if logits is None or len(logits) != len(seen):
                msg = f"{config.label}: has no cmp_score that answers at every position; leave it out"
                raise CmpError(msg)
            costs.append(cost(question, logits))
    return costs


def _texts(model: ModelInfo, wanted: int) -> Ids:
    """Return texts that the small model did not learn from, cut by a model's own tokenizer, (wanted, T).

    Raises:
        UsageError: there is not so much text.
    """
    from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
    from enginecmp_diffusion.corpus import held_out_texts

    tokenizer, found = IsolatedTokenizer(model.path), []
    for text in held_out_texts():
        ids = tokenizer.encode(text)
        # One piece of a text: pieces of one text are alike, and an interval over texts would be too narrow.
        if len(ids) >= TEXT_TOKENS:
            found.append(ids[:TEXT_TOKENS])
    if len(found) < wanted:
        msg = f"--texts {wanted}: expected at most {len(found)}, the texts held out of at least {TEXT_TOKENS} tokens"
        raise UsageError(msg)
    return np.array(found[:wanted])


def _say(text: str) -> None:
    print(text, file=sys.stderr)
