"""Passes of the device for many sequences at once: what `batching` asks for, computed by the kernels that fit.

Up to 8 sequences with one token each are a decode step (`decode.py`). More, or tokens of prompts among them, go
through the kernels of prompts (`prefill.py`), and the residuals that answer through the head together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .gemm import round_up
from .prefill import bucket
from .sampling import Sampler, Strategy

if TYPE_CHECKING:
    from ..device import Device
    from ..device.graph import Graph
    from ..device.module import Launch
    from ..weights.model import DeviceModel
    from .batching import Piece
    from .decode import DecodeBuffers, DecodeStep
    from .pages import Cache
    from .prefill import Prefill, Program

GREEDY = Strategy(temperature=0)
NOBODY = (-1, -1)
WIDE_STEP = 16
"""Passes of more sequences than decode steps take are computed for a multiple of this; the rest is empty."""


class Answers:
    """From residuals to ids: the head, then the largest logit of every row, handed to the host.

    Args:
        device: where.
        model: its weights there.
        prefill: whose kernels multiply.
        rows: most rows at once.
    """

    def __init__(self, device: Device, model: DeviceModel, prefill: Prefill, rows: int) -> None:
        self._device = device
        self._prefill = prefill
        self._row_bytes = model.config.hidden * 4
        vocabulary = model.head.rows
        self._logits = device.allocate(rows * vocabulary * 4, "logits of a batch")
        self._rows = device.allocate(rows * self._row_bytes, "residuals of a batch")
        self._zeros = device.allocate(rows * 4, "positions of a batch")
        device.fill(self._zeros.address, self._zeros.nbytes)
        self._best = device.pinned(rows * 8, "ids of a batch")
        self._sampler = Sampler(
            device,
            logits=self._logits.address,
            largest=self._best.address,
            position=self._zeros.address,
            count=self._zeros.address,
            best=self._best.address,
            rows=rows,
            vocabulary=vocabulary,
        )
        self._heads: dict[tuple[int, int], Program] = {}
        self._choices: dict[int, list[Launch]] = {}

    def gather(self, tokens: Sequence[int]) -> int:
        """Copy residuals of the last call next to each other, and return where they are.

        Args:
            tokens: their places in the call, in the order of the answers.
        """
        for row, token in enumerate(tokens):
            target = self._rows.address + row * self._row_bytes
            self._device.copy(target, self._prefill.hidden + token * self._row_bytes, self._row_bytes)
        return self._rows.address

    def launch(self, x: int, rows: int) -> None:
        """Choose ids for residuals, or record it while a graph is captured.

        Args:
            x: address of float32 (rows, hidden).
            rows: how many.
        """
        if (x, rows) not in self._heads:
            self._heads[x, rows] = self._prefill.head(x, rows, self._logits.address)
        if rows not in self._choices:
            self._choices[rows] = self._sampler.launches(GREEDY, rows)
        self._heads[x, rows].launch()
        for launch in self._choices[rows]:
            launch.launch()

    def ids(self, rows: int) -> list[int]:
        """Wait for the device and return the chosen ids."""
        self._device.synchronize()
        best = self._best.array.view(np.uint64)[:rows]
        return [0xFFFFFFFF - (int(each) & 0xFFFFFFFF) for each in best]


class Passes:
    """Computes the passes of continuous batching; a `batching.Runner`.

    A sequence keeps its slot, which the scheduler numbers, but not its row of the block tables: where few sequences are
    left in high rows they move down, because a decode step of batch B computes rows 0 to B - 1.

    Args:
        device: where.
        cache: keys and values.
        prefill: for passes that are no decode step.
        answers: for their ids.
        steps: by batch size, all on `buffers`.
        buffers: of the steps.
        graphs: whether launches are recorded and run together.
    """

    def __init__(
        self,
        device: Device,
        cache: Cache,
        prefill: Prefill,
        answers: Answers,
        steps: dict[int, DecodeStep],
        buffers: DecodeBuffers,
        *,
        graphs: bool,
    ) -> None:
        self._device = device
        self._cache = cache
        self._prefill = prefill
        self._answers = answers
        self._steps = steps
        self._buffers = buffers
        self._graphs = graphs
        sequences = len(cache.pages.table)
        self._rows: dict[int, int] = {}
        self._free = list(range(sequences))
        self._seated: dict[int, tuple[int, int]] = {}
        self._wide: dict[int, Graph] = {}
        self._stride = round_up(sequences, WIDE_STEP)
        self._numbers = device.pinned(3 * self._stride * 4, "tokens of a batch")

    def promise(self, slot: int, tokens: int) -> bool:
        """Set aside room for a sequence of so many tokens; False where there is none now."""
        row = self._free[0]
        if not self._cache.pages.promise(row, tokens):
            return False
        self._rows[slot] = self._free.pop(0)
        return True

    def release(self, slot: int) -> None:
        """Forget the sequence in a slot."""
        row = self._rows.pop(slot)
        if row in self._seated:
            # The next sequence here may have the same slot and be as long as this one was.
            self._seated[row] = NOBODY
        self._cache.pages.release(row)
        self._free.append(row)
        self._free.sort()

    def run(self, pieces: Sequence[Piece]) -> list[int]:
        """Compute one pass; return the next id of every piece that answers, in order, the device done."""
        single = all(len(piece.ids) == 1 and piece.answers for piece in pieces)
        if single and len(pieces) <= max(self._steps):
            self._move_down(pieces)
        for piece in pieces:
            self._cache.grow(self._rows[piece.slot], piece.start + len(piece.ids))
        if single and len(pieces) <= max(self._steps):
            return self._step(pieces)
        return self._batch(pieces) if single and self._graphs else self._mixed(pieces)

    def forget(self) -> None:
        """Take every sequence out of the decode steps; what they have enqueued is done."""
        for row in list(self._seated):
            self._leave(row)

    def _step(self, pieces: Sequence[Piece]) -> list[int]:
        """One token of each of a few sequences: a decode step."""
        rows = [self._rows[piece.slot] for piece in pieces]
        for row in set(self._seated) - set(rows):
            self._leave(row)
        step = self._steps[next(size for size in sorted(self._steps) if size > max(rows))]
        ring = self._buffers.ring
        arriving = []
        for row, piece in zip(rows, pieces, strict=True):
            if self._seated.get(row) != (piece.slot, piece.start):
                # Whoever sat there, the host knows the next token, and the ring says it first.
                step.seat(row, piece.start, int(piece.ids[0]))
                arriving.append(row)
            self._seated[row] = (piece.slot, piece.start + 1)
        if self._graphs:
            step.graph().launch()
        else:
            step.enqueue()
        for row in arriving:
            ring.wait(row)
        ids = [ring.wait(row) for row in rows]
        self._device.synchronize()
        return ids

    def _batch(self, pieces: Sequence[Piece]) -> list[int]:
        """One token of each of many sequences: the kernels of prompts, head and choice as one graph."""
        count = bucket(len(pieces), self._stride)
        numbers = self._numbers.array.view(np.int32).reshape(3, self._stride)  # (ids, positions, rows)
        numbers[:] = -1  # an empty token
        if count not in self._wide:
            self._wide[count] = self._capture(count)
        for place, piece in enumerate(pieces):
            numbers[:, place] = piece.ids[0], piece.start, self._rows[piece.slot]
        self._wide[count].launch()
        return self._answers.ids(len(pieces))

    def _capture(self, count: int) -> Graph:
        ids, positions, rows = (self._numbers.address + each * self._stride * 4 for each in range(3))

        def launch() -> None:
            self._prefill.enqueue(ids, positions, rows, count)
            self._answers.launch(self._prefill.hidden, count)

        return recorded(self._device, launch)

    def _mixed(self, pieces: Sequence[Piece]) -> list[int]:
        """Any tokens of any sequences."""
        ids = np.concatenate([piece.ids for piece in pieces])
        positions = np.concatenate([np.arange(piece.start, piece.start + len(piece.ids)) for piece in pieces])
        rows = np.repeat([self._rows[piece.slot] for piece in pieces], [len(piece.ids) for piece in pieces])
        ends = np.cumsum([len(piece.ids) for piece in pieces]) - 1
        answering = [int(end) for end, piece in zip(ends, pieces, strict=True) if piece.answers]
        self._prefill.enqueue(ids, positions, rows)
        if answering:
            self._answers.launch(self._answers.gather(answering), len(answering))
        return self._answers.ids(len(answering))

    def _move_down(self, pieces: Sequence[Piece]) -> None:
        """Move sequences of a decode step out of rows that a smaller step would not compute."""
        batch = next(size for size in sorted(self._steps) if size >= len(pieces))
        for piece in pieces:
            row = self._rows[piece.slot]
            if row < batch:
                continue
            if self._free and self._free[0] < batch:
                target = self._free[0]
                self._free[0] = row
                self._free.sort()
            else:
                # A prompt that waits in a low row; its tokens do not mind where their table is.
                moving = {each.slot for each in pieces}
                other, target = next(
                    (slot, low) for slot, low in self._rows.items() if low < batch and slot not in moving
                )
                self._rows[other] = row
            self._cache.swap(row, target)
            self._rows[piece.slot] = target

    def _leave(self, row: int) -> None:
        del self._seated[row]
        max(self._steps.values(), key=lambda step: step.batch).end(row)


def recorded(device: Device, launch: Callable[[], None]) -> Graph:
    """Return a graph of what a function launches; it has run once, so that all is there that it needs."""
    launch()
    with device.capture() as capture:
        launch()
    return capture.graph
