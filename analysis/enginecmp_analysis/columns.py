"""Samples as columns: one numpy array a field, token stamps of all requests in one long array."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from enginecmp.types import Cell, Phase, Sample

PHASES: tuple[Phase, ...] = ("load", "warmup", "measure")
LOAD, WARMUP, MEASURE = range(3)

KEPT = 0
"""Code in `Columns.excluded` of a sample that nothing speaks against."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Every sample of one run, N requests, M token stamps.

    Attributes:
        engines: labels; `engine` indexes into them. Likewise `launches`, `cells` and `reasons`.
        launches: names of launches.
        cells: points of the grid.
        reasons: why samples were left out; entry `KEPT` is the empty string.
        engine: (N,) code of the engine.
        launch: (N,) code of the launch.
        cell: (N,) code of the cell.
        block: (N,) number of the block.
        order: (N,) position of the launch in its block.
        index: (N,) number of the request inside launch, cell and phase.
        phase: (N,) one of LOAD, WARMUP, MEASURE.
        excluded: (N,) code of the reason, KEPT when there is none.
        intended_ns: (N,) when the request should have started.
        start_ns: (N,) when it started.
        end_ns: (N,) when it was over.
        prompt_tokens: (N,) ids handed in.
        output_tokens: (N,) tokens generated.
        offsets: (N + 1,) request i owns token_ns[offsets[i]:offsets[i + 1]].
        token_ns: (M,) stamps of all tokens.
    """

    engines: tuple[str, ...]
    launches: tuple[str, ...]
    cells: tuple[Cell, ...]
    reasons: tuple[str, ...]
    engine: Ints
    launch: Ints
    cell: Ints
    block: Ints
    order: Ints
    index: Ints
    phase: Ints
    excluded: Ints
    intended_ns: Ints
    start_ns: Ints
    end_ns: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    offsets: Ints
    token_ns: Ints

    def __len__(self) -> int:
        """Return N, the number of samples."""
        return len(self.engine)


_INTEGER_FIELDS = tuple(f.name for f in fields(Columns))[4:-2]


class ColumnBuilder:
    """Collects samples one by one; `build` freezes them."""

    def __init__(self) -> None:
        self._codes: dict[str, dict[object, int]] = {"engine": {}, "launch": {}, "cell": {}, "excluded": {"": KEPT}}
        self._ints = {name: array("q") for name in _INTEGER_FIELDS}
        self._appends = tuple(self._ints[name].append for name in _INTEGER_FIELDS)
        self._counts = array("q", [0])
        self._tokens = array("q")

    def _code(self, column: str, value: object) -> int:
        known = self._codes[column]
        code = known.get(value)
        if code is None:
            code = known[value] = len(known)
        return code

    def add(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            OverflowError: a number does not fit 64 bits.
        """
        reason = exclusion_reason(sample.status, sample.flags)
        row = (
            self._code("engine", sample.engine),
            self._code("launch", sample.launch),
            self._code("cell", sample.cell),
            sample.block,
            sample.order,
            sample.index,
            PHASES.index(sample.phase),
            self._code("excluded", reason) if reason else KEPT,
            sample.intended_ns,
            sample.start_ns,
            sample.end_ns,
            sample.prompt_tokens,
            sample.output_tokens,
        )
        for append, value in zip(self._appends, row, strict=True):
            append(value)
        self._counts.append(len(sample.token_ns))
        self._tokens.fromlist(sample.token_ns)

    def build(self) -> Columns:
        """Return the columns of everything added so far."""
        ints = {name: _frozen(numbers) for name, numbers in self._ints.items()}
        return Columns(
            engines=tuple(str(name) for name in self._codes["engine"]),
            launches=tuple(str(name) for name in self._codes["launch"]),
            cells=tuple(cell for cell in self._codes["cell"] if isinstance(cell, Cell)),
            reasons=tuple(str(reason) for reason in self._codes["excluded"]),
            offsets=np.cumsum(np.frombuffer(self._counts, dtype=np.int64)),
            token_ns=_frozen(self._tokens),
            **ints,
        )


def _frozen(numbers: array[int]) -> Ints:
    """Return an array over the same memory; numpy refuses an empty buffer."""
    return np.frombuffer(numbers, dtype=np.int64) if numbers else np.empty(0, np.int64)


def exclusion_reason(status: str, flags: Iterable[str]) -> str:
    """Return why a sample is left out: its status when not ok, else its flags joined by "+", else ""."""
    return status if status != "ok" else "+".join(sorted(flags))
