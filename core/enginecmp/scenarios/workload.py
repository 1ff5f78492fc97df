"""Requests that are not all alike: what a cell with `workload = "NAME"` is made of, from the table [workloads.NAME]."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.documents import named_by_user, read_text
from enginecmp.prompts.lengths import MOST_VALUES, Lengths, limits, problems


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of requests.

    Attributes:
        prompt_tokens: of each request, a begin-of-sequence id included.
        output_tokens: likewise.
    """

    prompt_tokens: Lengths
    output_tokens: Lengths

    @property
    def most_prompt_tokens(self) -> int:
        """Ids of the longest prompt."""
        return limits(self.prompt_tokens)[1]

    @property
    def most_output_tokens(self) -> int:
        """Ids of the longest answer."""
        return limits(self.output_tokens)[1]


def read_workload(raw: Any, folder: Path, where: str) -> Any:
    """Return a [workloads.NAME] table with the files that it names read into it.

    Args:
        raw: the table.
        folder: that of the scenario's file, which names are relative to.
        where: for messages.

    Raises:
        UsageError: a file cannot be read, or is not what it should be.
    """
    if not isinstance(raw, dict):
        return raw
    return {key: _with_lengths(value, folder, f"{where}.{key}") for key, value in raw.items()}


def _with_lengths(raw: Any, folder: Path, where: str) -> Any:
    if not isinstance(raw, dict) or raw.get("distribution") != "file":
        return raw
    if set(raw) != {"distribution", "file"} or not isinstance(raw["file"], str):
        msg = f'{where}: expected {{ distribution = "file", file = "NAME" }}, got the keys {", ".join(sorted(raw))}'
        raise UsageError(msg)
    path = folder / raw["file"]
    with named_by_user("lengths", str(path)):
        lines = [line.split("#")[0].strip() for line in read_text(path).splitlines()]
    values = [line for line in lines if line]
    if wrong := next((line for line in values if not line.isascii() or not line.isdigit()), None):
        msg = f"{path}: expected a number of tokens a line, got {wrong[:80]!r}"
        raise UsageError(msg)
    if len(values) > MOST_VALUES:
        msg = f"{path}: expected at most {MOST_VALUES} lengths, got {len(values)}"
        raise UsageError(msg)
    return {"distribution": "recorded", "values": [int(value) for value in values]}


def workload_problems(name: str, workload: Workload) -> Iterator[tuple[str, object]]:
    """Yield (what was expected, what came) for a workload that cannot be."""
    yield from problems(f"workloads.{name}.prompt_tokens", workload.prompt_tokens)
    yield from problems(f"workloads.{name}.output_tokens", workload.output_tokens)
