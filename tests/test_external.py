"""Engines that are not in this Python environment: executables, and what engines.toml may say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CommandLine
from helpers import only_run, read_samples

from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.plugins.discovery import discover
from enginecmp.plugins.external import ENGINES_VARIABLE
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions, ModelInfo

DOCS = Path(__file__).parent.parent / "docs"

FACTS = """
version = "1.0"
licence = "Apache-2.0"
devices = ["cpu"]
architectures = ["llama"]
quantizations = ["F32", "Q8_0"]
"""


@pytest.fixture(scope="session")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of the documents, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("executable") / "engine"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(path), str(DOCS / "executable-engine/engine.c")],
        check=True,
    )
    return path


def named(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    file = folder / "engines.toml"
    file.write_text(text)
    monkeypatch.setenv(ENGINES_VARIABLE, str(file))
    return next(plugin for plugin in discover() if plugin.source == str(file))


def test_an_executable_is_measured_like_any_engine(
    executable: Path, tiny: ModelInfo, cmp: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(tmp_path, f'[other]\ncommand = ["{executable}"]\n{FACTS}', monkeypatch)
    done = cmp(
        "run", "--engines", "other", "--scenario", "single", "--profile", "quick", "--blocks", "2",
        "--model", tiny.path, "--reference", "fake", "--out", str(tmp_path / "results"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not comparable" in done.stderr
    samples = [s for s in read_samples(only_run(tmp_path / "results")) if s.phase == "measure"]
    assert {(s.status, s.output_tokens, len(s.token_ns)) for s in samples} == {("ok", 8, 8)}
    assert all(s.start_ns <= s.token_ns[0] <= s.end_ns for s in samples)
    assert all("foreign_cpu_seconds" in s.metrics for s in samples)


def test_an_executable_that_refuses_a_request_says_why(
    executable: Path, tiny: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = named(tmp_path, f'[other]\ncommand = ["{executable}"]\n{FACTS}', monkeypatch)
    with Launch("other", plugin, log=tmp_path / "log", options=LoadOptions(context_tokens=8)) as launch:
        launch.load(tiny, 10)
        with pytest.raises(LaunchFailure, match="other: more tokens than the context holds"):
            launch.call("request", 10, token_ids=[1] * 6, output_tokens=4)
        assert launch.call("request", 10, token_ids=[1] * 6, output_tokens=3)["output_tokens"] == 3


def test_an_executable_does_not_outlive_the_host(executable: Path, tmp_path: Path) -> None:
    (tmp_path / "engines.toml").write_text(f'[other]\ncommand = ["{executable}"]\n{FACTS}')
    host = subprocess.Popen(
        [sys.executable, "-c", _HOST, str(tmp_path / "log")],
        env={**os.environ, ENGINES_VARIABLE: str(tmp_path / "engines.toml")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdout is not None
    pid = int(host.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    for _ in range(500):
        if not _alive(pid):
            return
        time.sleep(0.01)
    pytest.fail("the executable is still there")


_HOST = """
import sys, time
from pathlib import Path
from enginecmp.launch.launch import Launch
from enginecmp.plugins.discovery import discover, find
from enginecmp.types import LoadOptions
with Launch("other", find("other", discover()), log=Path(sys.argv[1]), options=LoadOptions()) as launch:
    print(launch.pid, flush=True)
    time.sleep(60)
"""


def _alive(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}") / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (f'command = ["./absent"]\n{FACTS}', "expected an executable, found none at './absent'"),
        (f'comand = ["/bin/true"]\n{FACTS}', "did you mean 'command'"),
        (FACTS, "expected either command, or python and module"),
        (f'command = ["/bin/true"]\npython = "/usr/bin/python3"\nmodule = "x"\n{FACTS}', "expected either command"),
        (
            f'command = ["/bin/true"]\npython = "/usr/bin/python3"\n{FACTS}',
            "expected either command, or python and module",
        ),
        ('command = ["/bin/true"]\nmax_concurrency = "two"', "EngineInfo.max_concurrency: expected int, got str"),
    ],
)
def test_a_wrong_table_is_a_broken_engine_with_the_reason(
    table: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = named(tmp_path, f"[other]\n{table}", monkeypatch)
    assert plugin.error is not None
    assert expected in plugin.error
    assert "[other]" in plugin.error


def test_a_file_that_is_not_toml_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = named(tmp_path, "[other", monkeypatch)
    assert "cannot be read" in (plugin.error or "")
    assert any(found.error is None for found in discover())
