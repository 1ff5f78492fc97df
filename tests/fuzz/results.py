"""Run folders that somebody else wrote: manifests, samples and telemetry with faults, read as `cmp stats` does."""

from __future__ import annotations

import atexit
import json
import math
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from enginecmp.errors import CmpError
from enginecmp.format.files import LAUNCHES, MANIFEST, SAMPLES, TELEMETRY
from enginecmp.format.text import visible
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import load_runs
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.decisions.decide import Questions, decide_more
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.export import to_csv, to_json, to_markdown
from enginecmp_analysis.render.first_screen import first_screen
from enginecmp_analysis.render.table import render
from fuzz.damage import damaged
from fuzz.runner import Target

_FILES = (MANIFEST, SAMPLES, TELEMETRY, LAUNCHES)
_NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64, 0.5, -0.5, 1e308, 1e-308)
_OTHERS = (
    None,
    True,
    "",
    "x",
    "\x1b]0;t\x07",
    "\u202e",
    "=1+1",
    "a|b",
    "<b>",
    "../../x",
    [],
    {},
    [[1]],
    {"a": [1]},
    1e400,
)


@cache
def _valid() -> dict[str, list[Any]]:
    """Return a small run: lines of each file as values; a manifest is one line."""
    with tempfile.TemporaryDirectory(prefix="enginecmp-fuzz-") as parent:
        run = write_run(simulate_run(Design(blocks=3, requests=3), engines=("a", "b")), Path(parent) / "run")
        content = {SAMPLES: [json.loads(line) for line in (run / SAMPLES).read_text().splitlines()]}
        content[MANIFEST] = [json.loads((run / MANIFEST).read_text())]
    reading = {"time_ns": 1, "sensor": "cpu", "launch": "b0-a", "values": {"cpu_mhz": 2500.0}, "conditions": []}
    content[TELEMETRY] = [{**reading, "time_ns": at * 10**9} for at in range(1, 6)]
    content[LAUNCHES] = [{"launch": "b0-a", "block": 0, "engine": "a", "status": "ok", "seconds": 1.0}]
    return content


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="enginecmp-fuzz-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def odd_values(draw: random.Random) -> bytes:
    """Return a run whose JSON is right and whose values, keys and lines are not."""
    content = json.loads(json.dumps(_valid()))
    for _ in range(draw.randint(1, 5)):
        lines = content[draw.choice((MANIFEST, SAMPLES, SAMPLES, TELEMETRY, LAUNCHES))]
        if draw.random() < 0.15:
            lines.insert(draw.randrange(len(lines) + 1), json.loads(json.dumps(draw.choice(lines))))
            continue
        _change(draw, lines[draw.randrange(len(lines))])
    return json.dumps({name: _lines(lines) for name, lines in content.items()}).encode()


def _lines(values: list[Any]) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


def _change(draw: random.Random, value: Any) -> None:
    """Put something else at one place of a nested value."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and draw.random() < 0.8:
            value = value[key]
            continue
        number = isinstance(value[key], int | float) and draw.random() < 0.7
        value[key] = draw.choice(_NUMBERS) if number else draw.choice((*_NUMBERS, *_OTHERS))
        if isinstance(value, dict) and draw.random() < 0.1:
            del value[key]
        return


def broken_lines(draw: random.Random) -> bytes:
    """Return a run of which one file is damaged as bytes."""
    files = {name: _lines(lines) for name, lines in _valid().items()}
    name = draw.choice(_FILES)
    files[name] = damaged(files[name].encode(), draw).decode("latin-1")
    return json.dumps(files).encode()


def check(content: bytes) -> None:
    """Read a run as `cmp stats` does, in all its forms; what it prints must be sound."""
    try:
        _read(content)
    except CmpError as error:
        # As every verb shows it.
        raise CmpError(visible(str(error))) from None


def _read(content: bytes) -> None:
    folder = _scratch()
    for name, text in json.loads(content).items():
        (folder / name).write_bytes(text.encode("latin-1", "backslashreplace"))
    options = Options(pairs=True, quantiles=True, details=True)
    analysis = analyse(load_runs([folder]), options)
    decide_more(analysis, options, Questions())
    assert all(visible(text).isprintable() for text, _ in render(analysis))
    assert all(visible(text).isprintable() for text, _ in first_screen(analysis, "cmp stats"))
    json.loads(to_json(analysis.report), parse_constant=lambda name: 1 / 0)
    to_csv(analysis.report)
    to_markdown(analysis)
    for comparison in analysis.report.comparisons:
        assert not comparison.ratio <= 0
        assert not comparison.ci_low > comparison.ci_high
    for summary in analysis.report.summaries:
        assert summary.n_launches > 0
        assert math.isnan(summary.mean) or summary.mean >= 0 or summary.metric.startswith(("leak", "allocator", "kv"))


TARGETS = (
    Target("results-values", odd_values, check),
    Target("results-bytes", broken_lines, check),
)
