"""Which costly test files need not run again: only those of which every test passed, with the same inputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import unchanged


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
    passes = unchanged.Passes()
    file = Path("/somewhere/test_it.py")
    for name in ("one", "two"):
        passes.expect(file, f"test_it.py::{name}")
    for name, outcome in outcomes.items():
        for when in ("setup", "call", "teardown"):
            found = outcome if when == "call" else "passed"
            report: Any = SimpleNamespace(nodeid=f"test_it.py::{name}", when=when, failed=found == "failed")
            passes.saw(report)
    assert passes.whole() == ([file] if stamped else [])


def test_a_stamp_is_of_the_file_the_host_and_the_folders_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*unchanged.HOST, "plugins/one", "plugins/other"):
        (tmp_path / name).mkdir(parents=True)
    file = tmp_path / "tests" / "test_it.py"
    file.write_text("one = 1")
    monkeypatch.setattr(unchanged, "ROOT", tmp_path)

    def stamp() -> Path:
        unchanged._hash_of.cache_clear()
        return unchanged.stamp_of(file, "plugins/one")

    seen = [stamp()]
    for change in ("core/it.py", "plugins/one/src.rs", "tests/helper.py", "tests/test_it.py"):
        (tmp_path / change).write_text("two = 2")
        seen.append(stamp())
    assert len(set(seen)) == 5
    for change in ("plugins/other/it.py", "tests/test_another.py", "core/notes.md"):
        (tmp_path / change).write_text("two = 2")
    assert stamp() == seen[-1]
