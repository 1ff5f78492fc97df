"""Judges what an index returned: recall against exact search, and whether it kept to the query's timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from enginecmp import Given
from enginecmp_retrieval.patterns import QUERIES, Bank, bank, parameters_of, true_neighbours


class RecallJudge:
    """One variant of the scenario; see `enginecmp.Judge`."""

    def __init__(self, parameters: Mapping[str, Any], given: Given) -> None:
        self._parameters = parameters_of(parameters)
        self._seed = given.seed
        self._bank: Bank | None = None
        self._true: list[set[int]] = []

    def question(self) -> tuple[Mapping[str, Any], int]:
        """Return the parameters and the seed; an operation is a batch of queries."""
        if self._bank is None:
            self._bank = bank(self._parameters, self._seed)
            self._true = [set(row) for row in true_neighbours(self._bank, self._parameters.k).tolist()]
        return {**msgspec.to_builtins(self._parameters), "seed": self._seed}, self._parameters.batch

    def judge(self, answer: Any, seconds: float, marks: Sequence[float]) -> Mapping[str, float]:
        """Return recall and the share of the right timestep over the batches of one sample.

        Args:
            answer: a list a batch: number of its first query, then the ids of all its queries, k each.
            seconds: not needed.
            marks: none.

        Raises:
            ValueError: not of that form, an id that does not exist, or one twice for a query.
        """
        assert self._bank is not None
        k, batch, n = self._parameters.k, self._parameters.batch, self._parameters.patterns
        if not isinstance(answer, list) or not answer or not all(isinstance(one, list) for one in answer):
            msg = f"expected a list of ids for each batch, got {answer!r:.80}"
            raise ValueError(msg)
        found = steps_kept = total = 0
        for first, *ids in answer:
            if not 0 <= first <= QUERIES - batch or len(ids) != k * batch:
                msg = f"expected {k} ids for each of {batch} queries from {first} on, got {len(ids)}"
                raise ValueError(msg)
            if min(ids) < 0 or max(ids) >= n:
                msg = f"expected ids in [0, {n}), got {min(ids)} to {max(ids)}"
                raise ValueError(msg)
            for row in range(batch):
                of_query = ids[row * k : (row + 1) * k]
                if len(set(of_query)) != k:
                    msg = f"expected {k} different patterns for query {first + row}, got {of_query}"
                    raise ValueError(msg)
                found += len(self._true[first + row].intersection(of_query))
                steps_kept += int(np.count_nonzero(self._bank.steps[of_query] == self._bank.query_steps[first + row]))
            total += k * batch
        return {"recall_share": found / total, "timestep_share": steps_kept / total}
