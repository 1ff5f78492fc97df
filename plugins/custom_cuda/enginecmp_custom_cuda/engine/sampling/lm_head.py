"""The ids of a batch that went through the kernels of prompts: from residuals to choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .sampling import Sampler, Strategy

if TYPE_CHECKING:
    from ...device import Device
    from ...device.module import Launch
    from ...weights.model import DeviceModel
    from ..prefill.prefill import Prefill, Program

GREEDY = Strategy(temperature=0)


class LMHead:
    """From residuals to ids: the head, then the largest logit of every row.

    Args:
        device: where.
        model: its weights there.
        prefill: whose kernels multiply.
        rows: most rows at once.

    Attributes:
        best: address of uint64 (rows,): the choices of the last call, each an inverted id in the low word.
    """

    def __init__(self, device: Device, model: DeviceModel, prefill: Prefill, rows: int) -> None:
        self._device = device
        self._prefill = prefill
        self._row_bytes = model.config.width * 4
        vocabulary = model.head.rows
        self._logits = device.allocate(rows * vocabulary * 4, "logits of a batch")
        self._rows = device.allocate(rows * self._row_bytes, "residuals of a batch")
        self._zeros = device.allocate(rows * 4, "positions of a batch")
        device.fill(self._zeros.address, self._zeros.nbytes)
        self._best = device.allocate(rows * 8, "ids of a batch")
        self.best = self._best.address
        self._sampler = Sampler(
            device,
            logits=self._logits.address,
            largest=self.best,
            position=self._zeros.address,
            count=self._zeros.address,
            best=self.best,
            rows=rows,
            vocabulary=vocabulary,
        )
        self._heads: dict[tuple[int, int], Program] = {}
        self._choices: dict[int, list[Launch]] = {}

    def gather(self, tokens: Sequence[int]) -> int:
        """Copy residuals of the last call next to each other, and return where they are.

        Args:
            tokens: their places in the call, in the order of the ids.
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
        best = self._device.download(self.best, rows, np.uint64)
        return [0xFFFFFFFF - (int(each) & 0xFFFFFFFF) for each in best]
