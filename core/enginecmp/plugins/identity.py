"""What a plugin's facts depend on, as one hash, and the facts that are known for a hash from earlier commands.

Importing every plugin for every command would take seconds. A plugin's facts hold as long as its files, the set of
installed distributions (versions of wrapped engines are facts) and this program are what they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator

import msgspec

import enginecmp
from enginecmp.plugins.facts import MAX_ANSWER_BYTES, Answer, Facts, read_answer
from enginecmp.plugins.own_files import keep, own_folder, read_own
from enginecmp.plugins.plugin import Plugin

_MOST_FILES = 5000
_MOST_ENTRIES = 200
_FOLDER = "plugin-facts"


def surroundings() -> str:
    """Return a hash of what all plugins' facts depend on: this program, the interpreter, what is installed."""
    return _hash(
        [
            *(enginecmp.__version__, sys.version, sys.prefix, repr(Facts.__struct_fields__)),
            *_stamps(_files("enginecmp")),
            *_distributions(),
        ]
    )


def identity(plugin: Plugin, around: str, *, environment: bool) -> str:
    """Return a hash of what the facts of a plugin depend on.

    Args:
        plugin: named, its facts not yet known.
        around: from `surroundings`.
        environment: take in the environment's variables too.
    """
    parts = [around, plugin.module, plugin.distribution, plugin.version]
    parts += _stamps(_files(_top(plugin)))
    if environment:
        parts += [f"{name}={value}" for name, value in sorted(os.environ.items())]
    return _hash(parts)


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def _files(top: str) -> Iterator[str]:
    """Yield the files of a top-level package or module without importing it."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        yield spec.origin or ""
        return
    for location in spec.submodule_search_locations:
        for folder, folders, names in os.walk(location):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            yield from (os.path.join(folder, name) for name in sorted(names))


def _stamps(paths: Iterator[str]) -> Iterator[str]:
    for path, _ in zip(paths, range(_MOST_FILES), strict=False):
        try:
            found = os.stat(path)
        except OSError:
            continue
        yield f"{path} {found.st_size} {found.st_mtime_ns}"


def _distributions() -> Iterator[str]:
    """Yield what is installed: the names of the metadata folders hold the versions."""
    for folder in sys.path:
        with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
            yield from sorted(
                f"{folder} {entry.name} {entry.stat().st_mtime_ns}"
                for entry in entries
                if entry.name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth"))
            )


def package_hash(plugin: Plugin) -> str:
    """Return a hash of the content of a plugin's top-level package, its binaries included."""
    digest = hashlib.sha256()
    for path, _ in zip(_files(_top(plugin)), range(_MOST_FILES), strict=False):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            digest.update(f"{os.path.basename(path)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def known(key: str) -> Facts | None:
    """Return the facts on file for an identity; None where there are none that we wrote."""
    data = read_own(own_folder(_FOLDER), key, MAX_ANSWER_BYTES)
    return None if data is None else read_answer(data).facts


def remember(key: str, facts: Facts) -> None:
    """Keep facts for later commands; where nothing can be written the plugin is asked again."""
    keep(own_folder(_FOLDER), key, msgspec.msgpack.encode(Answer(facts=facts)), _MOST_ENTRIES)


def _top(plugin: Plugin) -> str:
    return plugin.module.partition(":")[0].partition(".")[0]
