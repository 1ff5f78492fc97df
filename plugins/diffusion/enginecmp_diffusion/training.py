"""Train the small model: seeded, in steps that can be interrupted and go on where they were.

The loss is the bound on the negative log-likelihood that LLaDA is trained with (arXiv:2502.09992, eq. 3): a share of
each text, drawn evenly from (0, 1], is masked, and what predicting the masked tokens costs counts divided by the share.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from enginecmp_diffusion.corpus import Corpus, text_sha256
from enginecmp_diffusion.network import Network, Shape

EVERY = 50
"""Steps between two lines of progress, and between two states on disk."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a trained file depends on, the text aside.

    Attributes:
        shape: of the network.
        steps: optimizer steps.
        easy_steps: the first ones, which mask 10 to 30 % of each text: of a text that is all but masked nothing can be
            learned but how often tokens are, and a network that begins there stays there for long.
        batch: texts in a step.
        text_tokens: length of a text.
        rate: largest learning rate, reached after the first twentieth and falling to nothing along a cosine.
        seed: of weights, texts and masks.
    """

    shape: Shape = Shape()
    steps: int = 3500
    easy_steps: int = 1000
    batch: int = 12
    text_tokens: int = 96
    rate: float = 2e-3
    seed: int = 0

    def sha256(self) -> str:
        """Return the hash of the recipe and of the text."""
        return hashlib.sha256(msgspec.json.encode(self) + text_sha256().encode()).hexdigest()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training is.

    Attributes:
        step: steps done.
        loss: mean of the bound over the last steps, nats a token.
        seconds: since this start.
    """

    step: int
    loss: float
    seconds: float


def train(
    recipe: Recipe,
    corpus: Corpus,
    checkpoint: Path,
    told: Callable[[Progress], None],
    most_seconds: float = math.inf,
) -> Network | None:
    """Train until the recipe is done, or until the time is over; what is done is kept for the next call.

    Every step draws from a generator of its own, so that a training in pieces is the one in a single piece.

    Args:
        recipe: what to train.
        corpus: text, cut into the shape's vocabulary.
        checkpoint: file with weights and optimizer, written now and then: where a training goes on that was stopped.
        told: called as often.
        most_seconds: after that long the state is written and None returned.
    """
    torch.manual_seed(recipe.seed)
    network = Network(recipe.shape)
    optimizer: Any = torch.optim.AdamW(network.parameters(), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.1)
    done = _restore(checkpoint, recipe, network, optimizer)
    begun, losses = time.monotonic(), []
    for step in range(done, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _share_of_rate(step, recipe.steps)
        loss = bound(network, *_drawn(corpus.train, recipe, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds = time.monotonic() - begun
        whole, late = step + 1 == recipe.steps, seconds > most_seconds
        if whole or late or (step + 1) % EVERY == 0:
            told(Progress(step=step + 1, loss=float(np.mean(losses[-EVERY:])), seconds=seconds))
            _save(checkpoint, recipe, step + 1, network, optimizer)
        if late and not whole:
            return None
    network.eval()
    return network


def bound(network: Network, ids: Tensor, masked: Tensor, shares: Tensor) -> Tensor:
    """Return the mean bound on the negative log-likelihood, nats a token.

    Args:
        network: with the mask as its vocabulary's last id.
        ids: (B, T).
        masked: (B, T), which of them the network does not see.
        shares: (B,), how likely each position of a text was to be masked.
    """
    seen = ids.masked_fill(masked, network.shape.vocabulary - 1)
    costs = F.cross_entropy(network(seen)[masked], ids[masked], reduction="none")  # (M,)
    weights = (1 / shares)[:, None].expand_as(ids)[masked]
    return (costs * weights).sum() / ids.numel()


def held_out_bound(network: Network, corpus: Corpus, recipe: Recipe, draws: int = 8) -> float:
    """Return the bound on texts that were not learned from, nats a token; every text is masked `draws` times."""
    length = recipe.text_tokens
    texts = torch.from_numpy(corpus.held_out[: len(corpus.held_out) // length * length].reshape(-1, length))
    random = np.random.default_rng([recipe.seed, 1])
    with torch.inference_mode():
        found = [bound(network, texts, *_masks(len(texts), length, random)) for _ in range(draws)]
    return float(torch.stack(found).mean())


def _drawn(ids: NDArray[np.int64], recipe: Recipe, step: int) -> tuple[Tensor, Tensor, Tensor]:
    random = np.random.default_rng([recipe.seed, 0, step])
    starts = random.integers(0, len(ids) - recipe.text_tokens, recipe.batch)
    texts = np.stack([ids[start : start + recipe.text_tokens] for start in starts])
    least, most = (0.1, 0.3) if step < recipe.easy_steps else (0.0, 1.0)
    return torch.from_numpy(texts), *_masks(recipe.batch, recipe.text_tokens, random, least, most)


def _masks(
    texts: int, length: int, random: np.random.Generator, least: float = 0.0, most: float = 1.0
) -> tuple[Tensor, Tensor]:
    # Shares spread evenly from one random start: less noise than independent ones.
    even = (random.random() + np.arange(texts) / texts) % 1
    shares = np.maximum(least + (most - least) * even, 1 / length)
    masked = random.random((texts, length)) < shares[:, None]
    masked[np.arange(texts), random.integers(0, length, texts)] |= ~masked.any(axis=1)
    return torch.from_numpy(masked), torch.from_numpy(shares).float()


def _share_of_rate(step: int, steps: int) -> float:
    rise = max(1, steps // 20)
    return min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _save(checkpoint: Path, recipe: Recipe, done: int, network: Network, optimizer: Any) -> None:
    state = {"recipe": recipe.sha256(), "step": done, "network": network.state_dict()}
    half = checkpoint.with_suffix(".half")
    torch.save(state | {"optimizer": optimizer.state_dict()}, half)
    half.replace(checkpoint)


def _restore(checkpoint: Path, recipe: Recipe, network: Network, optimizer: Any) -> int:
    """Take up a training of the same recipe where it was; return the steps done."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    if state["recipe"] != recipe.sha256():
        return 0
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
