"""Flags of samples: reasons to leave one out, declared before the run (docs/results-format.md says when)."""

from enum import StrEnum


class Flag(StrEnum):
    """What the host flags by itself; sensors add their conditions under names of their own, e.g. "gpu_throttled"."""

    FOREIGN_CPU = "foreign_cpu"
    CPU_PRESSURE = "cpu_pressure"
    STEAL = "steal"
    SHORT_OUTPUT = "short_output"
    LONG_OUTPUT = "long_output"
    LATE_DISPATCH = "late_dispatch"
    REPEATED_PROMPT = "repeated_prompt"
    TORN_LAUNCH = "torn_launch"
    STALLED = "stalled"
    TOKENS_DIFFER = "tokens_differ"


DISTURBED = (Flag.FOREIGN_CPU, Flag.CPU_PRESSURE, Flag.STEAL, Flag.STALLED)
"""Flags that say something of the machine and nothing of the engine: such a request may be repeated."""

SPOIL_TIMES = frozenset({*DISTURBED, "cpu_throttled", "gpu_throttled", "gpu_foreign_process"})
"""Flags that say how fast the machine was: times and rates are spoilt, bytes that the engine holds are not."""

OF_THE_ENGINE = (Flag.SHORT_OUTPUT, Flag.LONG_OUTPUT, Flag.REPEATED_PROMPT, Flag.TOKENS_DIFFER)
"""Flags that the engine's own answers cause: a launch that bears one is never repeated for a better one."""
