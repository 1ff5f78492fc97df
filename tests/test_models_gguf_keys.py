"""GGUFKeys: every value has the type and the range that was asked for, or a line says what came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginecmp import GGUFFile, GGUFKeys, UnsupportedModel

LEAVE = "leave this engine out with --engines"


def file_of(architecture: str, metadata: dict[str, Any]) -> GGUFFile:
    below = {f"{architecture}.{key}": value for key, value in metadata.items()}
    metadata = {"general.architecture": architecture, **below}
    return GGUFFile(path=Path("m.gguf"), metadata=metadata, tensors={}, alignment=32, bytes=0)


def keys_of(metadata: dict[str, Any]) -> GGUFKeys:
    return GGUFKeys("mine", file_of("llama", metadata), ("llama", "qwen2"))


def test_what_is_there_is_returned_with_its_type() -> None:
    keys = keys_of({"n": 7, "x": 0.5, "whole": 3, "on": True, "t": "yarn", "layers": [4, 4], "zero": 0})
    assert (keys.architecture, keys.integer("n"), keys.number("x"), keys.flag("on")) == ("llama", 7, 0.5, True)
    assert keys.text("t") == "yarn"
    assert keys.integer("layers") == 4
    assert keys.integer("zero", least=0) == 0
    assert keys.integer("n", most=7) == 7
    whole = keys.number("whole")
    assert (whole, type(whole)) == (3.0, float)


def test_what_is_absent_is_the_default_even_out_of_range() -> None:
    keys = keys_of({})
    assert (keys.integer("n", 0), keys.number("x", -1.0), keys.flag("on", False)) == (0, -1.0, False)
    assert keys.text("t", "linear") == "linear"


@pytest.mark.parametrize(
    ("value", "read", "expected", "got"),
    [
        (0, lambda keys: keys.integer("k"), "a positive whole number in llama.k", "0"),
        (-1, lambda keys: keys.integer("k", least=0), "a whole number from 0 in llama.k", "-1"),
        (9, lambda keys: keys.integer("k", most=8), "a whole number from 1 to 8 in llama.k", "9"),
        (True, lambda keys: keys.integer("k"), "a positive whole number in llama.k", "True"),
        (2.0, lambda keys: keys.integer("k"), "a positive whole number in llama.k", "2.0"),
        ([2, 4], lambda keys: keys.integer("k"), "one llama.k for all layers", "[2, 4]"),
        ([], lambda keys: keys.integer("k"), "one llama.k for all layers", "[]"),
        ([[1], [1]], lambda keys: keys.integer("k"), "a positive whole number in llama.k", "[1]"),
        ("x" * 99, lambda keys: keys.number("k"), "a number in llama.k", "'" + "x" * 39),
        (False, lambda keys: keys.number("k"), "a number in llama.k", "False"),
        (float("nan"), lambda keys: keys.number("k"), "a number in llama.k", "nan"),
        (0.0, lambda keys: keys.number("k", above=0), "a number above 0 in llama.k", "0.0"),
        (1, lambda keys: keys.flag("k"), "true or false in llama.k", "1"),
        (1, lambda keys: keys.text("k"), "a text in llama.k", "1"),
    ],
)
def test_another_type_or_range_is_refused(value: Any, read: Callable[[GGUFKeys], Any], expected: str, got: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read(keys_of({"k": value}))
    assert str(caught.value) == f"mine: expected {expected}, got {got}; {LEAVE}"


def test_a_key_without_default_must_be_there() -> None:
    with pytest.raises(UnsupportedModel, match=r"^mine: expected metadata llama\.block_count, got none; convert the"):
        keys_of({}).integer("block_count")


def test_another_architecture_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"^mine: expected an architecture among llama, qwen2, got 'mamba'; "):
        GGUFKeys("mine", file_of("mamba", {}), ("llama", "qwen2"))


def test_a_key_that_asks_for_something_unknown_is_refused_and_one_that_asks_for_nothing_is_not() -> None:
    keys = keys_of({"block_count": 2, "expert_count": 0, "scaled": False, "names": []})
    keys.refuse_unknown({"block_count"})
    with pytest.raises(UnsupportedModel, match=r"got llama\.block_count = 2"):
        keys.refuse_unknown(())
