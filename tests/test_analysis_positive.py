"""What is never below zero has no limit below zero: in tables, JSON, money, claims, machines and pictures."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from plotly.graph_objects import Figure
from scipy import stats

from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.decisions.decide import Questions, decide_more
from enginecmp_analysis.decisions.prices import read_prices
from enginecmp_analysis.decisions.slo import parse_objectives
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.export import to_csv, to_json, to_markdown
from enginecmp_analysis.render.pictures.page import pictures
from enginecmp_analysis.render.table import render
from enginecmp_analysis.statistics.student import mean_interval, positive_interval


def test_the_limits_are_those_of_the_logarithm_of_the_mean() -> None:
    values = np.array([1.0, 2.0, 4.0])
    half = stats.t.ppf(0.975, 2) * stats.sem(values) / values.mean()
    expected = (values.mean(), values.mean() * math.exp(-half), values.mean() * math.exp(half))
    assert positive_interval(values) == pytest.approx(expected, rel=1e-9)
    assert positive_interval([0.0, 5.0])[1] > 0
    assert positive_interval([0.0, 0.0]) == (0.0, 0.0, 0.0)
    assert positive_interval([-1.0, 5.0]) == mean_interval([-1.0, 5.0])
    assert math.isnan(positive_interval([3.0])[1])


def test_the_limits_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    truth = math.exp(0.02)
    found = [positive_interval(np.exp(0.2 * rng.standard_normal(10))) for _ in range(2000)]
    assert 0.93 < np.mean([low <= truth <= high for _, low, high in found]) < 0.97


def test_no_interval_of_two_launches_far_apart_reaches_below_zero() -> None:
    run = simulate_run(Design(blocks=2, launch_spread=1.5, ratio=2.0), seed=5)
    options = Options(details=True)
    analysis = analyse([run], options)
    questions = Questions(parse_objectives("ttft_p50<200ms"), read_prices("2/h"), demand_per_second=5.0)
    decide_more(analysis, options, questions)
    plain = [mean_interval(launches.means)[1] for launches in analysis.groups[0].means.values()]
    # The control: without logarithms most of these would.
    assert sum(low < 0 for low in plain) > 10
    limits = re.findall(r'"\w*low": (-?[\d.e+-]+)', to_json(analysis.report))
    assert len(limits) > 30
    assert min(float(limit) for limit in limits) >= 0
    for text in (
        "\n".join(line for line, _ in render(analysis)),
        to_csv(analysis.report),
        to_markdown(analysis),
        json.dumps([figure.to_plotly_json()["data"] for figure in _figures(analysis)], default=str),
    ):
        assert not re.search(r"\[-\d", text)
    for figure in _figures(analysis):
        for trace in figure.data:
            if getattr(trace, "error_y", None) is not None and trace.error_y.arrayminus is not None:
                assert (np.array(trace.y) - np.array(trace.error_y.arrayminus) > 0).all()


def _figures(analysis: Analysis) -> list[Figure]:
    return [view.figure() for picture in pictures(analysis.groups[0], analysis, 0.03) for view in picture.views]
