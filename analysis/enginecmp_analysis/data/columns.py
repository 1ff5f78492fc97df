"""Samples as columns: one numpy array a field, token stamps of all requests in one long array."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import PROFILED, Asked, Cell, Sample, SamplePhase

PHASES: tuple[SamplePhase, ...] = ("load", "warmup", "measure")
LOAD, WARMUP, MEASURE = range(3)
_PHASE_CODES = {name: code for code, name in enumerate(PHASES)}
_LARGEST = 2**63 - 1

MOST_NS = 2**62
"""Stamps closer to zero than this have differences that fit 64 bits."""

MOST_METRIC = 1e18
"""No number of bytes or seconds is as large as that."""

KNOWN_METRICS = frozenset(
    {
        "rss_bytes",
        "peak_rss_bytes",
        "empty_rss_bytes",
        "startup_seconds",
        "load_parse_seconds",
        "load_map_seconds",
        "load_init_seconds",
        "first_token_from_start_seconds",
        "operation_seconds",
        "weights_bytes",
        "kv_cache_bytes",
        "allocated_bytes",
        "reserved_bytes",
        "asked_request",
        "asked_output_tokens",
        "asked_known_tokens",
        "asked_may_end",
        "prefix_cache_hit_tokens",
        "cached_prompt_tokens",
        "device_prefill_seconds",
        "device_decode_seconds",
        "tokens_per_step",
        "draft_acceptance_rate",
        "valid_json_share",
        "first_visible_token_seconds",
        "network_round_trip_seconds",
        "http_round_trip_seconds",
        "gpus",
        *(f"{name}_seconds" for name in PROFILED),
    }
)
"""Names in `Sample.metrics` that something is derived from, and numbers of `Sample.asked` under names of ours; the
others stay in the file."""

MOST_ERRORS = 3
"""Different texts of errors that are kept of an engine."""

MOST_TEXT = 200
"""Characters of each."""

KEPT = 0
"""Code in `Columns.excluded` of a sample that nothing speaks against."""

FAILED = frozenset({"error", "timeout", "crash"})
"""Reasons of samples that did not end well; every other reason is one or more flags."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
        metrics: name → (N,) values of `Sample.metrics`, NaN where a sample lacks it; names that no sample has are
            absent.
        errors: code of an engine and reason → texts of its samples that failed so, each once, `MOST_ERRORS` at most.
        told: launches and cells of which averages are told: their requests are not all here, so that no rate of the
            launch follows from them.
        replaces: launch → the launch of the same block that it repeats.
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
    metrics: Mapping[str, Floats] = field(default_factory=dict)
    told: frozenset[tuple[str, Cell]] = frozenset()
    replaces: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[tuple[int, str], Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return N, the number of samples."""
        return len(self.engine)

    def metric(self, name: str) -> Floats:
        """Return (N,) values of one of `KNOWN_METRICS`, NaN where it is absent."""
        values = self.metrics.get(name)
        return np.full(len(self), np.nan) if values is None else values

    def failed(self) -> NDArray[np.bool_]:
        """Return (N,) which samples did not end well."""
        codes = [code for code, reason in enumerate(self.reasons) if reason in FAILED]
        found: NDArray[np.bool_] = np.isin(self.excluded, codes)
        return found

    def flagged(self, flag: str) -> NDArray[np.bool_]:
        """Return (N,) whether a sample that ended well carries a flag."""
        codes = [code for code, reason in enumerate(self.reasons) if flag in reason.split("+")]
        found: NDArray[np.bool_] = np.isin(self.excluded, codes)
        return found


_INTEGER_FIELDS = tuple(f.name for f in fields(Columns))[4:-6]

_CHUNK = 8192
"""Rows held as Python objects before they become numbers."""


class ColumnBuilder:
    """Collects samples one by one; `build` freezes them.

    Args:
        brought: names in `Sample.metrics` that are kept beside `KNOWN_METRICS`.
    """

    def __init__(self, brought: Iterable[str] = ()) -> None:
        self._known = KNOWN_METRICS.union(brought)
        self._engines: dict[str, int] = {}
        self._launches: dict[str, int] = {}
        self._cells: dict[Cell, int] = {}
        self._reasons: dict[str, int] = {"": KEPT}
        self._rows: list[tuple[int, ...]] = []
        self._chunks: list[Ints] = []
        self._counts = array("q", [0])
        self._tokens = array("q")
        self._metrics: dict[str, array[float]] = {}
        self._errors: dict[tuple[int, str], list[str]] = {}
        self._replaces: dict[str, str] = {}

    def add(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            OverflowError: a number does not fit 64 bits.
        """
        engines, launches, cells, reasons = self._engines, self._launches, self._cells, self._reasons
        reason = exclusion_reason(sample.status, sample.flags) if sample.flags or sample.status != "ok" else ""
        row = (
            engines.setdefault(sample.engine, len(engines)),
            launches.setdefault(sample.launch, len(launches)),
            cells.setdefault(sample.cell, len(cells)),
            sample.block,
            sample.order,
            sample.index,
            _PHASE_CODES[sample.phase],
            reasons.setdefault(reason, len(reasons)),
            sample.intended_ns,
            sample.start_ns,
            sample.end_ns,
            sample.prompt_tokens,
            sample.output_tokens,
        )
        if max(row) > _LARGEST or min(row) < -_LARGEST:
            msg = f"a number is beyond {_LARGEST}"
            raise OverflowError(msg)
        self._tokens.fromlist(sample.token_ns)
        self._counts.append(len(sample.token_ns))
        self._rows.append(row)
        if isinstance(sample.replaces, str):
            self._replaces.setdefault(sample.launch, sample.replaces)
        if sample.error and reason in FAILED:
            told = self._errors.setdefault((row[0], reason), [])
            text = sample.error[:MOST_TEXT]
            if len(told) < MOST_ERRORS and text not in told:
                told.append(text)
        if isinstance(sample.asked, Asked):
            asked = sample.asked
            numbers = {
                "asked_request": asked.request,
                "asked_output_tokens": asked.output_tokens,
                "asked_known_tokens": asked.known_tokens,
                "asked_may_end": asked.may_end,
            }
            self._add_metrics({**sample.metrics, **numbers})
        elif sample.metrics:
            self._add_metrics(sample.metrics)
        if len(self._rows) == _CHUNK:
            self._flush()

    def _add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Append to the columns of the names known; a name that comes up late is absent before."""
        number = len(self._counts) - 2
        for name in self._known.intersection(metrics):
            column = self._metrics.setdefault(name, array("d"))
            if len(column) < number:
                column.extend(array("d", [math.nan]) * (number - len(column)))
            value = metrics[name]
            # What nothing can hold or take was not measured; sums of it would overflow, differences turn a sign.
            column.append(value if 0 <= value < MOST_METRIC else math.nan)

    def _flush(self) -> None:
        self._chunks.append(np.array(self._rows, dtype=np.int64).reshape(-1, len(_INTEGER_FIELDS)).T)
        self._rows = []

    def build(self) -> Columns:
        """Return the columns of everything added so far."""
        self._flush()
        columns = np.concatenate(self._chunks, axis=1)
        self._chunks = [columns]
        return Columns(
            engines=tuple(self._engines),
            launches=tuple(self._launches),
            cells=tuple(self._cells),
            reasons=tuple(self._reasons),
            offsets=np.cumsum(_frozen(self._counts)),
            token_ns=_frozen(self._tokens),
            metrics={name: _filled(column, columns.shape[1]) for name, column in self._metrics.items()},
            errors=dict(self._errors),
            replaces=dict(self._replaces),
            **dict(zip(_INTEGER_FIELDS, columns, strict=True)),
        )


def _frozen(numbers: array[int]) -> Ints:
    """Return an array over the same memory; numpy refuses an empty buffer."""
    return np.frombuffer(numbers, dtype=np.int64) if numbers else np.empty(0, np.int64)


def _filled(numbers: array[float], n: int) -> Floats:
    """Return a column of n values; what is missing at its end is absent."""
    values = np.full(n, np.nan)
    values[: len(numbers)] = numbers
    return values


def exclusion_reason(status: str, flags: Iterable[str]) -> str:
    """Return why a sample is left out: its status when not ok, else its flags joined by "+", else ""."""
    if status != "ok":
        return status
    names = sorted(flags)
    # A flag without a name is one too.
    return ("+".join(names) or "unnamed") if names else ""
