"""What earlier gates proved, kept in the user's cache folder: the same question need not be asked twice.

An answer holds for one build of an engine, one build of the reference, one machine, one file and one text. Whatever
of that changes makes it another question; where a build cannot be told from files, nothing is kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from enginecmp.format.records import EQUIVALENT, NOT_COMPARABLE, REFERENCE, Equivalence
from enginecmp.plugins.identity import package_hash, surroundings
from enginecmp.plugins.own_files import keep, own_folder, read_own

if TYPE_CHECKING:
    from enginecmp.gate.gate import Gate
    from enginecmp.plugins.plugin import Plugin
    from enginecmp.types import LoadOptions, ModelInfo

FOLDER = "gate"

MOST_BYTES = 1 << 16
"""An entry is under 2 kB."""

MOST_ENTRIES = 1000

_SCHEMA = "enginecmp-gate/1"
_NUMBERS = ("mean_kl", "max_kl", "top1", "perplexity", "reference_perplexity", "nll_difference")
_LIMITS = ("nll_difference_low", "nll_difference_high")
"""Absent where the positions are too few for an interval."""

_OF_THE_SESSION = re.compile(
    r"PWD|OLDPWD|SHLVL|_|TERM.*|COLUMNS|LINES|NO_COLOR|LS_COLORS|PS\d|HIST.*|SSH_.*|TMUX.*|STY|WINDOW.*|DISPLAY|"
    r"WAYLAND_.*|DBUS_.*|XDG_(?!CACHE|CONFIG|DATA).*|USER|LOGNAME|MAIL|EDITOR|PAGER|LESS.*|LANG|LC_.*|TZ|HOSTNAME|"
    r"VIRTUAL_ENV_PROMPT|INVOCATION_ID|JOURNAL_STREAM|CMP_TRACE_PLUGINS|CMP_LAUNCH"
)
"""Variables that tell where a command is typed, not what it computes; every other one is part of the question."""


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    schema: str
    key: str
    proven_utc: str
    found: Equivalence


class Kept:
    """The answers on file for one gate.

    Args:
        gate: what engines are held against.
        reference_options: how the reference is loaded.
        fresh: read nothing; what is found is kept all the same.
    """

    def __init__(self, gate: Gate, reference_options: LoadOptions, *, fresh: bool) -> None:
        self._gate = gate
        self._fresh = fresh
        self._builds: dict[str, str | None] = {}
        reference = self._build(gate.reference)
        ids = hashlib.sha256(json.dumps(list(gate.token_ids)).encode()).hexdigest()
        limits = [gate.max_kl, gate.max_nll_increase, gate.timed_only]
        self._common: list[object] | None = None
        if reference is not None:
            options = msgspec.to_builtins(reference_options)
            self._common = [_SCHEMA, reference, options, gate.exact.sha256, ids, limits, _machine(), _environment()]

    def find(self, plugin: Plugin, options: LoadOptions, model: ModelInfo, question: str) -> Equivalence | None:
        """Return what an earlier gate found, with its date; None where nothing is on file that we wrote."""
        key = self._key(plugin, options, model, question)
        data = None if key is None or self._fresh else read_own(own_folder(FOLDER), key, MOST_BYTES)
        if data is None:
            return None
        try:
            entry = msgspec.json.decode(data, type=_Entry)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None
        whole = entry.schema == _SCHEMA and entry.key == key and re.fullmatch(r"[-0-9T:]{19}Z", entry.proven_utc)
        if not whole or not self._believable(entry.found, model, question):
            return None
        entry.found.proven_utc = entry.proven_utc
        return entry.found

    def keep(self, plugin: Plugin, options: LoadOptions, model: ModelInfo, question: str, found: Equivalence) -> None:
        """Keep what was found; an engine that failed has proven nothing, and is asked again."""
        key = self._key(plugin, options, model, question)
        if key is None or not self._believable(found, model, question):
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = _Entry(schema=_SCHEMA, key=key, proven_utc=now, found=found)
        keep(own_folder(FOLDER), key, msgspec.json.encode(entry), MOST_ENTRIES)

    def _key(self, plugin: Plugin, options: LoadOptions, model: ModelInfo, question: str) -> str | None:
        if self._common is None or (build := self._build(plugin)) is None:
            return None
        asked = [*self._common, build, msgspec.to_builtins(options), model.sha256, question]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _build(self, plugin: Plugin) -> str | None:
        which = f"{plugin.origin} {plugin.distribution} {plugin.version}"
        if which not in self._builds:
            self._builds[which] = build_of(plugin)
        return self._builds[which]

    def _believable(self, found: Equivalence, model: ModelInfo, question: str) -> bool:
        """Say whether an answer can be one to this question: numbers are numbers, and the verdict follows from them."""
        numbers = [getattr(found, name) for name in _NUMBERS]
        numbers += [limit for limit in (getattr(found, name) for name in _LIMITS) if limit is not None]
        if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
            return False
        if found.positions != self._gate.positions or found.quantization != model.quantization:
            return False
        if question == "reference":
            return found.verdict == REFERENCE
        near = found.threshold is not None and found.mean_kl is not None and 0 <= found.mean_kl < found.threshold
        # With a limit on the text's cost an engine that is near may fail by that.
        far = not near or self._gate.max_nll_increase is not None
        return (found.verdict == EQUIVALENT and near) or (found.verdict == NOT_COMPARABLE and far)


def build_of(plugin: Plugin) -> str | None:
    """Return what tells one build of an engine from others; None where files do not tell.

    That is this program, the interpreter, everything installed, and the content of the plugin's own package, its
    binaries included. An engine in another environment, a program in another language or a server may change without
    any of these; so may a library that is installed in editable form.
    """
    if not plugin.here or plugin.info is None or plugin.info.remote:
        return None
    if any(_is_editable(name) for name in _needed(plugin.distribution)):
        return None
    return f"{surroundings()} {plugin.module} {plugin.distribution} {plugin.version} {package_hash(plugin)}"


def _needed(distribution: str) -> Iterator[str]:
    """Yield the distributions that one needs, however far down; not itself and this program, whose files are read."""
    left, seen = [distribution], {distribution, "enginecmp"}
    while left:
        try:
            found = importlib.metadata.distribution(left.pop())
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
        for line in found.requires or ():
            name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
            normal = re.sub(r"[-_.]+", "-", name).lower()
            if "extra ==" not in line and normal not in seen:
                seen.add(normal)
                left.append(normal)
                yield normal


def _is_editable(distribution: str) -> bool:
    """Say whether a distribution lives in a folder of sources (PEP 610)."""
    try:
        text = importlib.metadata.distribution(distribution).read_text("direct_url.json")
        return bool(text and json.loads(text).get("dir_info", {}).get("editable"))
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError, OSError):
        return False


def _machine() -> list[object]:
    """Return what of the machine decides which kernels an engine takes."""
    from enginecmp.machine.environment import cpu_field, describe_environment

    facts = describe_environment()
    features = cpu_field("flags") or cpu_field("Features") or ""
    named = [facts.get(name) for name in ("cpu", "cores", "gpu", "driver", "os", "hypervisor")]
    return [*named, platform.machine(), *platform.libc_ver(), " ".join(sorted(features.split()))]


def _environment() -> list[list[str]]:
    return [[name, value] for name, value in sorted(os.environ.items()) if not _OF_THE_SESSION.fullmatch(name)]
