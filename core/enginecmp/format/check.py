"""What every reader demands of a sample, asked before it is written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import msgspec

from enginecmp.format.records import Sample
from enginecmp.format.text import to_json

LARGEST = 2**63 - 1
"""Readers keep stamps and counts as int64."""

_decode = msgspec.json.Decoder(Sample).decode


def checked_line(sample: Sample) -> tuple[bytes, str]:
    """Return a sample as a line without its end, and what is wrong with it; "" where every reader takes it."""
    line = to_json(sample)
    try:
        _decode(line)
    except msgspec.MsgspecError as error:
        # A NaN or an infinity is null by now.
        return line, f"expected a sample of format version 1, got: {error}"
    return line, next(_broken(sample), "")


def _broken(sample: Sample) -> Iterator[str]:
    stamps = [sample.start_ns, *sample.token_ns, sample.end_ns]
    counts = {
        "block": sample.block,
        "order": sample.order,
        "index": sample.index,
        "prompt_tokens": sample.prompt_tokens,
        "output_tokens": sample.output_tokens,
        "cell prompt_tokens": sample.cell.prompt_tokens,
        "cell output_tokens": sample.cell.output_tokens,
        "concurrency": sample.cell.concurrency,
    }
    for name, value in [("intended_ns", sample.intended_ns), *(("stamp", stamp) for stamp in stamps)]:
        if not -LARGEST <= value <= LARGEST:
            yield f"{name}: expected an int64, got {value}"
    for name, value in counts.items():
        # The calibration of a sweep has the block -1.
        if not (-1 if name == "block" else 0) <= value <= LARGEST:
            yield f"{name}: expected a count, got {value}"
    if sample.status == "ok":
        if len(sample.token_ns) > sample.output_tokens:
            yield f"expected at most output_tokens = {sample.output_tokens} stamps, got {len(sample.token_ns)}"
        if any(after < before for before, after in pairwise(stamps)):
            yield "expected start_ns <= token_ns (rising) <= end_ns, got stamps that run backwards"
