"""Readers of what others wrote take 300 damaged inputs each; `make fuzz` gives them 10,000."""

from __future__ import annotations

import os

import pytest
from fuzz import runner

COUNT = int(os.environ.get("ENGINECMP_FUZZ", "300"))


@pytest.mark.parametrize("name", sorted(runner.targets()))
def test_damaged_input_is_read_or_refused_within_its_limits(name: str) -> None:
    found = runner.hold(name, COUNT)
    assert found is None, found


def spin(content: bytes) -> None:
    while content:
        pass


def test_runner_finds_what_it_looks_for() -> None:
    """Slow inputs, other exceptions and errors of two lines are faults; a refusal is none."""
    from enginecmp.errors import ModelError

    def refuse(content: bytes) -> None:
        raise ModelError(content.decode())

    def target(check: object) -> runner.Target:
        return runner.Target("self", lambda draw: draw.randbytes(4), check, seconds=0.2)  # type: ignore[arg-type]

    assert runner.fault(target(refuse), b"one line") is None
    assert "no printable line" in str(runner.fault(target(refuse), b"two\nlines"))
    assert "2001 characters" in str(runner.fault(target(refuse), b"x" * 2001))
    assert "ZeroDivisionError" in str(runner.fault(target(lambda content: 1 / 0), b""))
    assert "0.2 s of processor time" in str(runner.fault(target(spin), b"x"))
    assert runner.input_of(target(spin), 1, 2) == runner.input_of(target(spin), 1, 2)
