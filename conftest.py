"""What concerns every test file of the repository: costly ones that need not run again are left out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

# Outside of this folder pytest reads this file and not pyproject.toml, as for `pytest --pyargs enginecmp.testing`.
sys.path.append(str(Path(__file__).parent / "tests"))
import unchanged

passes = unchanged.Passes()
stamps: dict[Path, Path] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Leave out what passed as it is, unless somebody asks for one of the files, or for all."""
    if any("::" in argument for argument in config.args) or config.getoption("keyword"):
        return
    for item in items:
        file, mark = item.path, item.get_closest_marker("unchanged")
        if file not in stamps:
            if mark is not None:
                stamps[file] = unchanged.stamp_of(file, *mark.args)
            elif unchanged.STAMP in item.stash:
                stamps[file] = item.stash[unchanged.STAMP]
            else:
                continue
        if not (unchanged.everything() or unchanged.named(config, item)) and stamps[file].is_file():
            item.add_marker(pytest.mark.skip(reason=unchanged.REASON))
        else:
            passes.expect(file, item.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """See how a test ended."""
    passes.saw(report)


def pytest_sessionfinish() -> None:
    """Note which files passed as a whole."""
    for file in passes.whole():
        stamps[file].parent.mkdir(parents=True, exist_ok=True)
        stamps[file].touch()
