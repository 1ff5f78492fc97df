"""Which files need not run again: only those of which every test passed, with the same inputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import custom_cuda_stamps
import pytest


def test_inputs_are_the_modules_that_are_imported_and_theirs() -> None:
    found = {str(path.relative_to(custom_cuda_stamps.CORE)) for path in custom_cuda_stamps.core_modules()}
    assert {"models/gguf_file.py", "models/gguf_keys.py", "testing/tiny_models.py", "types.py"} <= found
    assert "cli/run.py" not in found


@pytest.mark.parametrize(
    ("outcomes", "stamped"),
    [
        ({"one": "passed", "two": "passed"}, True),
        ({"one": "passed", "two": "skipped"}, True),
        ({"one": "passed", "two": "failed"}, False),
        ({"one": "passed"}, False),
        ({}, False),
    ],
)
def test_a_file_is_stamped_when_all_of_its_tests_ended_well(outcomes: dict[str, str], stamped: bool) -> None:
    passes = custom_cuda_stamps.Passes()
    file = Path("/somewhere/test_it.py")
    for name in ("one", "two"):
        passes.expect(file, f"test_it.py::{name}")
    for name, outcome in outcomes.items():
        for when in ("setup", "call", "teardown"):
            found = outcome if when == "call" else "passed"
            report: Any = SimpleNamespace(nodeid=f"test_it.py::{name}", when=when, failed=found == "failed")
            passes.saw(report)
    assert passes.whole() == ([file] if stamped else [])
