"""What the host's tests share: a tiny model, the fake engine, and the command line as a user calls it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from enginecmp.models.synth import write_synth
from enginecmp.plugins.discovery import examine
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import ModelInfo

FAKE_MODULE = "enginecmp.testing.fake_engine"
os.environ["ENGINECMP_TESTS"] = str(time.time_ns())
"""Part of the question that a gate asks, like every variable: no test is answered by what an earlier one proved."""
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background: what the tests start must hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    """A llama-shaped model of under 1 MB."""
    return write_synth(
        tmp_path_factory.mktemp("tiny") / "tiny-llama.gguf", like="tiny-llama", quantization="F32", seed=0
    )


@pytest.fixture(scope="session")
def fake() -> Plugin:
    """The fake engine's plugin."""
    plugin = examine("fake", FAKE_MODULE, "", "")
    assert plugin.error is None
    return plugin


def command_line(folder: Path) -> CommandLine:
    """Return what calls `cmp` in a folder, with the fake engine present."""

    def call(
        *arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [os.path.join(os.path.dirname(sys.executable), "cmp"), *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "CMP_PLUGINS": FAKE_MODULE, "COLUMNS": "80", "NO_COLOR": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


@pytest.fixture
def cmp(tmp_path: Path) -> CommandLine:
    """Call `cmp` in an empty folder, with the fake engine present."""
    return command_line(tmp_path)
