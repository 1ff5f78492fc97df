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


AMPERE_AND_HOPPER = ("sm_80", "sm_90a")
"""For further defines of a file that one line compiles for all."""

GEMM_MMA = {"gemm_small": 128, "gemm_medium": 168, "gemm_large": 128}
"""Kernels of gemm_mma.cu and their registers."""

GATES: tuple[Gate, ...] = (
    # Prefill. Its tiles count on so many registers: more, and fewer blocks share a multiprocessor.
    Gate(
        "gemm_mma",
        {"WEIGHT": "WEIGHT_Q8_0", "KV": "KV_F16", "HEAD_DIM": "64"},
        needs={name: ("IMMA", "LDSM", "LDGSTS.128>=80") for name in GEMM_MMA},
        registers=GEMM_MMA,
    ),
    Gate(
        "gemm_mma",
        {"WEIGHT": "WEIGHT_Q4_0", "KV": "KV_F32", "HEAD_DIM": "96"},
        needs={name: ("IMMA", "LDSM", "LDGSTS.128>=80") for name in GEMM_MMA},
        registers=GEMM_MMA,
        architectures=AMPERE_AND_HOPPER,
    ),
    Gate(
        "gemm_mma",
        {"WEIGHT": "WEIGHT_F16", "KV": "KV_F16", "HEAD_DIM": "128"},
        needs={name: ("HMMA", "LDSM", "LDGSTS.128>=80") for name in GEMM_MMA},
        registers=GEMM_MMA,
        architectures=AMPERE_AND_HOPPER,
    ),
    Gate(
        "gemm_mma",
        {"WEIGHT": "WEIGHT_BF16", "KV": "KV_F16", "HEAD_DIM": "64"},
        needs={name: ("HMMA.BF16", "LDSM", "LDGSTS.128") for name in GEMM_MMA},
        registers=GEMM_MMA,
        architectures=AMPERE_AND_HOPPER,
    ),
    Gate(
        "gemm_f32",
        {"WEIGHT": "WEIGHT_F32", "KV": "KV_F32", "HEAD_DIM": "64"},
        needs={name: ("LDG.128", "LDS.128", "FFMA") for name in ("gemm_small", "gemm_medium")},
        registers={"gemm_small": 128, "gemm_medium": 128},
    ),
    Gate(
        "prefill",
        {"WEIGHT": "WEIGHT_Q8_0", "KV": "KV_F16", "HEAD_DIM": "64"},
        needs={name: ("LDG.128", "STG.64") for name in ("norm_s8", "quantize_s8")},
        registers={"norm_s8": 64, "quantize_s8": 64, "embed": 64, "reduce": 64},
    ),
    *(
        Gate(
            "flash_f16",
            {"KV": "KV_F16", "HEAD_DIM": str(head_dim)},
            needs={"flash_f16": ("HMMA", "LDSM", "LDSM.MT88", "LDGSTS.128>=80", "MUFU.EX2")},
            registers={"flash_f16": registers},
            architectures=architectures,
        )
        for head_dim, registers, architectures in (
            (64, 168, AMPERE_AND_HOPPER),
            (96, 255, AMPERE_AND_HOPPER),
            (128, 255, ARCHITECTURES),
        )
    ),
    Gate(
        "flash_f32",
        {"KV": "KV_F32", "HEAD_DIM": "128"},
        needs={"flash_f32": ("LDG.128", "LDS.128", "FFMA")},
        registers={"flash_f32": 168},
    ),
)
