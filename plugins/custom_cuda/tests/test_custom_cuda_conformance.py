"""The conformance suite over the emulated device, through the host and its workers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def test_the_conformance_suite_passes_on_the_emulated_device(emulated: Any) -> None:
    """The parts that the tests here do not have: the worker, discovery, units, the reference engine in float32."""
    chosen = "reference_computes or discovery or probe or metrics or unknown_option or staggered and 2 or uninstalled"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "enginecmp.testing"]
    command += ["--engine", "custom_cuda", "--engine-device", "emulated", "-k", chosen]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout
    assert "6 passed" in result.stdout or "7 passed" in result.stdout
