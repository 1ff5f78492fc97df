"""One measured quantity, and how several are shown and written."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..device import Device

SCHEMA = "enginecmp-custom-cuda-bench/1"


@dataclass(frozen=True)
class Measurement:
    """Repeated timings of one thing, whose result was checked.

    Attributes:
        name: what was measured.
        setting: how, such as {"grid": 264}.
        seconds: of one unit of the work, one value a repetition; empty on a device that is not timed.
        nbytes: read by one unit of the work, where bandwidth is the point.
        verified: what the work left behind was right.
    """

    name: str
    setting: Mapping[str, int | str]
    seconds: tuple[float, ...]
    verified: bool
    nbytes: int | None = None
    median: float | None = field(init=False)
    bytes_per_second: float | None = field(init=False)

    def __post_init__(self) -> None:
        median = statistics.median(self.seconds) if self.seconds else None
        object.__setattr__(self, "median", median)
        object.__setattr__(self, "bytes_per_second", self.nbytes / median if self.nbytes and median else None)


def table(measurements: Iterable[Measurement]) -> str:
    """Return the measurements as aligned columns: median, range and number of repetitions of each."""
    rows = [("what", "how", "median", "range", "n", "bandwidth", "verified")]
    for one in measurements:
        setting = " ".join(f"{key}={value}" for key, value in one.setting.items())
        verified = "yes" if one.verified else "NO"
        if one.median is None:
            rows.append((one.name, setting, "not timed", "", "", "", verified))
            continue
        spread = f"{microseconds(min(one.seconds))}..{microseconds(max(one.seconds))}"
        bandwidth = f"{one.bytes_per_second / 1e9:.0f} GB/s" if one.bytes_per_second else ""
        rows.append(
            (one.name, setting, f"{microseconds(one.median)} us", spread, str(len(one.seconds)), bandwidth, verified)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def microseconds(seconds: float) -> str:
    """Return a duration in microseconds with three significant digits or more."""
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def record(device: Device, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return what a JSON file says: the device, and every measurement with all its values."""
    return {
        "schema": SCHEMA,
        "device": {
            "kind": device.kind,
            "name": device.name,
            "architecture": device.architecture,
            "multiprocessors": device.multiprocessors,
            "total_bytes": device.total_bytes,
            "driver_version": ".".join(map(str, device.driver_version)),
            "timed": device.timed,
        },
        "measurements": [asdict(one) for one in measurements],
    }
