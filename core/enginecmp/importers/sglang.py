"""SGLang: `python -m sglang.bench_serving --output-file`, one result a line.

* With --output-details there are `ttfts`, `itls`, `input_lens`, `output_lens` and `errors` as in vLLM's files, and no
  time at which a request started: requests are laid end to end, their own times hold, the rates are SGLang's averages.
* SGLang divides a chunk of several tokens into equal gaps itself.
* Without --output-details a line holds averages only: one launch mean of each metric.
* At an infinite rate `max_concurrency` is a number of users. With a request rate, Poisson, it is a limit.
* Model, version and device are in `server_info` of a server that tells them; else --model must name the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginecmp.importers.fields import Fields
from enginecmp.importers.names import model_name
from enginecmp.importers.parts import Averages, Launch, Part
from enginecmp.importers.vllm import (
    detailed_requests,
    flat,
    left_to_averages,
    mean_lengths,
    serving_averages,
    serving_load,
)

NAME = "sglang"
READS = "sglang.bench_serving 0.3 to 0.5"


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    keys = {"backend", "duration", "completed", "total_output_tokens_retokenized"}
    results = flat(documents)
    return bool(results) and all(isinstance(result, dict) and keys <= result.keys() for result in results)


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the results of a file, a launch each.

    Raises:
        ResultsError: a key is missing or wrong.
    """
    return [
        [_part(Fields.of(result, f"{path}, line {number}"))] for number, result in enumerate(flat(documents), start=1)
    ]


def _part(fields: Fields) -> Part:
    load = serving_load(fields, "poisson")
    averages = Averages(
        metrics=serving_averages(fields, e2e="mean_e2e_latency_ms"), requests=fields.maybe_integer("completed") or 0
    )
    requests = detailed_requests(fields)
    server = fields.maybe_object("server_info")
    return Part(
        cell=load.typical_cell(requests) if requests else load.cell(*mean_lengths(fields)),
        requests=requests,
        averages=left_to_averages(fields, averages),
        model=server.text("served_model_name") or model_name(server.text("model_path")),
        version=server.text("version"),
        device=server.text("device"),
        conditions=load.conditions,
        options={"backend": fields.text("backend")},
    )
