"""Which component of the model takes most of a pass, how often it runs in one, and what a call of it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from enginecmp.format.records import Cell
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.data.metrics import COMPONENT_OF
from enginecmp_analysis.schema.stats import Finding

TOPIC = "bottleneck"

NOT_A_PART = "other"
"""What a profile leaves over is no component that could be made faster."""


def bottlenecks(group: GroupResult) -> Iterator[Finding]:
    """Yield for every engine and cell of a profile its slowest component, with the numbers of all of them.

    Calls are counted from the model's shape: attention, rope and ffn once a layer, a norm before either of the two
    and one at the end, the others once; times the passes, of which the prompt is one and each further token one.
    """
    layers = int(group.runs[0].manifest.model.shape.get("layers", 0))
    for engine, cell, found in profiled(group):
        seconds = {name: float(launches.replicates().mean()) for name, launches in found.items()}
        whole = sum(seconds.values())
        parts = {name: spent for name, spent in seconds.items() if name != NOT_A_PART and spent > 0}
        if whole <= 0 or not parts:
            continue
        calls = _calls(layers, cell)
        slowest = max(parts, key=lambda name: parts[name])
        yield Finding(
            scenario=group.context.scenario,
            topic=TOPIC,
            engine=engine,
            cell=cell,
            verdict=slowest,
            value=parts[slowest] / whole,
            ci_low=math.nan,
            ci_high=math.nan,
            n_launches=len(found[slowest].means),
            text=_words(slowest, parts[slowest], parts[slowest] / whole, calls.get(slowest, 0)),
            details={
                **{f"{name}_seconds": spent for name, spent in seconds.items()},
                **{f"{name}_share": spent / whole for name, spent in seconds.items()},
                **{f"{name}_calls": float(calls[name]) for name in seconds if name in calls},
            },
        )


def profiled(group: GroupResult) -> Iterator[tuple[str, Cell, dict[str, LaunchMeans]]]:
    """Yield engine, cell and the launch means of each component that was profiled there."""
    found: dict[tuple[str, Cell], dict[str, LaunchMeans]] = {}
    for (engine, cell, metric), launches in group.means.items():
        if cell is not None and metric in COMPONENT_OF:
            found.setdefault((engine, cell), {})[COMPONENT_OF[metric]] = launches
    yield from ((engine, cell, of_components) for (engine, cell), of_components in found.items())


def _calls(layers: int, cell: Cell) -> Mapping[str, int]:
    """Return how often each component runs; empty where the shape of the model is not known."""
    if layers < 1:
        return {}
    a_pass = {"embedding": 1, "norm": 2 * layers + 1, "rope": layers, "attention": layers, "ffn": layers}
    a_pass |= {"lm_head": 1, "sampling": 1}
    return {name: times * max(1, cell.output_tokens) for name, times in a_pass.items()}


def _words(name: str, spent: float, share: float, calls: int) -> str:
    """Return the share of a component, and what one call of it takes."""
    told = f"{name} takes {share:.1%} of a pass".replace("%", " %")
    return told + (f": {calls:,} call{'' if calls == 1 else 's'} of {1e3 * spent / calls:.3g} ms" if calls else "")
