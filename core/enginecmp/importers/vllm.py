"""vLLM: `vllm bench serve --save-result --save-detailed`.

Lists with one entry a request: `start_times`, `ttfts`, `itls` in seconds, `input_lens`, `output_lens`, `errors`.
First stamp: start + ttft; every further one: the one before + its entry in `itls`, which are gaps between chunks.
The end is the last chunk, as in vLLM's own latency.

* Every metric is carried; `itl_seconds` only of requests with as many chunks as tokens.
* `e2e_seconds` and `ttft_seconds` start when the request was sent: the wait for the client's own `max_concurrency`
  and for a late sender is outside, as it is in vLLM's numbers.
* When a failed request ended is not told; its end equals its start, and it counts in nothing.
* Prompt and output lengths as asked are not in the file: the cell holds the medians of what came.
* Version of engine and tool, device, machine and weights are absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.importers.fields import Fields, nanoseconds
from enginecmp.importers.parts import UNLIMITED, ImportedRequest, Launch, Part, known_stamps, typical_cell

NAME = "vllm"

_LOAD = ("request_rate", "burstiness", "ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    return all(isinstance(d, dict) and {"model_id", "request_throughput", "duration"} <= d.keys() for d in documents)


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the results of a file; with --append-result it holds several, a launch each.

    Raises:
        ResultsError: it was saved without --save-detailed, or a key is missing or wrong.
    """
    several = len(documents) > 1
    return [
        [_part(Fields.of(document, f"{path}, line {number}" if several else str(path)))]
        for number, document in enumerate(documents, start=1)
    ]


def _part(fields: Fields) -> Part:
    if "ttfts" not in fields.values:
        msg = (
            f"{fields.where}: expected the key 'ttfts', it is not there: only averages were saved; "
            "run `vllm bench serve` with --save-result --save-detailed"
        )
        raise ResultsError(msg)
    first = fields.numbers("ttfts")
    n = len(first)
    starts = fields.numbers("start_times", n)
    prompts, outputs = fields.integers("input_lens", n), fields.integers("output_lens", n)
    errors = fields.entries("errors")
    gaps = fields.entries("itls")
    for key, entries in (("errors", errors), ("itls", gaps)):
        if len(entries) != n:
            msg = f"{fields.where}: {key}: expected {n} entries, one a request, got {len(entries)}"
            raise ResultsError(msg)
    requests = []
    for i in range(n):
        start = nanoseconds(starts[i])
        # A request that never produced a token has no ttft, an error, or both.
        if errors[i] or outputs[i] == 0:
            requests.append(
                ImportedRequest(
                    start_ns=start,
                    end_ns=start,
                    prompt_tokens=prompts[i],
                    output_tokens=0,
                    status="error",
                    error=_last_line(errors[i]) or "no token came",
                )
            )
            continue
        seconds = accumulate(Fields({"itls": gaps[i]}, f"{fields.where}: itls[{i}]").numbers("itls"), initial=first[i])
        stamps = [start + nanoseconds(second) for second in seconds]
        requests.append(
            ImportedRequest(
                start_ns=start,
                end_ns=stamps[-1],
                prompt_tokens=prompts[i],
                output_tokens=outputs[i],
                token_ns=known_stamps(stamps, outputs[i]),
            )
        )
    concurrency = fields.maybe_integer("max_concurrency")
    return Part(
        cell=typical_cell(requests, UNLIMITED if concurrency is None else concurrency),
        requests=requests,
        model=fields.text("model_id"),
        conditions=_conditions(fields),
        options={"backend": fields.text("backend") or fields.text("endpoint_type")},
    )


def _conditions(fields: Fields) -> dict[str, Any]:
    told = {key: fields.values[key] for key in _LOAD if fields.values.get(key) is not None}
    # At an infinite rate all that shapes the load is the concurrency, which is in the cell.
    return {} if told.get("request_rate") == "inf" and "ramp_up_strategy" not in told else told


def _last_line(error: object) -> str:
    # vLLM stores whole tracebacks; their last line says what happened.
    lines = str(error or "").strip().splitlines()
    return lines[-1] if lines else ""
