"""The measurement `denoise`: a text by masked diffusion, or by one token after the other. And a small trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from enginecmp import Measure, MeasuredMetric, hookimpl

MEASURE = Measure(
    name="denoise",
    judge="enginecmp_diffusion.judge:TextJudge",
    driver="enginecmp_diffusion.driver:drive",
    of_every_engine=True,
    sequences="batch",
    metrics=(
        MeasuredMetric(
            name="forward_pass_seconds",
            what="median time of a forward pass of a text: a denoising step, or a token after the first",
        ),
        MeasuredMetric(
            name="tokens_per_forward_pass",
            what="committed tokens of all sequences / forward passes",
            higher_is_better=True,
            compared=False,
            words=("more", "less"),
        ),
        MeasuredMetric(
            name="same_ids_share",
            what="positions whose id is that of the cell's first text in this run, of whichever engine / all positions",
            higher_is_better=True,
            compared=False,
            words=("more", "less"),
        ),
    ),
)


@hookimpl
def cmp_measures() -> Sequence[Measure]:
    """Return the measurement."""
    return [MEASURE]


@hookimpl
def cmp_scenarios() -> Sequence[str]:
    """Return the scenario files beside this module."""
    return sorted(map(str, Path(__file__).parent.glob("*.toml")))


@hookimpl
def cmp_models() -> Mapping[str, str]:
    """Return the small trained model: the file of `python -m enginecmp_diffusion train`, in any quantization."""
    return {"diffusion-small": "enginecmp_diffusion.trained:write"}
