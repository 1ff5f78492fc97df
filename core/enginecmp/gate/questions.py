"""What is asked of which engine at the gate, and what the answer to one question lets the next one say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from enginecmp.format.records import EQUIVALENT, NOT_PROVEN, TIMED_ONLY, Equivalence
from enginecmp.gate.gate import Gate
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions, ModelInfo


class Question(NamedTuple):
    """One engine, as it is loaded for one of the questions, and the file that it is asked about."""

    config: EngineConfig
    model: ModelInfo
    kind: Literal["reference", "exact", "timed"]

    @property
    def subject(self) -> tuple[Plugin, LoadOptions, ModelInfo, str]:
        """Engine, options, file and kind: by these an answer is kept (`enginecmp.gate.kept`)."""
        return self.config.plugin, self.config.options, self.model, self.kind


def questions(configs: Sequence[EngineConfig], gate: Gate, exact_options: LoadOptions) -> list[Question]:
    """Return what is asked of which engine, in order."""
    asked: list[Question] = []
    for config in configs:
        assert config.plugin.info is not None
        plain = msgspec.structs.replace(config.options, context_tokens=exact_options.context_tokens, max_sequences=1)
        careful = msgspec.structs.replace(plain, numerics="exact")
        if not gate.timed_only:
            exact = msgspec.structs.replace(config, options=careful)
            if config.plugin.origin == gate.reference.origin and careful == exact_options:
                asked.append(Question(exact, gate.exact, "reference"))
            elif _can_be_asked(config, gate):
                asked.append(Question(exact, gate.exact, "exact"))
        asked.append(Question(msgspec.structs.replace(config, options=plain), gate.timed, "timed"))
    return asked


def _can_be_asked(config: EngineConfig, gate: Gate) -> bool:
    """Say whether an engine can be given the exact file at all: one that runs already serves the timed one."""
    assert config.plugin.info is not None
    if config.probed.running and gate.exact.sha256 != gate.timed.sha256:
        return False
    return gate.exact.quantization in config.plugin.info.quantizations


def graded(question: Question, entry: Equivalence, before: Sequence[Equivalence], gate: Gate) -> Equivalence:
    """Return the entry of a timed file as the answer to the exact question, which came before it, lets it stand."""
    if gate.timed_only or question.kind != "timed" or entry.verdict != EQUIVALENT:
        return entry
    exact = [other for other in before if other.engine == entry.engine]
    if exact and exact[-1].verdict != NOT_PROVEN:
        return entry
    if exact:
        why = f"the {gate.exact.quantization} file has no answer"
    elif question.config.probed.running:
        why = f"it runs already, so it cannot be asked on the {gate.exact.quantization} file"
    else:
        why = f"it does not load {gate.exact.quantization}"
    return msgspec.structs.replace(entry, verdict=TIMED_ONLY, note=f"exactness unproven: {why}")
