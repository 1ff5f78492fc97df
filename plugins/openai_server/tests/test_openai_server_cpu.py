"""A server's own CPU time is the engine's, not a foreigner's."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from enginecmp.telemetry.contention import without_engine


def test_the_work_of_a_started_server_is_told(stub: Any, drive: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stub.url = f"http://127.0.0.1:{port}/v1"
    driver = drive(start=f"{sys.executable} {Path(__file__).with_name('openai_stub.py')} {port}")
    assert driver.session.process.pid in {member.pid for member in driver.session.family}
    # The kernel counts in hundredths of a second, so several requests may pass before it has counted one.
    used = (driver.request([5, 6, 7], 40)[2]["engine_cpu_seconds"] for _ in range(500))
    assert any(seconds > 0 for seconds in used)


def test_a_server_in_this_process_is_nobody_else(drive: Any) -> None:
    assert "engine_cpu_seconds" not in drive().request([5, 6, 7], 3)[2]


def test_what_the_engine_used_is_not_foreign() -> None:
    metrics = {"foreign_cpu_seconds": 1.5, "engine_cpu_seconds": 1.25, "steal_seconds": 0.5}
    assert without_engine(metrics) == {**metrics, "foreign_cpu_seconds": 0.25}
    assert without_engine(metrics | {"engine_cpu_seconds": 9.0})["foreign_cpu_seconds"] == 0.0
    assert without_engine({"foreign_cpu_seconds": 1.5}) == {"foreign_cpu_seconds": 1.5}
