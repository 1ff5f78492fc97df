"""Where denoising overtakes one token after the other: read from a run of the scenario, launch by launch."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from enginecmp.errors import ResultsError
from enginecmp.format.readers import read_manifest, whole_lines
from enginecmp.format.records import Sample
from enginecmp_analysis.statistics.student import t_quantile
from enginecmp_diffusion.variant import DENOISE, Variant, variant_of

Where = tuple[str, int, int]
"""(engine, prompt tokens, output tokens)"""


class Row(NamedTuple):
    """What one engine took for one length.

    Attributes:
        where: engine and length.
        in_turn_seconds: a text by one token after the other, median over launches.
        denoised_seconds: steps → a text by denoising, likewise.
        steps: so many steps take as long as one token after the other.
        low: lower 95 % limit.
        high: upper one.
        launches: that have both.
    """

    where: Where
    in_turn_seconds: float
    denoised_seconds: Mapping[int, float]
    steps: float
    low: float
    high: float
    launches: int


def read(folder: Path) -> list[Row]:
    """Return a row an engine and length, from medians of each launch.

    Steps that take as long as one token after the other are a ratio of two times of one launch, since what slows a
    launch down slows down both: of a text by tokens in turn, to a step of the text with the most steps. The interval
    is Student's t over the logarithms of launches.

    Raises:
        ResultsError: no run of such a scenario, or nothing in it that counts.
    """
    scenario = read_manifest(folder).scenario
    if scenario.get("operation") != "denoise":
        msg = f"{folder}: expected a run of the scenario diffusion, got {scenario.get('name')!r:.80}"
        raise ResultsError(msg)
    variants = {name: variant_of(table) for name, table in scenario["variants"].items()}
    seconds: dict[Where, dict[str, dict[Variant, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for sample in whole_lines(folder / "samples.jsonl", Sample):
        if sample.phase != "measure" or sample.status != "ok" or sample.flags:
            continue
        cell, variant = sample.cell, variants[sample.cell.variant or ""]
        of_launch = seconds[sample.engine, cell.prompt_tokens, cell.output_tokens][sample.launch]
        of_launch.setdefault(variant, []).append(sample.metrics["operation_seconds"])
    rows = [row for where, launches in sorted(seconds.items()) if (row := _row(where, list(launches.values())))]
    if not rows:
        msg = f"{folder}: expected launches with texts of both kinds that count, got none; see `cmp stats {folder}`"
        raise ResultsError(msg)
    return rows


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the answer for every engine and length, then the times."""
    for row in rows:
        engine, prompt, output = row.where
        yield (
            f"{engine}, {prompt} + {output} tokens: denoising takes less time in fewer than {row.steps:.1f} steps "
            f"[{row.low:.1f}, {row.high:.1f}], {output / row.steps:.1f} tokens a step ({row.launches} launches)."
        )
    steps = sorted({count for row in rows for count in row.denoised_seconds})
    yield ""
    width = max(len("engine"), *(len(row.where[0]) for row in rows))
    head = "".join(f"{f'{count} steps':>10}" for count in steps)
    yield f"{'engine':<{width}}  {'tokens':>9}  {'in turn':>8}{head}   ms a text"
    for row in rows:
        times = [row.denoised_seconds.get(count) for count in steps]
        told = "".join(f"{1e3 * value:>10.1f}" if value is not None else f"{'':>10}" for value in times)
        length = f"{row.where[1]} + {row.where[2]}"
        yield f"{row.where[0]:<{width}}  {length:>9}  {1e3 * row.in_turn_seconds:>8.1f}{told}"


def _row(where: Where, launches: Sequence[Mapping[Variant, list[float]]]) -> Row | None:
    in_turn: list[float] = []
    denoised: dict[int, list[float]] = defaultdict(list)
    ratios: list[float] = []
    for of_launch in launches:
        alone = {variant: statistics.median(times) for variant, times in of_launch.items() if variant.batch == 1}
        passes = {v.steps: took for v, took in alone.items() if v.decoding == DENOISE and not v.block_tokens}
        turns = [took for variant, took in alone.items() if variant.decoding != DENOISE]
        for count, took in passes.items():
            denoised[count].append(took)
        in_turn += turns
        if passes and turns:
            ratios.append(math.log(turns[0] * max(passes) / passes[max(passes)]))
    if len(ratios) < 2:
        return None
    middle, n = statistics.mean(ratios), len(ratios)
    half = float(t_quantile(0.975, n - 1)) * statistics.stdev(ratios) / math.sqrt(n)
    return Row(
        where,
        statistics.median(in_turn),
        {count: statistics.median(times) for count, times in sorted(denoised.items())},
        math.exp(middle),
        math.exp(middle - half),
        math.exp(middle + half),
        n,
    )
