"""Suite files: several runs in one TOML file, each with the options of `cmp run` as keys."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.documents import named_by_user, read_toml, require_known
from enginecmp.run.options import RunOptions

NOT_OF_A_PART = frozenset(
    {
        *("matrix", "suite", "on", "nodes", "require", "resume", "extend", "more_blocks", "usual_profile"),
        *("dry_run", "as_json", "out", "store", "brought", "save_baseline", "wait_idle"),
    }
)
"""Options that are about a command as a whole."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Part(NamedTuple):
    """One run of a suite: its name and its options."""

    name: str
    options: RunOptions


def read_suite(file: Path, given: RunOptions) -> tuple[str, list[Part]]:
    """Read a suite file.

    Args:
        file: with `name`, `[defaults]` and one `[[run]]` table a part.
        given: options of the command line, which hold where the file says nothing.

    Returns:
        Name of the suite, and its parts in their order.

    Raises:
        UsageError: unreadable, or a key or value is wrong; names the nearest right one.
    """
    with named_by_user("--suite", file):
        content = read_toml(file)
    require_known(content, ("name", "defaults", "run"), f"--suite {file}")
    name = content.get("name", file.stem)
    tables, defaults = content.get("run"), content.get("defaults", {})
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        msg = f"--suite {file}: expected at least one [[run]] table, got none"
        raise UsageError(msg)
    if not isinstance(defaults, dict) or not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = f'--suite {file}: expected name = "letters, digits and . _ + -" and a [defaults] table, got others'
        raise UsageError(msg)
    parts = [_part(file, number, {**defaults, **table}, given) for number, table in enumerate(tables, start=1)]
    counts = Counter(part.name for part in parts)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        msg = f"--suite {file}: two parts are called '{twice}'; give one of them another name = \"…\""
        raise UsageError(msg)
    return name, parts


def _part(file: Path, number: int, table: dict[str, Any], given: RunOptions) -> Part:
    where = f"--suite {file} run {number}"
    keys = [field for field in RunOptions.__struct_fields__ if field not in NOT_OF_A_PART]
    require_known(table, ("name", *keys), where)
    own = {key: value for key, value in table.items() if key != "name"}
    try:
        read = RunOptions.of(own)
    except msgspec.ValidationError as error:
        msg = f"{where}: {error}"
        raise UsageError(msg) from error
    if "scenario" in own and read.scenario.endswith(".toml"):
        # Beside the suite's file, wherever the command is called.
        read = msgspec.structs.replace(read, scenario=str((file.parent / read.scenario).resolve()))
    options = msgspec.structs.replace(given, **{key: getattr(read, key) for key in own})
    usual = Path(options.scenario).stem + (f"-{options.profile}" if options.profile else "")
    name = table.get("name", usual)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = f"{where}: expected a name of letters, digits and . _ + -, got {name!r}"
        raise UsageError(msg)
    return Part(name, options)
