"""Files of other tools: damaged bytes, and well-formed JSON with values that no tool writes.

What is accepted must be a run that `cmp stats` reads.
"""

from __future__ import annotations

import atexit
import copy
import json
import random
import shutil
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.importers import read_file
from enginecmp.importers.folder import Choices, Source, select, write_run
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import load_run
from fuzz.damage import damaged
from fuzz.runner import TESTS, Target

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 3, 10**9, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400),
    *(float("nan"), float("inf"), -float("inf"), 1e300, 5e-324, 1e19),
    *("", "x", "1", "inf", "nan", "\ud800", "\x1b]0;x\x07", "line\nbreak", "\u202e", "poisson", "trace", "x" * 5000),
    *([], {}, [[]], [None], [1, 2, 3], {"a": 1}, [[[[[[[[1]]]]]]]]),
)


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="enginecmp-fuzz-"))
    atexit.register(shutil.rmtree, folder)
    return folder


@cache
def _samples() -> list[bytes]:
    """Return a file of every form."""
    folder = TESTS / "data" / "importers"
    return [path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.name != "README.md"]


@cache
def _values() -> list[list[Any]]:
    """Return the JSON values of the files that hold some."""
    found = []
    for content in _samples():
        lines = [content] if content.lstrip()[:2] in (b"[\n", b"{\n") else content.splitlines()
        try:
            found.append([json.loads(line) for line in lines])
        except ValueError:
            continue
    return found


def broken_bytes(draw: random.Random) -> bytes:
    """Return a file with faults anywhere in it, sometimes in another encoding."""
    content = draw.choice(_samples())
    if draw.random() < 0.1:
        content = content.decode().encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig")))
    return damaged(content, draw)


def odd_values(draw: random.Random) -> bytes:
    """Return JSON of the right form in which some values are others, missing or there twice."""
    documents = copy.deepcopy(draw.choice(_values()))
    for _ in range(draw.randint(1, 4)):
        place: Any = documents
        while True:
            if not place:
                break
            key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
            if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.85:
                place = place[key]
                continue
            match draw.randrange(5):
                case 0:
                    del place[key]
                case 1 if isinstance(place, list):
                    place.insert(key, copy.deepcopy(place[key]))
                case 2 if isinstance(place[key], int | float) and abs(place[key]) < 1e300:
                    place[key] = place[key] * draw.choice((-1, 0, 1e-12, 0.5, 2, 1e6, 1e12))
                case _:
                    place[key] = copy.deepcopy(draw.choice(_ODD))
            break
    return "\n".join(json.dumps(document) for document in documents).encode()


def check(content: bytes) -> None:
    """Import a file and read what was written, as `cmp import` and `cmp stats` do."""
    path = _scratch() / "input.json"
    path.write_bytes(content)
    tool, launches = read_file(path)
    choices = Choices(model="model")
    sources = select([Source("a", path, tool, launches)], choices)
    folder, _ = write_run(sources, choices, _scratch() / "out")
    try:
        run = load_run(folder)
        assert not run.warnings
        if zlib.crc32(content) % 8 == 0:
            analyse([run])
    except ResultsError as error:
        msg = f"imported, and then refused: {error}"
        raise AssertionError(msg) from error
    finally:
        shutil.rmtree(folder)


TARGETS = (
    Target("import-bytes", broken_bytes, check),
    Target("import-values", odd_values, check),
)
