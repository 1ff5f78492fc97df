"""Items: a prompt with reference texts or with tests, bundled or from a user's JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from enginecmp import plain
from enginecmp.errors import UsageError, did_you_mean
from enginecmp.format.documents import named_by_user, read_text

BUNDLED = Path(__file__).parent / "tasks"

MOST_ITEMS = 10_000


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to be answered.

    Attributes:
        id: unique in its file.
        prompt: text that the model continues.
        references: texts that would be right; for BLEU, chrF and ROUGE-L.
        tests: Python that is run behind prompt and continuation, and raises where they are wrong; for pass@1.
        stop: the continuation ends before the first of these.
        output_tokens: most tokens of the continuation.
    """

    id: str
    prompt: str
    references: tuple[str, ...] = ()
    tests: str = ""
    stop: tuple[str, ...] = ()
    output_tokens: int = 48


def read_items(name: str, limit: int | None = None) -> list[Item]:
    """Return the items of a bundled task, or of a file.

    Args:
        name: "text", "code", or the path of a file of JSON lines.
        limit: the first so many.

    Raises:
        UsageError: no such task or file, or a line that is no item; names file and line.
    """
    bundled = {path.stem: path for path in BUNDLED.glob("*.jsonl")}
    path = bundled.get(name)
    if path is None:
        if not name.endswith((".jsonl", ".json")):
            msg = (
                f"--tasks: unknown task '{plain(name)}'{did_you_mean(name, bundled)}; a file of your own ends in .jsonl"
            )
            raise UsageError(msg)
        path = Path(name)
    with named_by_user("--tasks", path):
        lines = read_text(path).splitlines()
    items = list(_items(path, lines))
    if not items:
        msg = f"--tasks {path}: expected at least one item, a JSON object a line, got none"
        raise UsageError(msg)
    kinds = {bool(item.tests) for item in items}
    if len(kinds) > 1:
        msg = f"--tasks {path}: expected items with references or items with tests, got both; make two files of them"
        raise UsageError(msg)
    return items[:limit]


def _items(path: Path, lines: list[str]) -> Iterator[Item]:
    decoder = msgspec.json.Decoder(Item)
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"--tasks {path}, line {number}"
        try:
            item = decoder.decode(line)
        except (msgspec.MsgspecError, RecursionError) as error:
            msg = f"{where}: {error}"
            raise UsageError(msg) from error
        if bool(item.references) == bool(item.tests):
            msg = f"{where}: expected references or tests, got {'both' if item.tests else 'neither'}"
            raise UsageError(msg)
        if not item.prompt or not 1 <= item.output_tokens <= 4096 or not all([*item.references, *item.stop, True]):
            msg = f"{where}: expected a prompt, output_tokens from 1 to 4096, and no empty reference or stop"
            raise UsageError(msg)
        if item.id in seen or not item.id or len(seen) == MOST_ITEMS:
            msg = f"{where}: expected an id of its own and at most {MOST_ITEMS} items, got '{plain(item.id, 80)}'"
            raise UsageError(msg)
        seen.add(item.id)
        yield item
