"""The sensors' process: reads every sensor at its own pace and writes telemetry.jsonl itself.

Started by `enginecmp.telemetry.watch` as
`python -P -m enginecmp.telemetry.sampler FD PAGES_FD FILE MODULE...`. Each sensor has a thread, so one that
hangs costs its own values only. The host says which launch is under way over a socket
(`enginecmp.wire.protocol.Channel`); what the sensors see of it goes into shared pages that the host reads without
waking anybody. It ends when the host closes the socket, and its guardian ends it when the host is killed.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from enginecmp import clock
from enginecmp.errors import LaunchError, SensorAbsent
from enginecmp.format.records import TelemetryReading
from enginecmp.format.text import plain
from enginecmp.plugins.describe import told
from enginecmp.plugins.manager import load_object, manager_with
from enginecmp.telemetry.conditions import ConditionPages
from enginecmp.telemetry.tree import ProcessTree
from enginecmp.types import Sensor
from enginecmp.wire.protocol import Channel

MIN_PERIOD_SECONDS = 0.1
MAX_PERIOD_SECONDS = 10.0

SENSOR_SHARE = 0.0008
"""A sensor whose readings cost more than this share of a core is read less often, so that all stay below 0.5 %."""

_START_SECONDS = 3.0
_HANG_SECONDS = 10.0
_ERRORS_IN_A_ROW = 3
_LEAST_COSTS = 3
_NICENESS = 5
_LONGEST_SECONDS = 3600.0
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_VALUE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
_MOST_SENSORS, _MOST_VALUES, _MOST_FACTS_BYTES, _REASON = 32, 256, 1 << 16, 300


class Recorder:
    """What all sensors share: the file, the pages, and the launch under way.

    Args:
        path: telemetry.jsonl, appended to.
        pages: where conditions go.
        channel: to the host, for what it must be told.
    """

    def __init__(self, path: Path, pages: ConditionPages, channel: Channel) -> None:
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        self._pages = pages
        self._channel = channel
        self.under_way: tuple[str, ProcessTree | None] = ("", None)
        self._file: int | None = None
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            _drop_torn_line(self._file)
        except OSError as error:
            self._stop_writing(error)

    def keep(self, sensor: str, reading: TelemetryReading, since_ns: int, period_seconds: float) -> None:
        """Write one reading; a disk that takes no more ends the file, not the conditions."""
        line = self._encoder.encode(reading) + b"\n"
        # A condition outlives three readings that do not come, no more.
        until_ns = reading.time_ns + round((3 * period_seconds + 1) * 1e9)
        with self._lock:
            self._pages.note(sensor, reading.conditions, since_ns, reading.time_ns, until_ns)
            if self._file is None:
                return
            end = os.lseek(self._file, 0, os.SEEK_END)
            try:
                if os.write(self._file, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, end)
                self._stop_writing(error)

    def tell(self, **message: Any) -> None:
        """Tell the host; it reads that while nothing is measured."""
        with contextlib.suppress(LaunchError):
            self._channel.send(message)

    def close(self) -> None:
        """Sync what was written."""
        with self._lock, contextlib.suppress(OSError):
            if self._file is not None:
                os.fsync(self._file)

    def _stop_writing(self, error: OSError) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self.tell(trouble=f"telemetry.jsonl cannot be written any more: {error.strerror or error}")


class Runner(threading.Thread):
    """Starts one sensor and reads it until told to stop.

    Attributes:
        label: its name.
        period_seconds: wanted time between two readings.
        facts: what it said of itself; None while or when it has not started.
        absent: why it cannot be read; "" while it can.
        settled: set when one of the two is known.
    """

    def __init__(self, sensor: Sensor, recorder: Recorder, stop: threading.Event) -> None:
        super().__init__(name=f"sensor-{sensor.name}", daemon=True)
        self.sensor = sensor
        self.label, self.period_seconds = sensor.name, sensor.period_seconds  # read once: they were checked
        self.facts: Mapping[str, object] | None = None
        self.absent = ""
        self.settled = threading.Event()
        self._recorder = recorder
        self._stop_asked = stop
        self._reading_since: float | None = None
        self._told = False

    def run(self) -> None:
        """Start, read, close."""
        try:
            facts = _facts(self.sensor.start())
        except SensorAbsent as error:
            self.absent = plain(str(error), _REASON)
        except BaseException as error:  # a plugin's sensor may raise anything
            self.absent = f"{self.label}: does not start: {told(error)}"
        else:
            if not self.absent:
                self.facts = facts
        self.settled.set()
        if self.facts is not None:
            self._read_on()
        with contextlib.suppress(BaseException):
            self.sensor.close()

    def give_up(self, reason: str) -> None:
        """Stop waiting for a sensor that has not settled."""
        self.absent = reason

    def tell_if_hanging(self) -> None:
        """Tell once of a reading that does not end."""
        since = self._reading_since
        if since is not None and not self._told and time.monotonic() - since > _HANG_SECONDS:
            self._told = True
            self._recorder.tell(lost={self.label: f"{self.label}: a reading does not end"})

    def _read_on(self) -> None:
        wanted = min(max(MIN_PERIOD_SECONDS, self.period_seconds), _LONGEST_SECONDS)
        period, errors = wanted, 0
        costs: deque[float] = deque(maxlen=5)
        last_ns = 0
        # On a common grid, so that the sensors wake together and the machine is left alone in between.
        while not self._stop_asked.wait(period - time.monotonic() % period):
            launch, tree = self._recorder.under_way
            self._reading_since = time.monotonic()
            began = time.thread_time()
            now_ns = clock.now_ns()
            try:
                values, conditions = self.sensor.read(tree.pids() if tree else ())
                reading = _reading(now_ns, self.label, launch, values, conditions)
                errors = 0
            except SensorAbsent as error:
                self._lost(plain(str(error), _REASON), now_ns, last_ns)
                return
            except BaseException as error:  # a plugin's sensor may raise anything
                errors += 1
                if errors == _ERRORS_IN_A_ROW:
                    self._lost(f"{self.label}: cannot be read: {told(error)}", now_ns, last_ns)
                    return
                continue
            finally:
                self._reading_since = None
            self._recorder.keep(self.label, reading, last_ns or now_ns, period)
            last_ns = now_ns
            costs.append(time.thread_time() - began)
            # The median: one costly reading now and then, as the first often is, is no reason.
            if len(costs) >= _LEAST_COSTS:
                # Whole steps: the grid stays common.
                steps = math.ceil(min(median(costs) / SENSOR_SHARE, MAX_PERIOD_SECONDS) / wanted)
                period = wanted * max(1, steps)

    def _lost(self, reason: str, now_ns: int, last_ns: int) -> None:
        nothing = TelemetryReading(time_ns=now_ns, sensor=self.label, launch="", values={})
        self._recorder.keep(self.label, nothing, last_ns or now_ns, 0)
        self._told = True
        self._recorder.tell(lost={self.label: reason})


def _reading(
    now_ns: int, sensor: str, launch: str, values: Mapping[Any, Any], conditions: Sequence[Any]
) -> TelemetryReading:
    """Check what a sensor returned; a value that is no number was not measured, and is absent.

    Raises:
        ValueError: it is not what a reading holds.
    """
    if len(values) > _MOST_VALUES or isinstance(conditions, str) or len(conditions) > _MOST_VALUES:
        msg = f"expected at most {_MOST_VALUES} values and a sequence of conditions, got {len(values)} values"
        raise ValueError(msg)
    if wrong := [name for name in values if not isinstance(name, str) or not _VALUE_NAME.fullmatch(name)]:
        msg = f"expected names of values, letters, digits and _, at most 64, got {plain(repr(wrong[0]), 80)}"
        raise ValueError(msg)
    if wrong := [name for name, value in values.items() if isinstance(value, (str, bytes))]:
        msg = f"expected numbers, got text as {wrong[0]}"
        raise ValueError(msg)
    numbers = {name: float(value) for name, value in values.items()}
    return TelemetryReading(
        time_ns=now_ns,
        sensor=sensor,
        launch=launch,
        values={name: value for name, value in numbers.items() if math.isfinite(value)},
        conditions=[condition for condition in conditions if _NAME.fullmatch(condition)],
    )


def _facts(facts: Mapping[str, object]) -> Mapping[str, object]:
    """Return a sensor's facts as the manifest can hold them.

    Raises:
        ValueError: they are too many.
    """
    encoded = msgspec.msgpack.encode(dict(facts), enc_hook=str)
    if len(encoded) > _MOST_FACTS_BYTES:
        msg = f"expected at most {_MOST_FACTS_BYTES} bytes of facts, got {len(encoded)}"
        raise ValueError(msg)
    return msgspec.msgpack.decode(encoded, type=dict[str, object])


def _drop_torn_line(file: int) -> None:
    """Cut off what a killed writer left behind the last whole line."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        begin = max(0, end - 4096)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)


def own_sensors() -> list[Sensor]:
    """Return the sensors that come with the host."""
    from enginecmp.telemetry.cpu import CpuSensor
    from enginecmp.telemetry.nvml import NvmlSensor
    from enginecmp.telemetry.process import ProcessSensor
    from enginecmp.telemetry.rapl import RaplSensor

    return [CpuSensor(), ProcessSensor(), RaplSensor(), NvmlSensor()]


def gather(modules: Iterable[str]) -> tuple[list[Sensor], dict[str, dict[str, object]]]:
    """Return our sensors and those of plugins, each name once, and what is wrong with the others."""
    sensors = own_sensors()
    wrong: dict[str, dict[str, object]] = {}
    for module in modules:
        try:
            for sensor in _brought(module):
                if not _NAME.fullmatch(sensor.name) or not math.isfinite(sensor.period_seconds):
                    msg = f"expected a lower-case name and a period in seconds, got {plain(repr(sensor.name), 80)}"
                    raise ValueError(msg)
                if sensor.name in {known.name for known in sensors}:
                    msg = f"a sensor named '{sensor.name}' is already there"
                    raise ValueError(msg)
                sensors.append(sensor)
        except BaseException as error:  # a plugin may raise anything
            wrong[module] = {"absent": f"{module}: its cmp_telemetry failed: {told(error)}"}
    return sensors, wrong


def _brought(module: str) -> list[Sensor]:
    """Return the sensors of a plugin, asked in a thread: one that hangs costs its own only.

    Raises:
        TimeoutError: it did not answer.
        BaseException: whatever the plugin raised.
    """
    found: list[Sensor] = []
    raised: list[BaseException] = []

    def collect() -> None:
        try:
            answers = manager_with(load_object(module)).hook.cmp_telemetry()
            found.extend(islice((sensor for brought in answers for sensor in brought), _MOST_SENSORS))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(_START_SECONDS)
    if thread.is_alive():
        msg = f"no answer within {_START_SECONDS:g} s"
        raise TimeoutError(msg)
    if raised:
        raise raised[0]
    return found


def start(runners: Sequence[Runner]) -> dict[str, dict[str, object]]:
    """Start every sensor at once; return its facts, or the reason why it is absent."""
    end = time.monotonic() + _START_SECONDS
    for runner in runners:
        runner.start()
    found: dict[str, dict[str, object]] = {}
    for runner in runners:
        if not runner.settled.wait(max(0.0, end - time.monotonic())):
            runner.give_up(f"{runner.label}: did not start within {_START_SECONDS:g} s")
        name = runner.label
        found[name] = {"absent": runner.absent} if runner.facts is None else {"facts": runner.facts}
    return found


def main(arguments: list[str]) -> int:
    """Serve one host until it closes the socket."""
    fd, pages_fd = map(int, arguments[:2])
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)  # an engine comes first
    channel = Channel(socket.socket(fileno=fd))
    recorder = Recorder(Path(arguments[2]), ConditionPages(pages_fd), channel)
    sensors, wrong = gather(arguments[3:])
    stop = threading.Event()
    runners = [Runner(sensor, recorder, stop) for sensor in sensors]
    recorder.tell(facts={**start(runners), **wrong})
    gc.collect()
    gc.freeze()
    while (message := channel.receive()) is not None:
        if message["op"] == "watch":
            recorder.under_way = (message["launch"], ProcessTree(message["pid"]))
            continue
        recorder.under_way = ("", None)
        for runner in runners:
            runner.tell_if_hanging()
    stop.set()
    for runner in runners:
        runner.join(0.2)
    recorder.close()
    # Not sys.exit: a sensor that hangs would keep the interpreter from ending.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
