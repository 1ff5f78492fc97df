"""What tests give to runs, and reading what a run left on disk."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil
import pytest

from enginecmp.format.records import Sample

ONE_CELL = """
name = "mini"
primary_metric = "throughput_tokens_per_second"
[[cells]]
prompt_tokens = 8
output_tokens = 6
"""
"""Head of a scenario file: a name, a metric and one small cell; profiles and the rest follow."""

SCENARIO = """
name = "mini"
primary_metric = "throughput_tokens_per_second"
[[cells]]
prompt_tokens = 8
output_tokens = 4
[profile.full]
blocks = 2
requests = 2
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""
"""A scenario file of two short blocks, whose requests count however busy the machine is."""


def read_samples(folder: Path) -> list[Sample]:
    """Return every line of a run's samples.jsonl."""
    lines = (folder / "samples.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Sample) for line in lines]


def only_run(results: Path) -> Path:
    """Return the one run in a results folder."""
    runs = [path.parent for path in results.glob("*/manifest.json")]
    assert len(runs) == 1, runs
    return runs[0]


def require_droppable(folder: Path) -> None:
    """Skip a test whose files live in memory alone: their pages cannot be dropped."""
    inside = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    kind = max(inside, key=lambda part: len(part.mountpoint)).fstype
    if kind in ("tmpfs", "ramfs", "9p"):
        pytest.skip(f"{folder} is on {kind}, whose pages cannot be dropped")


def plant(root: Path, **files: str) -> None:
    """Write files of a machine below a root; "__" in a name is "/"."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
