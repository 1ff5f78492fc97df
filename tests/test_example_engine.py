"""docs/example-engine is what the docs promise: a working engine in three files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "docs" / "example-engine"


def test_the_example_has_three_files() -> None:
    assert sorted(path.name for path in EXAMPLE.iterdir() if path.is_file()) == [
        "README.md",
        "enginecmp_numpy_llama.py",
        "pyproject.toml",
    ]


def test_the_example_passes_the_conformance_suite(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--pyargs", "enginecmp.testing", "--engine", "numpy_llama", "-q"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLE), "CMP_PLUGINS": "enginecmp_numpy_llama"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout
