"""Nodes, and what a run requires of one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.text import listed, plain

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
"""Of nodes."""

RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}")
"""Of jobs and runs: they name folders on two machines."""

Label = str | float
"""A number is an amount of something, a text says which one."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine that a placement can run on.

    Attributes:
        name: unique within its placement; letters, digits and . _ + -.
        labels: what `--require` asks for: {"gpu": "H200", "cpus": 16}.
        price_per_hour: what an hour of it costs, in whatever currency the user thinks; None where nobody said.
    """

    name: str
    labels: Mapping[str, Label] = {}
    price_per_hour: float | None = None


def check_nodes(nodes: list[Node], where: str) -> list[Node]:
    """Return nodes whose names and prices can be used.

    Args:
        nodes: of a placement.
        where: they are from, for the error.

    Raises:
        UsageError: none, a wrong name or price, or one name twice.
    """
    if not nodes:
        msg = f"{where}: expected at least one node, got none"
        raise UsageError(msg)
    seen: set[str] = set()
    for node in nodes:
        if not NAME.fullmatch(node.name):
            msg = f"{where}: expected a node's name of letters, digits and . _ + -, got '{plain(node.name, 80)}'"
            raise UsageError(msg)
        if node.name in seen:
            msg = f"{where}: two nodes are called '{node.name}'; give one of them another name"
            raise UsageError(msg)
        price = node.price_per_hour
        if price is not None and not (math.isfinite(price) and price >= 0):
            msg = f"{where}: node {node.name}: expected a price of 0 or more, got {price}"
            raise UsageError(msg)
        seen.add(node.name)
    return nodes


def read_require(text: str) -> dict[str, Label]:
    """Return what "gpu=H200,cpus=16" asks for; a number is the least amount, a text must be equal.

    Raises:
        UsageError: an item is not KEY=VALUE.
    """
    wanted: dict[str, Label] = {}
    for item in listed(text):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            msg = f"--require: expected KEY=VALUE like gpu=H200,cpus=16, got '{item}'"
            raise UsageError(msg)
        wanted[key] = as_label(value)
    return wanted


def as_label(value: str) -> Label:
    """Return a label's value as a number where it is one, else as text."""
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def lacking(node: Node, wanted: Mapping[str, Label]) -> str:
    """Return what a node lacks of what is required, in words; "" where it has everything."""
    for key, value in wanted.items():
        has = node.labels.get(key)
        if isinstance(value, str):
            fits = isinstance(has, str) and has.casefold() == value.casefold()
        else:
            fits = isinstance(has, int | float) and has >= value
        if not fits:
            shown = f"{value:g} or more" if isinstance(value, float) else value
            return f"expected {key} {shown}, got {'no such label' if has is None else has}"
    return ""
