"""Cells of a scenario's grid: how people call them, and in which order they are shown."""

from __future__ import annotations

from enginecmp.format.records import Cell

FIELDS = (
    "prompt_tokens",
    "output_tokens",
    "concurrency",
    "arrival",
    "rate_per_second",
    "variant",
    "workload",
    "decoding",
)
"""Fields of a cell as columns of a table."""


MOST = 2**31
"""No length or number of users is as large as that."""


def is_possible(cell: Cell) -> bool:
    """Return whether a cell's numbers can be what they are called."""
    rate = cell.rate_per_second or 0.0
    return all(0 <= n < MOST for n in (cell.prompt_tokens, cell.output_tokens, cell.concurrency)) and 0 <= rate < MOST


def cell_name(cell: Cell | None) -> str:
    """Return how people call a cell, e.g. "prompt 50 → output 16 tokens, Poisson 4/s"."""
    if cell is None:
        return "whole launch"
    most = "up to " if cell.workload else ""
    ending = "" if cell.output_tokens == 1 else "s"
    size = f"prompt {most}{cell.prompt_tokens} → output {most}{cell.output_tokens} token{ending}"
    if cell.variant and cell.output_tokens == 0:
        # An operation takes tokens or rows, and has neither an output nor users.
        return f"{cell.variant}, {cell.prompt_tokens} a call"
    return ", ".join([*kinds_of(cell), size, load_name(cell)])


def kinds_of(cell: Cell) -> list[str]:
    """Return the names that tell a cell from others of the same lengths and load."""
    return [name for name in (cell.variant, cell.workload, cell.decoding) if name]


def load_name(cell: Cell) -> str:
    """Return how requests arrive in a cell: "25 users", "Poisson 4/s, at most 8 at once"."""
    if not cell.arrival:
        if cell.concurrency == 0:
            return "concurrency not told"
        return f"{cell.concurrency} user{'' if cell.concurrency == 1 else 's'}"
    return arrivals_name(cell) + (f", at most {cell.concurrency} at once" if cell.concurrency > 1 else "")


def arrivals_name(cell: Cell) -> str:
    """Return how requests arrive in an open loop: "Poisson 4/s", "gamma sweep", "trace"."""
    kind = "Poisson" if cell.arrival == "poisson" else str(cell.arrival)
    if cell.rate_per_second:
        return f"{kind} {cell.rate_per_second:.4g}/s"
    # Without a rate the cell stands for all rates of a sweep; a trace brings its own.
    return kind if cell.arrival == "trace" else f"{kind} sweep"


def short_name(cell: Cell | None) -> str:
    """Return a cell in as few characters as tell it from others: "50→16, ×25", "cold, 50→1, ×1", "greedy, 32"."""
    if cell is None:
        return "launch"
    if cell.variant and cell.output_tokens == 0:
        return f"{cell.variant}, {cell.prompt_tokens}"
    load = arrivals_name(cell) if cell.arrival else f"×{cell.concurrency}"
    most = "≤" if cell.workload else ""
    return ", ".join([*kinds_of(cell), f"{most}{cell.prompt_tokens}→{most}{cell.output_tokens}, {load}"])


def cell_order(cell: Cell) -> tuple[str, str, str, int, int, str, int, float]:
    """Return the key that sorts cells: variants, workloads, decodings, lengths, closed loops before open ones, load."""
    return (
        cell.variant or "",
        cell.workload or "",
        cell.decoding or "",
        cell.prompt_tokens,
        cell.output_tokens,
        cell.arrival or "",
        cell.concurrency,
        cell.rate_per_second or 0.0,
    )


def cell_values(cell: Cell | None) -> list[object]:
    """Return the value of every one of `FIELDS`, "" where it is absent."""
    values = [getattr(cell, name) if cell is not None else "" for name in FIELDS]
    # What is not set is false, and so is a concurrency of 0, which is a value.
    return [value if value or value == 0 else "" for value in values]


def is_open(cell: Cell) -> bool:
    """Return whether requests arrive on a schedule, whatever became of those before."""
    return bool(cell.arrival)


def is_concurrent(cell: Cell) -> bool:
    """Return whether several requests of a cell can be in flight at once; they can where it is not told."""
    return cell.concurrency != 1 or is_open(cell)
