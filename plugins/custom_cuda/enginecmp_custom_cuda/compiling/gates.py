"""What each kernel file is compiled with in the tests, and what its machine code must and must not contain.

Whoever writes kernels adds lines here. Every file of kernels/ needs at least one line. One line costs a compilation for
each architecture, and a second of disassembly for each one that an instruction is asked for on, so: few defines, and
those that differ most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from . import compile_cubin
from .sass import MOST_REGISTERS, Budget, check

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")

DISASSEMBLED = ("sm_75", "sm_80", "sm_90a", "sm_120")
"""One of each family; the others differ from these in tuning, not in what they have."""


@dataclass(frozen=True)
class Gate:
    """One set of defines of one kernel file.

    Attributes:
        file: in kernels/, without ".cu".
        defines: macro names and values.
        needs: kernel → instructions that it must have. "IDP.4A" everywhere, "UBLKCP>=90" from sm_90 on, "IMMA==75"
            on one architecture; modifiers in any order, others may be there too.
        forbids: kernel → instructions that it must not have, written alike.
        registers: kernel → most registers of a thread, where it is less than its launch bounds give.
        architectures: that it is compiled for.
    """

    file: str
    defines: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forbids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    registers: Mapping[str, int] = field(default_factory=dict)
    architectures: tuple[str, ...] = ARCHITECTURES

    def budgets(self, architecture: str) -> dict[str, Budget]:
        """Return the budgets on one architecture."""
        names = {*self.needs, *self.forbids, *self.registers}
        disassembled = architecture in DISASSEMBLED
        return {
            name: Budget(
                registers=self.registers.get(name, MOST_REGISTERS),
                needs=on(architecture, self.needs.get(name, ())) if disassembled else (),
                forbids=on(architecture, self.forbids.get(name, ())) if disassembled else (),
            )
            for name in names
        }


def on(architecture: str, instructions: tuple[str, ...]) -> tuple[str, ...]:
    """Return the instructions that are asked for on an architecture, without their conditions."""
    number = int(architecture.removeprefix("sm_").rstrip("af"))
    asked = []
    for text in instructions:
        least, most = 0, 1000
        instruction = text
        if ">=" in text:
            instruction, _, bound = text.partition(">=")
            least = int(bound)
        elif "==" in text:
            instruction, _, bound = text.partition("==")
            least = most = int(bound)
        if least <= number <= most:
            asked.append(instruction)
    return tuple(asked)


def examine(gate: Gate, architecture: str) -> list[str]:
    """Compile one line of the table for one architecture; return what is wrong with it."""
    return check(compile_cubin(gate.file, gate.defines, architecture), gate.budgets(architecture))


GATES: tuple[Gate, ...] = ()
