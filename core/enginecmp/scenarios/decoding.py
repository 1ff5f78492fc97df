"""How ids are chosen and what ends a request: what a cell with `decoding = "NAME"` asks for, from [decodings.NAME]."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.documents import named_by_user, read_text
from enginecmp.format.text import plain
from enginecmp.scenarios.json_schema import schema_problems
from enginecmp.types import Decodes, Decoding


class DecodingRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to decode; without a key everything is as ever: greedy ids of a fixed number.

    Attributes:
        temperature: the logits are divided by it; 0 is greedy.
        top_k: only that many of the most likely ids; 0 is off.
        top_p: only the fewest most likely ids that together have this probability; 1 is off.
        stop_at_eos: a request is over with the model's end-of-sequence token; `output_tokens` are then the most.
        json_schema: schema that the output must follow, a table or the path of a file beside the scenario's; the
            request is over when the JSON is.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop_at_eos: bool = False
    json_schema: dict[str, Any] = {}

    @property
    def may_end(self) -> bool:
        """Whether requests may have fewer tokens than the cell's."""
        return self.stop_at_eos or bool(self.json_schema)

    @property
    def needs(self) -> frozenset[Decodes]:
        """What an engine must offer (`EngineInfo.decoding`)."""
        return self.decoding(0, (0,)).needs

    def decoding(self, seed: int, end_ids: tuple[int, ...]) -> Decoding:
        """Return what one request asks of the engine.

        Args:
            seed: of the request.
            end_ids: of the model.
        """
        return Decoding(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed if self.temperature else 0,
            end_ids=end_ids if self.may_end else (),
            json_schema=json.dumps(self.json_schema) if self.json_schema else "",
        )


def request_seed(seed: int, key: int) -> int:
    """Return the seed of one request's draws, the same for every engine of the block.

    Args:
        seed: of the run.
        key: of the request's prompt.
    """
    return random.Random(f"{seed}/decoding/{key}").getrandbits(31)


def read_decoding(raw: Any, folder: Path, where: str) -> Any:
    """Return a [decodings.NAME] table with the schema that it names read into it.

    Args:
        raw: the table.
        folder: that of the scenario's file, which names are relative to.
        where: for messages.

    Raises:
        UsageError: the file cannot be read, or holds no JSON object.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("json_schema"), str):
        return raw
    return raw | {"json_schema": read_schema(folder / raw["json_schema"], f"{where} json_schema")}


def read_schema(path: Path, where: str) -> dict[str, Any]:
    """Return the JSON Schema of a file; whether it is one, `decoding_problems` says.

    Args:
        path: of the file.
        where: what named it, for messages.

    Raises:
        UsageError: the file cannot be read, or holds no JSON object with something in it.
    """
    with named_by_user(where, plain(str(path))):
        text = read_text(path)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{where}: expected a JSON Schema in {plain(str(path))}, got no JSON: {error}"
        raise UsageError(msg) from error
    if not isinstance(schema, dict) or not schema:
        msg = f"{where}: expected a JSON Schema in {plain(str(path))}, a JSON object, got {plain(repr(schema), 80)}"
        raise UsageError(msg)
    return schema


def decoding_problems(name: str, rule: DecodingRule) -> Iterator[tuple[str, object]]:
    """Yield (what was expected, what came) for a way to decode that cannot be."""
    rules = [
        (0 <= rule.temperature <= 100, "temperature from 0 to 100", rule.temperature),
        (0 <= rule.top_k < 1 << 31, "top_k >= 0", rule.top_k),
        (0 < rule.top_p <= 1, "top_p above 0 and up to 1", rule.top_p),
        (
            rule.temperature > 0 or (rule.top_k == 0 and rule.top_p == 1),
            "temperature > 0 beside top_k or top_p, which change nothing without it",
            rule.temperature,
        ),
    ]
    yield from ((f"decodings.{name}: {expected}", got) for right, expected, got in rules if not right)
    if rule.json_schema:
        yield from ((f"decodings.{name}: {expected}", got) for expected, got in schema_problems(rule.json_schema))
