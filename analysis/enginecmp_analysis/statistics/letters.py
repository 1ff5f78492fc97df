"""Compact letter display: engines that share a letter cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence


def compact_letters(differ: Sequence[Sequence[bool]]) -> list[str]:
    """Return one string of letters for each of n things.

    Two things share a letter exactly when they were not shown to differ. Insert and absorb: Piepho 2004, Journal of
    Computational and Graphical Statistics 13(2), 456-466.

    Args:
        differ: (n, n), symmetric: whether i and j were shown to differ.

    Returns:
        Letters "a", "b", …, given in the order of the things; the first always has an "a".
    """
    n = len(differ)
    columns: list[set[int]] = [set(range(n))] if n else []
    for i in range(n):
        for j in range(i + 1, n):
            if not differ[i][j]:
                continue
            # Insert: nobody may share a column with whom it differs from.
            split = [part for column in columns for part in _without_pair(column, i, j)]
            columns = _absorbed(split)
    columns.sort(key=lambda column: (min(column), max(column)))
    return ["".join(_letter(at) for at, column in enumerate(columns) if i in column) for i in range(n)]


def _without_pair(column: set[int], i: int, j: int) -> list[set[int]]:
    return [column - {i}, column - {j}] if {i, j} <= column else [column]


def _absorbed(columns: list[set[int]]) -> list[set[int]]:
    """Leave out columns that lie inside another one: they say nothing."""
    kept: list[set[int]] = []
    for column in sorted(columns, key=len, reverse=True):
        if not any(column <= other for other in kept):
            kept.append(column)
    return kept


def _letter(at: int) -> str:
    """Return a, b, …, z, then A, …; a family of more than 52 distinct groups is numbered."""
    return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[at] if at < 52 else f"({at})"
