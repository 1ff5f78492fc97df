"""guidellm: `benchmarks.json`, report versions 1 and 2.

One benchmark a load, each with its requests and their times in seconds since 1970. A float64 holds those to a
quarter of a microsecond, which is what its stamps are worth.

* Start, first token, last token and end are carried: `ttft_seconds`, `tpot_seconds`, `e2e_seconds`, the rates.
* Stamps of the tokens between are not in the file, so `itl_seconds` is absent.
* Requests that the end of the test cut off ("incomplete") are left out and counted; errored ones are errors.
* With a rate (constant, poisson) a request should have started at `targeted_start`, and waiting counts from there;
  guidellm's own numbers count from the start. In a closed loop both are the same.
* Warm-up and cool-down requests are not told apart from the rest.
* Version, device and weights of the engine and the machine are absent. Lengths as asked are not read: the cell
  holds the medians of what came.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.importers.fields import Fields, nanoseconds
from enginecmp.importers.parts import UNLIMITED, ImportedRequest, Launch, Part, typical_cell

NAME = "guidellm"

_OPEN_LOOP = ("constant", "poisson")


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    return len(documents) == 1 and isinstance(documents[0], dict) and isinstance(documents[0].get("benchmarks"), list)


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the benchmarks of a file: one session against one server, hence one launch.

    Raises:
        ResultsError: no benchmark, or a key is missing or wrong.
    """
    report = Fields.of(documents[0], str(path))
    launch = [_part(benchmark, report) for benchmark in report.objects("benchmarks")]
    if not launch:
        msg = f"{path}: benchmarks: expected at least one, got none"
        raise ResultsError(msg)
    return [launch]


def _part(benchmark: Fields, report: Fields) -> Part:
    config = benchmark.nested("config")
    strategy = config.nested("strategy")
    kind = strategy.text("type_")
    groups = benchmark.nested("requests")
    requests = [_finished(fields, kind in _OPEN_LOOP) for fields in groups.objects("successful")]
    failed = [_failed(fields) for fields in (groups.objects("errored") if "errored" in groups.values else ())]
    requests += [request for request in failed if request is not None]
    if not requests:
        msg = f"{groups.where}: successful: expected requests, got none; save them with the report"
        raise ResultsError(msg)
    requests.sort(key=lambda request: request.start_ns)
    told = strategy.maybe_integer("streams") or strategy.maybe_integer("max_concurrency")
    # A loop with a fixed number of streams is in the cell already; what else describes the load is a condition.
    conditions: dict[str, Any] = {} if kind in ("synchronous", "concurrent") else {"strategy": kind}
    rate = strategy.maybe_number("rate")
    return Part(
        cell=typical_cell(requests, 1 if kind == "synchronous" else told or UNLIMITED),
        requests=requests,
        model=config.maybe_object("backend").text("model") or _asked_model(report),
        tool_version=report.maybe_object("metadata").text("guidellm_version"),
        conditions=conditions | ({} if rate is None else {"request_rate": rate}),
        left_out=len(groups.values.get("incomplete") or ()) + failed.count(None),
    )


def _finished(fields: Fields, open_loop: bool) -> ImportedRequest:
    times = fields.nested("info").nested("timings")
    start, end = nanoseconds(times.number("request_start")), nanoseconds(times.number("request_end"))
    chunks = times.maybe_integer("token_iterations") or 0
    tokens, prompt = fields.integer("output_tokens"), fields.integer("prompt_tokens")
    first, last = times.maybe_number("first_token_iteration"), times.maybe_number("last_token_iteration")
    stamps = []
    if first is not None and tokens > 0:
        stamps.append(nanoseconds(first))
        # Of two tokens both stamps are known only if each had its own chunk.
        if last is not None and (tokens > 2 or (tokens == 2 and chunks == 2)):
            stamps.append(nanoseconds(last))
    targeted = times.maybe_number("targeted_start") if open_loop else None
    return ImportedRequest(
        start_ns=start,
        end_ns=end,
        prompt_tokens=prompt,
        output_tokens=tokens,
        token_ns=stamps,
        intended_ns=None if targeted is None else min(start, nanoseconds(targeted)),
    )


def _failed(fields: Fields) -> ImportedRequest | None:
    """Return a request that failed, None when it never started."""
    info = fields.nested("info")
    times = info.nested("timings")
    starts = [times.maybe_number(key) for key in ("request_start", "resolve_start")]
    start = next((second for second in starts if second is not None), None)
    if start is None:
        return None
    ends = [times.maybe_number(key) for key in ("request_end", "resolve_end")]
    end = next((second for second in ends if second is not None), start)
    return ImportedRequest(
        start_ns=nanoseconds(start),
        end_ns=nanoseconds(max(start, end)),
        prompt_tokens=fields.maybe_integer("prompt_tokens") or 0,
        output_tokens=fields.maybe_integer("output_tokens") or 0,
        status="error",
        error=info.text("error") or "errored",
    )


def _asked_model(report: Fields) -> str:
    # Version 2 says `config`, version 1 said `args`; an empty model means the server's first one.
    for key in ("config", "args"):
        asked = report.maybe_object(key)
        name = asked.maybe_object("backend").text("model") or asked.text("model")
        if name:
            return name
    return ""
