"""`python -m bench custom_cpu` on tiny models: that it asks both engines and reckons with what they answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from bench import custom_cpu as part

import enginecmp_custom_cpu
from enginecmp import ModelInfo
from enginecmp.errors import UsageError
from enginecmp.testing.sessions import require_engine


def test_rows_have_ratios_intervals_and_goals(
    tiny: Callable[..., ModelInfo], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_engine(enginecmp_custom_cpu)
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp is not installed")
    rows = {name: row._replace(launches=2, pairs=2) for name, row in part.ROWS.items()}
    monkeypatch.setattr(part, "ROWS", rows)
    monkeypatch.setattr(part, "_model", lambda name: tiny("llama", "Q8_0"))
    monkeypatch.setenv("BENCH_ROWS", "prompt-200,users-8,load-1b")
    result: dict[str, Any] = part.measure()
    assert list(result["rows"]) == ["prompt-200", "users-8", "load-1b"]
    for name in ("prompt-200", "users-8"):
        row = result["rows"][name]
        assert 0 < row["ci_low"] <= row["ratio"] <= row["ci_high"]
        assert [len(pairs) for pairs in row["rates"]] == [2, 2]
        assert row["met"] == (row["ratio"] >= row["goal"])
    loads = result["rows"]["load-1b"]
    assert 0 < loads["least"] == min(loads["seconds"])
    assert result["met"] == all(row["met"] for row in result["rows"].values())
    assert "users-8: custom_cpu / llamacpp: " in capsys.readouterr().out


def test_every_row_is_named_where_the_part_is_described() -> None:
    described = (part.__doc__ or "").replace("\n", " ")
    assert all(name in described for name in (*part.ROWS, *part.LOADS, part.PRODUCTS))


def test_an_unknown_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_ROWS", "decode-9")
    with pytest.raises(UsageError, match=r"rows among decode-1, .*, got 'decode-9'"):
        part.measure()
