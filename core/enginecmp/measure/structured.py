"""Did an answer that was to follow a JSON Schema end by itself, and does it follow it?"""

from __future__ import annotations

from enginecmp.measure.planned import Planned
from enginecmp.measure.task import Task
from enginecmp.scenarios.json_schema import follows_schema
from enginecmp.types import NO_ID
from enginecmp.wire.answers import Answered

VALID_JSON = "valid_json_share"


def structured_metrics(task: Task, asked: Planned, answer: Answered) -> dict[str, float]:
    """Return `valid_json_share` of one request, 1 or 0; nothing without a schema, or where nobody knows the text.

    An answer that was cut off is 0, even where what there is happens to be JSON. Called between two requests.

    Args:
        task: whose tokenizer turns ids into text.
        asked: the request.
        answer: without an error.
    """
    schema, ids = asked.decoding.json_schema, answer["ids"]
    if not schema:
        return {}
    if ids and NO_ID not in ids:
        if ids[-1] not in asked.decoding.end_ids:
            return {VALID_JSON: 0.0}
        text = task.prompts.tokenizer.decode(ids[:-1])
    elif "text" in answer:
        if answer["output_tokens"] >= asked.output_tokens:
            return {VALID_JSON: 0.0}
        text = answer["text"]
    else:
        return {}
    return {VALID_JSON: float(follows_schema(text, schema))}
