"""One variant of the scenarios, and which aggregators its nodes and attackers allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

MOST_NODES = 50

AGGREGATORS = ("fedavg", "median", "trimmed_mean", "krum", "multi_krum", "bulyan")

_RULES = {
    # Blanchard et al. 2017, proposition 1: 2f + 2 < n.
    "krum": (2, 3),
    "multi_krum": (2, 3),
    # El Mhamdi et al. 2018, section 4: n >= 4f + 3.
    "bulyan": (4, 3),
    # Yin et al. 2018: fewer than half may lie, and trimming f at both ends must leave one.
    "median": (2, 1),
    "trimmed_mean": (2, 1),
}


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant of a scenario.

    Attributes:
        task: "planted": nodes send a known truth with noise of their own; "training": they train a small model.
        nodes: that take part in every round, attackers among them.
        attackers: how many of them attack.
        attack: "sign_flip": the honest delta times -strength; "scaling": times strength; "noise": Gaussian noise of
            `strength` times the length of the honest delta.
        strength: see `attack`.
        compression: of a delta on its way to the server.
        top_k_share: values that "top_k" keeps of each matrix.
        rank: of the adapter.
        layers: adapted layers (planted); each has an adapter on its query and its value projection.
        hidden: width of the layer (planted): inputs of both projections, outputs of the query.
        value_width: outputs of the value projection (planted).
        spread: length of a node's own noise as a share of the truth's (planted).
        rounds: of a federation (training).
        local_steps: of gradient descent at a node in a round (training).
        skew: concentration of the Dirichlet distribution over classes at a node (training); small is uneven.
        draw: of the nodes' noise or data; 0 draws anew in every launch, so that intervals are over draws.
    """

    task: Literal["planted", "training"] = "planted"
    nodes: int = 10
    attackers: int = 0
    attack: Literal["none", "sign_flip", "scaling", "noise"] = "none"
    strength: float = 10.0
    compression: Literal["none", "float16", "int8", "top_k"] = "none"
    top_k_share: float = 0.1
    rank: int = 8
    layers: int = 30
    hidden: int = 576
    value_width: int = 192
    spread: float = 1.0
    rounds: int = 10
    local_steps: int = 10
    skew: float = 1.0
    draw: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can mean.

        Raises:
            ValueError: names the number, what was expected and what it got.
        """
        most = {"nodes": MOST_NODES, "rank": 256, "layers": 256, "hidden": 16384, "value_width": 16384}
        least = {"nodes": 3, "attackers": 0, "draw": 0}
        for name, number in msgspec.structs.asdict(self).items():
            if isinstance(number, bool) or not isinstance(number, int):
                continue
            low, high = least.get(name, 1), most.get(name, 1000 if name != "draw" else MOST_DRAWS)
            if not low <= number <= high:
                msg = f"expected {name} from {low} to {high}, got {number}"
                raise ValueError(msg)
        for name, low_open, high_float in (("strength", 0.0, 1e6), ("top_k_share", 0.0, 1.0), ("skew", 0.0, 1e6)):
            if not low_open < getattr(self, name) <= high_float:
                msg = f"expected {name} above {low_open:g} and up to {high_float:g}, got {getattr(self, name):g}"
                raise ValueError(msg)
        if not 0 <= self.spread <= 100:
            msg = f"expected spread from 0 to 100, got {self.spread:g}"
            raise ValueError(msg)
        if 2 * self.attackers >= self.nodes:
            msg = f"expected attackers below half of {self.nodes} nodes, got {self.attackers}"
            raise ValueError(msg)
        if (self.attack == "none") != (self.attackers == 0):
            msg = f'expected attack = "none" with no attackers and only then, got {self.attack!r} of {self.attackers}'
            raise ValueError(msg)
        if self.task == "planted" and (values := self.values) > MOST_VALUES:
            msg = f"expected at most {MOST_VALUES} values in an adapter, got {values}"
            raise ValueError(msg)

    @property
    def values(self) -> int:
        """Numbers in a planted adapter."""
        return self.layers * self.rank * (3 * self.hidden + self.value_width)


MOST_VALUES = 1 << 22
MOST_DRAWS = (1 << 24) - 1
"""A draw travels in a float32, which holds whole numbers up to 2^24."""


def parameters_of(table: Mapping[str, Any]) -> Parameters:
    """Return a variant of the scenario.

    Raises:
        ValueError: an unknown key, another type or a number that cannot be.
    """
    return msgspec.convert(dict(table), Parameters)


def broken_rule(aggregator: str, nodes: int, attackers: int) -> str:
    """Return which rule of an aggregator so many nodes and attackers break, in one line; "" for none.

    Args:
        aggregator: one of `AGGREGATORS`.
        nodes: that take part.
        attackers: that it shall tolerate.
    """
    if aggregator not in _RULES:
        return ""
    factor, more = _RULES[aggregator]
    least = factor * attackers + more
    if nodes >= least:
        return ""
    return (
        f"{aggregator} needs nodes >= {factor} * attackers + {more}: expected at least {least} nodes for {attackers} "
        f"attackers, got {nodes}; leave this aggregator out or change the variant"
    )
