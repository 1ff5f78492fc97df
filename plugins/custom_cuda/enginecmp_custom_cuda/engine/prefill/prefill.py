"""The prefill: many tokens through all layers at once, of one sequence or of several.

Also the way of a decoding step for more sequences than decode.cu's batches hold: every sequence then brings one token.
The launches for a number of tokens are prepared once and kept; numbers are rounded up and the rest filled with empty
tokens (position -1), so that few are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp import EngineError

from .gemm import Step, round_up
from .layers import CacheGeometry, Group, Layers
from .split_attention import MOST_TOKENS
from .tokens import Numbers, Tokens, bucket

if TYPE_CHECKING:
    from ...device.device import Device
    from ...device.memory import Memory
    from ...weights.model import DeviceModel
    from .cublaslt import Backend

KEPT_PROGRAMS = 24
SCORE_TOKENS = 64
"""Tokens whose logits are on the device at once."""


@dataclass(frozen=True)
class Program:
    """The launches for one number of tokens, in order, with the component that each belongs to."""

    tokens: int
    steps: tuple[tuple[Group, Step], ...]

    def launch(self) -> None:
        """Run it, or record it while a graph is captured."""
        for _, step in self.steps:
            step.launch()


class Prefill:
    """Runs tokens through a model's layers.

    Args:
        device: where.
        model: its weights there.
        cache: keys and values; block tables must hold the pages of every position that is computed.
        precise: float32 activations for every kind of weights.
        max_tokens: most tokens of a call.
        library: multiplies the layers' matrices where activations are not float32; the project's own kernels without
            one. The head stays with those, as it is multiplied for few tokens at a time.

    Attributes:
        hidden: address of the residual, float32 [max_tokens][hidden]; row t is the last call's token t, before the
            last norm.
        max_tokens: most tokens of a call.
        nbytes: of its buffers.
    """

    def __init__(
        self,
        device: Device,
        model: DeviceModel,
        cache: CacheGeometry,
        *,
        precise: bool,
        max_tokens: int,
        library: Backend | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self._device = device
        self._model = model
        self._rows = bucket(max_tokens, round_up(max_tokens, 64))
        self._layers = Layers(device, model, cache, precise=precise, rows=self._rows, library=library)
        self._tokens = Tokens(device, self._layers.numbers, self._rows)
        self._programs: OrderedDict[tuple[int, bool], Program] = OrderedDict()
        self._heads: dict[int, Program] = {}
        self._logits_tokens = min(SCORE_TOKENS, self._rows)
        self._logits: Memory | None = None
        self.hidden = self._layers.hidden
        self.nbytes = self._layers.nbytes

    def enqueue(
        self,
        ids: Numbers,
        position: Numbers,
        slot: Numbers,
        tokens: int | None = None,
        run: Callable[[Program], None] = Program.launch,
    ) -> None:
        """Compute tokens: their keys and values go to the cache, their residual to `hidden`.

        Tokens of one sequence must be neighbours, in ascending order. Addresses are read on the device, so that calls
        can be recorded in a graph; arrays are copied there first, without a wait for what was launched before.

        Args:
            ids: (T,).
            position: (T,), in their sequences; below 0 for a token that is to be left out.
            slot: (T,), rows of the block table.
            tokens: T, where addresses are given.
            run: runs the launches; another way than one after the other, for instance a graph of them.

        Raises:
            EngineError: T is 0 or more than `max_tokens`, or the three have different lengths.
        """
        if isinstance(ids, int) and isinstance(position, int) and isinstance(slot, int):
            count = self._check_count(tokens or 0)
            rows, single = self._tokens.copy(ids, position, slot, count), count <= MOST_TOKENS
        else:
            count = self._check_count(np.size(ids))
            rows = self._tokens.put(ids, position, slot, count)
            single = len(np.unique(np.asarray(slot))) * 2 > count and count <= MOST_TOKENS
        run(self.program(rows, single))

    def program(self, rows: int, single: bool) -> Program:
        """Return the launches for a number of tokens that is a bucket's.

        Args:
            rows: from `bucket`.
            single: most tokens, at most `MOST_TOKENS`, are their sequence's only ones: attention is split by positions.
        """
        key = (rows, single)
        if key not in self._programs:
            self._programs[key] = Program(rows, tuple(self._layers.steps(rows, single)))
            while len(self._programs) > KEPT_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]

    def splits(self, tokens: int) -> int:
        """Return the most splits of the positions in attention, for a call of so many tokens that are single."""
        return self._layers.splits(bucket(tokens, self._rows))

    def score(self, ids: ArrayLike, slot: int = 0, start: int = 0) -> NDArray[np.float32]:
        """Return next-token logits at every position of a prompt, shape (T, vocabulary).

        Args:
            ids: (T,); computed in pieces of `max_tokens`.
            slot: of the sequence, whose pages hold all T tokens.
            start: position of the first.
        """
        numbers = np.asarray(ids, np.int32).ravel()
        logits = np.empty((len(numbers), self._model.head.rows), np.float32)
        for first in range(0, len(numbers), self.max_tokens):
            piece = numbers[first : first + self.max_tokens]
            position = np.arange(start + first, start + first + len(piece))
            self.enqueue(piece, position, np.full(len(piece), slot))
            self._read_logits(logits[first : first + len(piece)])
        return logits

    def head(self, x: int, tokens: int, logits: int) -> Program:
        """Return the launches that turn residuals into logits: the last norm, then the head.

        Args:
            x: address of float32 [tokens][hidden], such as `hidden` or rows copied from it.
            tokens: how many, at most `max_tokens`.
            logits: address of float32 [tokens][vocabulary].
        """
        return Program(tokens, tuple(self._layers.head(x, tokens, logits)))

    def close(self) -> None:
        """Free the buffers, and what a library keeps of the weights; nothing of it may be under way."""
        self._programs.clear()
        self._tokens.close()
        self._layers.close()
        if self._logits is not None:
            self._logits.free()
            self._logits = None

    def _read_logits(self, to: NDArray[np.float32]) -> None:
        """Multiply the residual's first rows by the head, a bounded piece at a time."""
        vocabulary = self._model.head.rows
        if self._logits is None:
            self._logits = self._device.allocate(self._logits_tokens * vocabulary * 4, "logits")
        for first in range(0, len(to), self._logits_tokens):
            if first not in self._heads:
                tokens = min(self._logits_tokens, self._rows - first)
                hidden = self.hidden + first * self._model.config.width * 4
                self._heads[first] = self.head(hidden, tokens, self._logits.address)
            self._heads[first].launch()
            count = min(self._logits_tokens, len(to) - first)
            to[first : first + count] = self._device.download(self._logits.address, (count, vocabulary), np.float32)

    def _check_count(self, count: int) -> int:
        if not 1 <= count <= self.max_tokens:
            msg = (
                f"custom_cuda: expected 1 to {self.max_tokens} tokens at once, got {count}; "
                "pass -o custom_cuda.prefill_chunk=N for more"
            )
            raise EngineError(msg)
        return count
