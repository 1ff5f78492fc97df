"""What every imported launch must be, whatever tool it came from: readable, and a measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from enginecmp.errors import ResultsError
from enginecmp.importers.fields import LARGEST_COUNT, LARGEST_STAMP
from enginecmp.importers.parts import ImportedRequest, Launch, Part


def check_launches(where: str, launches: Sequence[Launch]) -> None:
    """Refuse what the reader of results would refuse, and what is no measurement.

    Args:
        where: the file.
        launches: that it holds.

    Raises:
        ResultsError: names the file and the request.
    """
    for part in (part for launch in launches for part in launch):
        cell = part.cell
        if max(cell.prompt_tokens, cell.output_tokens, cell.concurrency, cell.rate_per_second or 0) > LARGEST_COUNT:
            msg = (
                f"{where}: expected at most {LARGEST_COUNT} tokens, requests at once and requests a second, got {cell}"
            )
            raise ResultsError(msg)
        for number, request in enumerate(part.requests):
            _check_request(where, number, request)
        _check_averages(where, part)


def _check_request(where: str, number: int, request: ImportedRequest) -> None:
    times = [request.start_ns, *request.token_ns, request.end_ns]
    if times != sorted(times):
        msg = f"{where}: request {number}: expected start <= tokens, rising <= end, got {times[:4]}... ns"
        raise ResultsError(msg)
    if request.end_ns > LARGEST_STAMP:
        msg = f"{where}: request {number}: expected times below 2^62 ns, got {request.end_ns}"
        raise ResultsError(msg)
    if request.status == "ok" and request.phase == "measure" and request.end_ns == request.start_ns:
        msg = f"{where}: request {number}: expected a duration above zero, got 0 ns: nothing was measured"
        raise ResultsError(msg)


def _check_averages(where: str, part: Part) -> None:
    if part.averages is None:
        return
    for name, value in part.averages.metrics.items():
        if not (math.isfinite(value) and value > 0):
            msg = f"{where}: {name}: expected a number above zero, got {value}"
            raise ResultsError(msg)
    if not part.requests and not part.averages.metrics:
        msg = f"{where}: expected averages above zero, got none: nothing was measured"
        raise ResultsError(msg)
