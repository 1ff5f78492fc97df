"""Scenarios: a grid of cells, a load pattern and a primary metric, written as TOML.

`load_scenario` reads a file, applies one profile and checks every key, so that what a run records in its
manifest is complete and needs no file any more.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import UsageError, did_you_mean
from enginecmp.launch import Deadlines
from enginecmp.telemetry.contention import Validity
from enginecmp.types import Cell

SHIPPED = Path(__file__).parent

PRIMARY_METRICS = (
    "ttft_seconds",
    "itl_seconds",
    "tpot_seconds",
    "e2e_seconds",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "throughput_tokens_per_second",
    "load_seconds",
)


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a scenario is run.

    Attributes:
        blocks: launches per engine.
        requests: measured requests per launch and cell; with `seconds` the least of them.
        seconds: measure each cell of a launch for that long; None counts requests alone.
        warmup_requests: unmeasured requests before each cell; at least 1.
        spare_requests: most further requests in place of disturbed ones; None is half of `requests`.
        output_tokens: replaces every cell's output tokens.
    """

    blocks: int
    requests: int
    seconds: float | None = None
    warmup_requests: int = 1
    spare_requests: int | None = None
    output_tokens: int | None = None


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario with one profile applied: what a run executes, and what its manifest holds.

    Attributes:
        name: of the scenario.
        profile: name of the profile.
        description: one sentence.
        primary_metric: the metric that its verdicts are about.
        pattern: "closed": the next request starts when the last one is over.
        cells: the grid.
        blocks: launches per engine.
        requests: measured requests per launch and cell; with `seconds` the least of them.
        seconds: measuring time per launch and cell, or None.
        warmup_requests: unmeasured requests before each cell.
        spare_requests: most further requests per launch and cell in place of those that the rest of the machine
            disturbed; decided by flags alone, never by a value.
        deadlines: when an engine counts as hung.
        validity: when a sample is left out.
        give_up_after: failed launches in a row after which an engine is no longer launched.
        precision: relative half-width of the primary metric's interval at which an adaptive run stops; 0 runs all
            blocks. With it `blocks` is the most that will run.
        gate: whether equivalence is checked before anything is timed.
        prompts_sha256: hash of the texts that the prompts were cut from; set when a run starts.
    """

    name: str
    profile: str
    description: str = ""
    primary_metric: str
    pattern: str = "closed"
    cells: tuple[Cell, ...]
    blocks: int
    requests: int
    seconds: float | None = None
    warmup_requests: int = 1
    spare_requests: int = 0
    deadlines: Deadlines = Deadlines()
    validity: Validity = Validity()
    give_up_after: int = 3
    precision: float = 0.0
    gate: bool = True
    prompts_sha256: str = ""

    @property
    def context_tokens(self) -> int:
        """Tokens that the longest request needs."""
        return max(cell.prompt_tokens + cell.output_tokens for cell in self.cells)


_TOP_KEYS = (
    "name",
    "description",
    "primary_metric",
    "pattern",
    "cells",
    "profile",
    "deadlines",
    "validity",
    "give_up_after",
)


def available(extra: Iterable[str] = ()) -> dict[str, Path]:
    """Return scenario files by name: the shipped ones, and those that plugins bring."""
    files = [*sorted(SHIPPED.glob("*.toml")), *map(Path, extra)]
    return {file.stem: file for file in files}


def load_scenario(name_or_path: str, profile: str, extra: Iterable[str] = ()) -> Scenario:
    """Read a scenario and apply a profile.

    Args:
        name_or_path: a shipped name, or a path that ends in ".toml".
        profile: name of one of its profiles.
        extra: further scenario files, from plugins.

    Raises:
        UsageError: unknown name, unreadable file, wrong key or value; names the nearest right one.
    """
    known = available(extra)
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        path = Path(name_or_path)
    elif name_or_path in known:
        path = known[name_or_path]
    else:
        msg = f"unknown scenario '{name_or_path}'{did_you_mean(name_or_path, known)}"
        raise UsageError(msg)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"scenario {path}: {error.strerror or error}"
        raise UsageError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"scenario {path}: not TOML: {error}"
        raise UsageError(msg) from error
    return _resolve(content, profile, str(path))


def _resolve(content: dict[str, Any], profile_name: str, where: str) -> Scenario:
    _check_keys(content, _TOP_KEYS, where)
    profiles = content.get("profile")
    if not isinstance(profiles, dict) or not profiles:
        msg = f"scenario {where}: expected at least one [profile.NAME] table"
        raise UsageError(msg)
    if profile_name not in profiles:
        msg = f"scenario {where}: unknown profile '{profile_name}'{did_you_mean(profile_name, profiles)}"
        raise UsageError(msg)
    profile = _convert(profiles[profile_name], Profile, f"{where} [profile.{profile_name}]")
    cells: list[Cell] = []
    raw_cells = content.get("cells")
    for number, cell in enumerate(raw_cells if isinstance(raw_cells, list) else []):
        cells.append(_convert(cell, Cell, f"{where} cell {number + 1}"))
    if profile.output_tokens is not None:
        cells = [msgspec.structs.replace(cell, output_tokens=profile.output_tokens) for cell in cells]
    scenario = Scenario(
        name=str(content.get("name") or Path(where).stem),
        profile=profile_name,
        description=str(content.get("description", "")),
        primary_metric=str(content.get("primary_metric", "")),
        pattern=str(content.get("pattern", "closed")),
        cells=tuple(cells),
        blocks=profile.blocks,
        requests=profile.requests,
        seconds=profile.seconds,
        warmup_requests=profile.warmup_requests,
        spare_requests=profile.requests // 2 if profile.spare_requests is None else profile.spare_requests,
        deadlines=_convert(content.get("deadlines", {}), Deadlines, f"{where} [deadlines]"),
        validity=_convert(content.get("validity", {}), Validity, f"{where} [validity]"),
        give_up_after=_convert(content.get("give_up_after", 3), int, f"{where} give_up_after"),
    )
    check(scenario, where)
    return scenario


def change_deadlines(deadlines: Deadlines, items: Iterable[str]) -> Deadlines:
    """Return deadlines with each "PHASE=SECONDS" put in place.

    Raises:
        UsageError: not of that form.
    """
    names = {field.removesuffix("_seconds") for field in Deadlines.__struct_fields__}
    seconds: dict[str, float] = {}
    for item in items:
        phase, _, value = item.partition("=")
        try:
            if phase not in names or float(value) <= 0:
                raise ValueError
            seconds[f"{phase}_seconds"] = float(value)
        except ValueError:
            msg = f"--deadline {item}: expected PHASE=SECONDS with PHASE one of {', '.join(sorted(names))}"
            raise UsageError(msg) from None
    return msgspec.structs.replace(deadlines, **seconds)


def check(scenario: Scenario, where: str) -> None:
    """Refuse a scenario that cannot be run.

    Raises:
        UsageError: names the key, what was expected and what came.
    """
    problems = [
        (not scenario.cells, "at least one [[cells]] table", "none"),
        (scenario.blocks < 1, "blocks >= 1", scenario.blocks),
        (scenario.requests < 1, "requests >= 1", scenario.requests),
        (scenario.seconds is not None and scenario.seconds <= 0, "seconds > 0", scenario.seconds),
        (scenario.warmup_requests < 1, "warmup_requests >= 1", scenario.warmup_requests),
        (scenario.spare_requests < 0, "spare_requests >= 0", scenario.spare_requests),
        (scenario.give_up_after < 1, "give_up_after >= 1", scenario.give_up_after),
        (scenario.pattern != "closed", 'pattern = "closed"', repr(scenario.pattern)),
        (len(set(scenario.cells)) != len(scenario.cells), "cells that differ", "a cell twice"),
        *((cell.prompt_tokens < 1, "prompt_tokens >= 1", cell.prompt_tokens) for cell in scenario.cells),
        *((cell.output_tokens < 1, "output_tokens >= 1", cell.output_tokens) for cell in scenario.cells),
        *((cell.concurrency != 1, "concurrency = 1", cell.concurrency) for cell in scenario.cells),
    ]
    for wrong, expected, came in problems:
        if wrong:
            msg = f"scenario {where}: expected {expected}, got {came}"
            raise UsageError(msg)
    if scenario.primary_metric not in PRIMARY_METRICS:
        hint = did_you_mean(scenario.primary_metric, PRIMARY_METRICS)
        msg = f"scenario {where}: unknown primary_metric '{scenario.primary_metric}'{hint}"
        raise UsageError(msg)


def _check_keys(table: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            msg = f"scenario {where}: unknown key '{key}'{did_you_mean(key, known)}"
            raise UsageError(msg)


def _convert(value: Any, kind: Any, where: str) -> Any:
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        _check_keys(value, kind.__struct_fields__, where)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        msg = f"scenario {where}: {error}"
        raise UsageError(msg) from error
