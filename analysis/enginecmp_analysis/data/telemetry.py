"""Sensor readings of a run: series over time, energy between two moments, and how long a condition held."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import ResultsError
from enginecmp.format.files import in_run
from enginecmp.format.records import TelemetryReading
from enginecmp.format.streams import read_lines
from enginecmp_analysis.data.columns import MOST_METRIC, MOST_NS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ENERGY = re.compile(r"(cpu|dram|gpu\d+)_energy_joules")
"""Counters of energy: of all CPU packages together, of their memory, which no package counts, and of each GPU."""

GPU = re.compile(r"gpu\d+_(busy_share|memory_bytes)")

KEPT = re.compile(
    r"(cpu|dram|gpu\d+)_(busy_cores|busy_share|memory_bytes|mhz|sm_mhz|celsius|watts|energy_joules)"
    r"|server_(requests_running|requests_waiting|kv_used_share|preemptions|prefix_query_tokens|prefix_hit_tokens)"
)
"""Values that something is derived from; those of single cores stay in the file."""

LEAST_READINGS = 3
"""A window with fewer readings of a counter inside it is shorter than the counter can tell."""

Interval = tuple[int, int]
"""Begin and end in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the sensors told, on the clock of the samples.

    Attributes:
        series: name → times in nanoseconds, rising, and values.
        conditions: name → intervals in which it held, from its first reading to the one that no longer told it.
    """

    series: dict[str, tuple[Ints, Floats]] = field(default_factory=dict)
    conditions: dict[str, list[Interval]] = field(default_factory=dict)

    def between(self, name: str, begin_ns: int, end_ns: int) -> tuple[Ints, Floats]:
        """Return the readings of a series inside [begin, end]; empty where there are none."""
        times, values = self.series.get(name, (np.empty(0, np.int64), np.empty(0)))
        first, last = np.searchsorted(times, begin_ns), np.searchsorted(times, end_ns, side="right")
        return times[first:last], values[first:last]

    def joules(self, begin_ns: int, end_ns: int) -> float:
        """Return the energy of all counters between two moments, straight lines between readings.

        NaN without a counter, outside its readings, or where it has too few of them to tell.
        """
        counters = [name for name in self.series if ENERGY.fullmatch(name)]
        return sum(self._counted(name, begin_ns, end_ns) for name in counters) if counters else np.nan

    def _counted(self, name: str, begin_ns: int, end_ns: int) -> float:
        times, values = self.series[name]
        inside = np.searchsorted(times, end_ns) - np.searchsorted(times, begin_ns)
        if inside < LEAST_READINGS or begin_ns < times[0] or end_ns > times[-1]:
            return np.nan
        # Differences first: stamps since boot and counters since whenever are larger than what is asked for.
        at = np.interp([0.0, float(end_ns - begin_ns)], (times - begin_ns).astype(np.float64), values - values[0])
        return float(at[1] - at[0]) if at[1] >= at[0] else np.nan

    def gpu_busy_share(self, begin_ns: int, end_ns: int) -> float:
        """Return the mean busy share of the busiest GPU between two moments; NaN where too few readings tell it."""
        means = [values.mean() for values in self._of_gpus("busy_share", begin_ns, end_ns)]
        return float(max(means, default=np.nan))

    def gpu_memory_bytes(self, begin_ns: int, end_ns: int) -> float:
        """Return the most memory in use on all GPUs between two moments; NaN where too few readings tell it."""
        found = self._of_gpus("memory_bytes", begin_ns, end_ns)
        return float(sum(values.max() for values in found)) if found else np.nan

    def server(self, begin_ns: int, end_ns: int) -> dict[str, float]:
        """Return what a server told of itself between two moments, by metric; NaN where too few readings tell it.

        Numbers of requests are means, the share of the KV cache is the largest reading, counters are differences of
        the last and the first reading.
        """

        def told(name: str) -> Floats:
            values = self.between(name, begin_ns, end_ns)[1]
            return values if len(values) >= LEAST_READINGS else np.empty(0)

        def mean(name: str) -> float:
            return float(values.mean()) if len(values := told(name)) else np.nan

        def counted(name: str) -> float:
            values = told(name)
            return float(values[-1] - values[0]) if len(values) and values[-1] >= values[0] else np.nan

        queries, share = counted("server_prefix_query_tokens"), told("server_kv_used_share")
        return {
            "server_running_requests": mean("server_requests_running"),
            "server_waiting_requests": mean("server_requests_waiting"),
            "server_kv_used_share": float(share.max()) if len(share) else np.nan,
            "server_preemptions": counted("server_preemptions"),
            "server_prefix_hit_share": counted("server_prefix_hit_tokens") / queries if queries > 0 else np.nan,
        }

    def _of_gpus(self, what: str, begin_ns: int, end_ns: int) -> list[Floats]:
        """Return the readings of every GPU that has enough of them."""
        names = [name for name in self.series if (form := GPU.fullmatch(name)) and form[1] == what]
        found = [self.between(name, begin_ns, end_ns)[1] for name in names]
        return [values for values in found if len(values) >= LEAST_READINGS]

    def intervals(self, condition: str, begin_ns: int, end_ns: int) -> int:
        """Return in how many intervals a condition held between two moments."""
        return sum(begin <= end_ns and end >= begin_ns for begin, end in self.conditions.get(condition, []))


def read_telemetry(path: Path) -> tuple[Telemetry, list[str]]:
    """Read telemetry.jsonl.

    A killed sampler leaves a torn line, at the end or, where the run was resumed, in the middle: lines that are no
    readings are passed over and counted.

    Returns:
        The readings, and notes.

    Raises:
        ResultsError: the file cannot be read.
    """
    decode = msgspec.json.Decoder(TelemetryReading).decode
    times: dict[str, array[int]] = {}
    values: dict[str, array[float]] = {}
    wanted: dict[str, bool] = {}
    held: dict[tuple[str, str], int] = {}
    conditions: dict[str, list[Interval]] = {}
    bad = 0
    latest = 0
    try:
        for line in read_lines(path):
            try:
                reading = decode(line)
                if abs(reading.time_ns) >= MOST_NS:
                    raise ValueError  # differences would overflow
            except (msgspec.DecodeError, ValueError, RecursionError):
                bad += 1
                continue
            latest = max(latest, reading.time_ns)
            for name, value in reading.values.items():
                if name not in wanted:
                    wanted[name] = KEPT.fullmatch(name) is not None
                if wanted[name] and abs(value) < MOST_METRIC:
                    times.setdefault(name, array("q")).append(reading.time_ns)
                    values.setdefault(name, array("d")).append(value)
            for condition in reading.conditions:
                held.setdefault((reading.sensor, condition), reading.time_ns)
            for key in [key for key in held if key[0] == reading.sensor and key[1] not in reading.conditions]:
                conditions.setdefault(key[1], []).append((held.pop(key), reading.time_ns))
    except (FileNotFoundError, OverflowError) as error:
        msg = f"{path}: cannot be read ({error})"
        raise ResultsError(msg) from error
    for (_, condition), begin in held.items():
        conditions.setdefault(condition, []).append((begin, latest))
    series = {name: _sorted(np.array(times[name], dtype=np.int64), np.array(values[name])) for name in times}
    notes = [f"{in_run(path)}: passed over {bad} line{'' if bad == 1 else 's'} that are no readings"] if bad else []
    return Telemetry(series, {name: sorted(found) for name, found in conditions.items()}), notes


def _sorted(times: Ints, values: Floats) -> tuple[Ints, Floats]:
    order = np.argsort(times, kind="stable")
    return times[order], values[order]
