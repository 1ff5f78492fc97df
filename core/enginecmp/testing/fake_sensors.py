"""Fake sensors: a plugin of sensors alone whose readings stand in a file.

Use it with `CMP_PLUGINS=enginecmp.testing.fake_engine,enginecmp.testing.fake_sensors` and `FAKE_SENSORS=FILE`, a JSON
file with one sensor, or a list of them:

    {"name": "fake", "period_seconds": 0.1, "facts": {"made_up": true},
     "readings": [{"from": 1, "values": {"fake_watts": 40.0}},
                  {"from": 5, "values": {"fake_watts": 90.0}, "conditions": ["gpu_throttled"]},
                  {"from": 9, "act": "lost"}]}

The file is read anew at every reading, and the last entry whose "from" is not above the number of the reading (from 1)
holds: a test scripts the numbers beforehand, or replaces the file when it wants a change. "energy" in place of a value
is a rate: {"energy": {"cpu_energy_joules": 25.0}} counts 25 joules a second. "absent" beside "name" gives the reason
why the sensor cannot start. "act" is lost (it says it is gone), error (it raises), hang, or what it does to their
process: kill, stop or exit. Without the variable there are no sensors.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enginecmp import clock
from enginecmp.errors import SensorAbsent
from enginecmp.hookspecs import hookimpl
from enginecmp.types import Sensor

VARIABLE = "FAKE_SENSORS"


class FakeSensor:
    """One scripted sensor.

    Args:
        name: which of the file's sensors.
        period_seconds: wanted time between two readings.
    """

    def __init__(self, name: str, period_seconds: float) -> None:
        self.name = name
        self.period_seconds = period_seconds
        self._readings = 0
        self._start_ns = 0

    def start(self) -> Mapping[str, object]:
        """Return the scripted facts.

        Raises:
            SensorAbsent: the script says so.
        """
        script = self._script()
        if "absent" in script:
            raise SensorAbsent(script["absent"])
        self._start_ns = clock.now_ns()
        return dict(script.get("facts", {}))

    def read(self, pids: Sequence[int]) -> tuple[Mapping[str, float], Sequence[str]]:
        """Return what the script holds for this reading, or do what it says.

        Raises:
            SensorAbsent: "act" is "lost".
            RuntimeError: "act" is "error".
        """
        self._readings += 1
        entry: dict[str, Any] = {}
        for candidate in self._script().get("readings", []):
            if candidate.get("from", 1) <= self._readings:
                entry = candidate
        match entry.get("act"):
            case "lost":
                msg = f"{self.name}: scripted to be lost"
                raise SensorAbsent(msg)
            case "error":
                msg = "scripted error"
                raise RuntimeError(msg)
            case "hang":
                time.sleep(3600)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "exit":
                os._exit(7)
        seconds = (clock.now_ns() - self._start_ns) / 1e9
        energy = {name: rate * seconds for name, rate in entry.get("energy", {}).items()}
        return {**entry.get("values", {}), **energy}, entry.get("conditions", [])

    def close(self) -> None:
        """Nothing stays open."""

    def _script(self) -> dict[str, Any]:
        return next(script for script in _scripts() if script["name"] == self.name)


def _scripts() -> list[dict[str, Any]]:
    path = os.environ.get(VARIABLE)
    if not path:
        return []
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return content if isinstance(content, list) else [content]


@hookimpl
def cmp_telemetry() -> list[Sensor]:
    """Return the scripted sensors."""
    return [FakeSensor(script["name"], script.get("period_seconds", 0.1)) for script in _scripts()]
