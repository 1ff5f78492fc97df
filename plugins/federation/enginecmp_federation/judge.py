"""Judges what a federation came to: its distance from the planted truth, or its loss on data that no node had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from enginecmp import Given
from enginecmp_federation import planted, small_model
from enginecmp_federation.settings import MOST_DRAWS, parameters_of


class TruthJudge:
    """One variant of a scenario; see `enginecmp.Judge`."""

    def __init__(self, parameters: Mapping[str, Any], given: Given) -> None:
        self._settings = parameters_of(parameters)
        self._seed = given.seed
        self._truth: planted.Floats | None = None
        self._central: dict[int, float] = {}

    def question(self) -> tuple[Mapping[str, Any], int]:
        """Return the parameters and the seed; a call works on one delta of every node."""
        if self._settings.task == "planted" and self._truth is None:
            self._truth = planted.truth(self._settings, self._seed)
        return {**msgspec.to_builtins(self._settings), "seed": self._seed}, self._settings.nodes

    def judge(self, answer: Any, seconds: float, marks: Sequence[float]) -> Mapping[str, float]:
        """Return the error of the aggregate, or the losses after the last round.

        Args:
            answer: (rounds, 1 + values) float32: the draw, then the aggregate (planted, one round) or the adapter.
            seconds: not needed.
            marks: none.

        Raises:
            ValueError: not of that form, not finite, or of no draw.
        """
        settings = self._settings
        shapes = planted.shapes_of(settings) if settings.task == "planted" else small_model.shapes_of(settings)
        expected = (
            1 if settings.task == "planted" else settings.rounds,
            1 + sum(rows * columns for rows, columns in shapes),
        )
        got = getattr(answer, "shape", None)
        if got != expected:
            msg = f"expected the rounds' vectors, a matrix {expected}, got {got or repr(answer)[:80]}"
            raise ValueError(msg)
        draw, last = float(answer[-1, 0]), np.asarray(answer[-1, 1:], np.float32)
        if not 1 <= draw <= MOST_DRAWS:
            msg = f"expected a draw from 1 to {MOST_DRAWS} before the values, got {draw:g}"
            raise ValueError(msg)
        if not np.isfinite(last).all():
            msg = f"expected finite numbers, got {int(np.count_nonzero(~np.isfinite(last)))} others"
            raise ValueError(msg)
        if self._truth is not None:
            away = np.linalg.norm(last.astype(np.float64) - self._truth)
            return {"relative_error": float(away / np.linalg.norm(self._truth.astype(np.float64)))}
        model = small_model.model_of(self._seed)
        unseen = small_model.held_out(model, self._seed)
        if int(draw) not in self._central:
            self._central[int(draw)] = small_model.loss(model, self._centrally_trained(model, int(draw)), unseen)
        return {
            "heldout_loss": small_model.loss(model, planted.split(last, shapes), unseen),
            "central_loss": self._central[int(draw)],
        }

    def _centrally_trained(self, model: small_model.Model, draw: int) -> list[planted.Floats]:
        """Return the adapter after a node's steps of all rounds, each on as many examples as all nodes' together."""
        settings = self._settings
        parts = [small_model.data_of(model, settings, self._seed, draw, node) for node in range(settings.nodes)]
        data = small_model.Data(
            np.concatenate([part.inputs for part in parts]), np.concatenate([part.classes for part in parts])
        )
        return small_model.trained(
            model,
            small_model.start(settings, self._seed),
            data,
            settings.rounds * settings.local_steps,
            small_model.BATCH * settings.nodes,
            np.random.default_rng([self._seed, 4, draw]),
        )
