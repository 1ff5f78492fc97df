"""pytest options of the conformance suite; registered for every pytest that sees enginecmp installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `pytest --pyargs enginecmp.testing`."""
    group = parser.getgroup("enginecmp", "enginecmp conformance suite")
    group.addoption("--engine", metavar="NAME", help="engine to test, as `cmp engines` lists it")
    group.addoption(
        "--engine-model", metavar="MODEL", help="catalog name or GGUF file; a tiny synthetic one without it"
    )
    group.addoption("--brings", metavar="NAME", help="module or distribution whose measurements and models are tested")
    group.addoption("--engine-device", metavar="DEVICE", help="the engine's default without it")
    group.addoption(
        "--engine-option", action="append", default=[], metavar="KEY=VALUE", help="engine option, may be repeated"
    )
