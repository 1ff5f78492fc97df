"""A launch against a real worker process with the fake engine: what goes wrong there ends here as one failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from enginecmp.errors import CannotWrite
from enginecmp.format.phases import Phase
from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines

PROMPT = (1, 2, 3, 4, 5)
DEADLINES = Deadlines(load_seconds=30, prefill_seconds=30, decode_seconds=30, score_seconds=30)


def fake_launch(fake: Plugin, tmp_path: Path, **extra: Any) -> Launch:
    options = LoadOptions(context_tokens=64, extra={key: str(value) for key, value in extra.items()})
    return Launch("fake", fake, log=tmp_path / "fake.log", options=options)


def drive(launch: Launch, model: ModelInfo, deadlines: Deadlines) -> None:
    """Go through load and one request; an error inside the request counts like one before it."""
    with launch:
        launch.load(model, deadlines.load_seconds)
        answer = launch.request(PROMPT, 8, deadlines)
    if answer["error"] is not None:
        error = answer["error"]
        raise LaunchFailure(error["message"], status="error", phase=Phase[answer["where"].upper()], kind=error["type"])


def run_to_failure(fake: Plugin, tiny: ModelInfo, tmp_path: Path, deadlines: Deadlines, **extra: Any) -> LaunchFailure:
    """Return the failure that must come."""
    launch = fake_launch(fake, tmp_path, **extra)
    with pytest.raises(LaunchFailure) as caught:
        drive(launch, tiny, deadlines)
    assert not psutil.pid_exists(launch.pid)
    return caught.value


def processes_of(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_until_gone(group: int) -> list[int]:
    end = time.monotonic() + 10
    while (left := processes_of(group)) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def test_what_the_worker_of_a_server_held_is_told_too(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    assert fake.info is not None
    replace = msgspec.structs.replace
    remote = replace(fake, info=replace(fake.info, remote=True))
    with Launch("server", remote, log=tmp_path / "log", options=LoadOptions(context_tokens=64)) as launch:
        assert "rss_bytes" not in launch.load(tiny, 30)["metrics"]
    assert (launch.peak_rss_bytes or 0) > 1 << 20


def test_a_request_is_stamped_on_the_fake_clock(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    with fake_launch(fake, tmp_path, launch_sd=0, request_sd=0, prefill_us=100, decode_us=1000) as launch:
        loaded = launch.load(tiny, 30)
        answer = launch.request(PROMPT, 4, DEADLINES)
    assert loaded["end_ns"] - loaded["start_ns"] >= 100_000_000
    gaps = [after - before for before, after in zip(answer["token_ns"], answer["token_ns"][1:], strict=False)]
    assert answer["token_ns"][0] - answer["start_ns"] == 500_000
    assert gaps == [1_000_000] * 3
    assert answer["output_tokens"] == 4
    assert answer["metrics"]["kv_cache_bytes"] == 8.0 * (len(PROMPT) + 4)


def test_the_environment_is_set_before_the_interpreter_starts(fake: Plugin, tmp_path: Path) -> None:
    options = LoadOptions(threads=3, numerics="exact")
    with Launch("fake", fake, log=tmp_path / "log", options=options) as launch:
        environment = psutil.Process(launch.pid).environ()
    assert environment["FAKE_THREADS"] == "3"
    assert environment["FAKE_EXACT"] == "1"


@pytest.mark.parametrize("phase", ["load", "prefill", "decode"])
@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        ("crash", "crash", "was killed by SIGSEGV"),
        ("kill", "crash", "was killed by SIGKILL"),
        ("illegal", "crash", "was killed by SIGILL (an instruction this processor refuses: build the engine anew"),
        ("exit", "crash", "exited with code 7"),
        ("garbage", "crash", "broke the protocol"),
        ("error", "error", "scripted error"),
        ("oom", "error", "out of memory"),
    ],
)
def test_a_fault_is_named_with_its_phase(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, phase: str, kind: str, status: str, says: str
) -> None:
    failure = run_to_failure(fake, tiny, tmp_path, DEADLINES, fault=f"{kind}@{phase}")
    assert failure.status == status
    assert says in str(failure)
    assert str(failure.phase) == phase or kind == "garbage"
    assert "\n" not in str(failure)


@pytest.mark.parametrize("phase", ["load", "prefill", "decode"])
def test_a_hang_ends_at_its_phases_deadline(fake: Plugin, tiny: ModelInfo, tmp_path: Path, phase: str) -> None:
    limits = {"load_seconds": 20.0, "prefill_seconds": 20.0, "decode_seconds": 20.0, f"{phase}_seconds": 0.5}
    if phase == "decode":
        limits["prefill_seconds"] = 3.0  # the host asks first at this deadline and sees that prefill is over
    failure = run_to_failure(fake, tiny, tmp_path, Deadlines(**limits), fault=f"hang@{phase}")
    assert failure.status == "timeout"
    assert str(failure.phase) == phase
    assert f"hung in {phase}" in str(failure)
    assert "0.5 s" in str(failure)


def test_a_crash_in_decode_says_after_how_many_tokens(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    failure = run_to_failure(fake, tiny, tmp_path, DEADLINES, fault="crash@decode:3")
    assert failure.tokens == 4  # the first came from prefill
    assert "after 4 tokens" in str(failure)


def test_the_log_keeps_what_the_engine_printed_last(
    fake: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cmp_test_loud.py").write_text(
        "import os\n"
        "from enginecmp import EngineInfo, hookimpl\n"
        "@hookimpl\n"
        "def cmp_engine():\n"
        "    return EngineInfo(name='loud', version='1', licence='MIT', devices=('cpu',), architectures=('llama',),\n"
        "                      quantizations=('F32',))\n"
        "@hookimpl\n"
        "def cmp_probe(options):\n"
        "    print('GPU is on fire', flush=True)\n"
        "    os._exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plugin = Plugin(name="loud", module="cmp_test_loud", info=fake.info)
    with (
        pytest.raises(LaunchFailure, match="it said: GPU is on fire") as failure,
        launch_of(plugin, tmp_path) as launch,
    ):
        launch.call("probe", 20, options={})
    assert "exited with code 9" in str(failure.value)


def test_a_plugin_that_cannot_be_imported_in_the_worker_is_an_error(fake: Plugin, tmp_path: Path) -> None:
    plugin = Plugin(name="gone", module="cmp_test_no_such_module", info=fake.info)
    with pytest.raises(LaunchFailure, match="No module named 'cmp_test_no_such_module'"), launch_of(plugin, tmp_path):
        pass


def test_an_interpreter_that_is_gone_is_a_failed_launch(fake: Plugin, tmp_path: Path) -> None:
    python = str(tmp_path / "venv" / "bin" / "python")
    plugin = Plugin(name="moved", module="cmp_test_moved", python=python, info=fake.info)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LaunchFailure) as caught:
        launch_of(plugin, tmp_path)
    assert str(caught.value) == f"moved: cannot start {python}: No such file or directory; install the engine again"
    assert (caught.value.status, caught.value.phase) == ("crash", Phase.START)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_log_that_cannot_be_written_is_an_error_of_the_results(fake: Plugin, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match=r"gone/log: cannot be written: No such file or directory"):
        launch_of(fake, tmp_path / "gone")


def launch_of(plugin: Plugin, tmp_path: Path) -> Launch:
    return Launch(plugin.name, plugin, log=tmp_path / "log", options=LoadOptions())


def test_killing_a_launch_ends_the_engines_children_too(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    with fake_launch(fake, tmp_path, child=1) as launch:
        launch.load(tiny, 30)
        assert len(processes_of(launch.pid)) >= 2
        launch.kill()
        assert wait_until_gone(launch.pid) == []


def test_closing_a_launch_ends_the_engines_children_too(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    with fake_launch(fake, tmp_path, child=1) as launch:
        launch.load(tiny, 30)
    assert launch.returncode == 0
    assert wait_until_gone(launch.pid) == []


_HOST = """
import sys, msgspec
from pathlib import Path
from enginecmp.format.phases import Phase
from enginecmp.launch.launch import Launch
from enginecmp.plugins.discovery import examine
from enginecmp.types import LoadOptions, ModelInfo
fake = examine("fake", "enginecmp.testing.fake_engine", "", "")
model = msgspec.json.decode(sys.argv[2], type=ModelInfo)
options = LoadOptions(extra={"child": "1", "fault": "hang@prefill"})
with Launch("fake", fake, log=Path(sys.argv[1]), options=options) as launch:
    launch.load(model, 30)
    print(launch.pid, flush=True)
    launch.call("request", 3600, token_ids=[1, 2], output_tokens=4)
"""


def test_killing_the_host_leaves_no_orphan(tiny: ModelInfo, tmp_path: Path) -> None:
    model = msgspec.json.encode(tiny).decode()
    command = [sys.executable, "-c", _HOST, str(tmp_path / "log"), model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        group = int(host.stdout.readline())
        assert len(processes_of(group)) >= 2
        host.send_signal(signal.SIGKILL)
    assert wait_until_gone(group) == []
