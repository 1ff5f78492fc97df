"""Is this a JSON Schema, and does a text follow it? By the library jsonschema; nothing is ever fetched for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MOST_SCHEMA_CHARACTERS = 1 << 16
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_DEEPEST = 200


def schema_problems(schema: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield (what was expected, what came) for a schema that cannot be used."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    try:
        size = len(json.dumps(schema))
        outside = next(_references_outside(schema, _DEEPEST), "")
    except RecursionError:
        yield f"json_schema of at most {_DEEPEST} levels", "more"
        return
    if size > MOST_SCHEMA_CHARACTERS:
        yield f"json_schema of at most {MOST_SCHEMA_CHARACTERS} characters", size
    if outside:
        yield "json_schema that refers to itself alone (#/...)", repr(outside[:80])
        return
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "its top"
        yield "a JSON Schema (json-schema.org) in json_schema", f"at {place[:80]}: {error.message[:160]}"


def follows_schema(text: str, schema: str) -> bool:
    """Say whether a text is one JSON value that follows a schema.

    Args:
        text: what an engine generated, without the token that ended it.
        schema: as JSON text, one that has no `schema_problems`.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
        return bool(_validator(schema).is_valid(value))
    except (ValueError, RecursionError):
        return False


@lru_cache(maxsize=8)
def _validator(schema: str) -> Validator:
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    content = json.loads(schema)
    # A registry of its own: without one the library would fetch what it does not know.
    return validator_for(content, default=Draft202012Validator)(content, registry=Registry())


def _references_outside(value: Any, levels: int) -> Iterator[str]:
    if levels == 0:
        raise RecursionError
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _REFERENCES and isinstance(inner, str) and not inner.startswith("#"):
                yield inner
            yield from _references_outside(inner, levels - 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _references_outside(inner, levels - 1)


def _refuse(constant: str) -> float:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)
