"""What each kernel file is compiled with in the tests, and what its machine code must and must not contain.

Whoever writes kernels adds lines here; every file of kernels/ needs a line for each architecture. A line costs a
compilation for each of its architectures, and a second of disassembly for each one that an instruction is asked for on,
so: few defines, and those that differ most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import custom_cuda_sass as sass
from custom_cuda_sass import MOST_REGISTERS, Budget

from enginecmp_custom_cuda.compiling import cache, compile_cubin

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")

AMPERE_ON = ARCHITECTURES[1:]

NOT_OFFERED = {(file, "sm_75") for file in ("persistent", "gemm_mma", "flash_f16")}
"""Files that the engine does not use on an architecture: that one cannot copy to shared memory by itself, and lacks
their instructions on tensor cores."""

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
    cubin, budgets = compile_cubin(gate.file, gate.defines, architecture), gate.budgets(architecture)
    reader = Path(sass.__file__).read_bytes()
    # Reading it takes a second: what is found is kept beside the code, and the code with its budgets is its name.
    name = cache.key(["gate", repr(sorted(budgets.items())), reader, cubin])
    return cache.fetch(name, lambda: "\n".join(sass.check(cubin, budgets)).encode()).decode().splitlines()


AMPERE_AND_HOPPER = ("sm_80", "sm_90a")
"""For further defines of a file that one line compiles for all."""

GEMM_MMA = {"gemm_small": 128, "gemm_medium": 168, "gemm_large": 128}
"""Kernels of gemm_mma.cu and their registers."""

MATVECS = ("qkv", "output", "gate_up", "down", "head")
"""Kernels of decode.cu that read a matrix: weights 16 bytes at a time, by loads that the cache does not keep."""

OVERLAP = ("ACQBULK>=90", "PREEXIT>=90")
"""Waiting for the launch before, and letting the next one in: programmatic dependent launch."""


def decode(weight: str, activation: str, kv: str, head_dim: int, batch: int) -> dict[str, str]:
    """Return the defines of decode.cu."""
    return {
        "WEIGHT": f"WEIGHT_{weight}",
        "ACTIVATION": f"ACTIVATION_{activation}",
        "KV": f"KV_{kv}",
        "HEAD_DIM": str(head_dim),
        "BATCH": str(batch),
    }


GATES: tuple[Gate, ...] = (
    # Decode.
    Gate(
        "decode",
        decode("Q8_0", "Q8", "F16", 64, 1),
        needs={
            **{name: ("LDG.NA.128", "IDP.4A", *OVERLAP) for name in MATVECS},
            "attention": ("LDG.128", *OVERLAP),
            "next": OVERLAP,
        },
        registers={**dict.fromkeys(MATVECS, 80), "attention": 128},
    ),
    Gate(
        "decode",
        decode("Q8_0", "F32", "F32", 64, 1),
        registers=dict.fromkeys(MATVECS, 80),
        architectures=("sm_75", "sm_90a"),
    ),
    Gate(
        "decode",
        decode("Q4_0", "Q8", "F16", 96, 8),
        needs={name: ("LDG.NA.128", "IDP.4A") for name in MATVECS},
        registers=dict.fromkeys(MATVECS, 128),
        architectures=("sm_75", "sm_90a"),
    ),
    Gate(
        "decode",
        decode("F16", "F32", "F16", 128, 1),
        needs={name: ("LDG.NA.128", "FFMA") for name in MATVECS},
        forbids={name: ("IDP",) for name in MATVECS},
        architectures=("sm_80", "sm_120"),
    ),
    Gate("decode", decode("BF16", "F32", "F32", 64, 4), architectures=("sm_89",)),
    Gate("decode", decode("F32", "F32", "F32", 64, 2), architectures=("sm_86",)),
    # The persistent kernel: 9 warps alone on a multiprocessor may have 224 registers each.
    *(
        Gate(
            "persistent",
            decode(weight, activation, kv, head_dim, 1) | {"RING": ring},
            needs={"decode_persistent": ("LDG.128", "LDS.128", dot, copy)},
            forbids={"decode_persistent": ("RED.F32", "ATOM.F32")},
            registers={"decode_persistent": 224},
            architectures=architectures,
        )
        for weight, activation, kv, head_dim, ring, dot, copy, architectures in (
            ("Q8_0", "Q8", "F16", 64, "RING_BULK", "IDP.4A", "UBLKCP", ("sm_90", "sm_90a", "sm_100", "sm_120")),
            ("Q8_0", "Q8", "F16", 64, "RING_ASYNC", "IDP.4A", "LDGSTS.128", ("sm_80", "sm_86", "sm_89")),
            ("Q4_0", "Q8", "F16", 96, "RING_BULK", "IDP.4A", "UBLKCP", ("sm_90a",)),
            ("F32", "F32", "F32", 64, "RING_ASYNC", "FFMA", "LDGSTS.128", ("sm_80",)),
            ("BF16", "F32", "F16", 128, "RING_BULK", "FFMA", "UBLKCP", ("sm_120",)),
        )
    ),
    Gate("sampling", needs={"sampling_histogram": ("ATOMS",)}, registers={"sampling_draw": 128}),
    Gate(
        "expand",
        {"WEIGHT": "WEIGHT_Q8_0", "KV": "KV_F16", "HEAD_DIM": "64"},
        needs={name: ("STG.128",) for name in ("expand_f16", "expand_bf16")},
        registers={"expand_f16": 64, "expand_bf16": 64},
    ),
    # The machine's limits.
    Gate("micro", needs={"read": ("LDG.NA.128",), "step_overlapped": OVERLAP}, registers={"read": 64}),
    # Prefill. Its tiles count on so many registers: more, and fewer blocks share a multiprocessor.
    Gate(
        "gemm_mma",
        {"WEIGHT": "WEIGHT_Q8_0", "KV": "KV_F16", "HEAD_DIM": "64"},
        needs={name: ("IMMA", "LDSM", "LDGSTS.128") for name in GEMM_MMA},
        forbids={name: ("I2FP.F32.S32",) for name in GEMM_MMA},  # sums become floats without a conversion
        registers=GEMM_MMA,
        architectures=AMPERE_ON,
    ),
    Gate(
        "gemm_mma",
        {"WEIGHT": "WEIGHT_Q4_0", "KV": "KV_F32", "HEAD_DIM": "96"},
        needs={name: ("IMMA", "LDSM", "LDGSTS.128") for name in GEMM_MMA},
        registers=GEMM_MMA,
        architectures=AMPERE_AND_HOPPER,
    ),
    Gate(
        "gemm_mma",
        {"WEIGHT": "WEIGHT_F16", "KV": "KV_F16", "HEAD_DIM": "128"},
        needs={name: ("HMMA", "LDSM", "LDGSTS.128") for name in GEMM_MMA},
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
            needs={"flash_f16": ("HMMA", "LDSM", "LDSM.MT88", "LDGSTS.128", "MUFU.EX2")},
            registers={"flash_f16": registers},
            architectures=architectures,
        )
        for head_dim, registers, architectures in (
            (64, 168, AMPERE_AND_HOPPER),
            (96, 255, AMPERE_AND_HOPPER),
            (128, 255, AMPERE_ON),
        )
    ),
    *(
        Gate(
            "attention_split",
            {"KV": kv, "HEAD_DIM": str(head_dim), "BATCH": "8"},
            needs={"attention_split": ("LDG.128", "FFMA"), "attention_merge": ("LDG.128", "STG.128")},
            registers={"attention_split": 128, "attention_merge": 64},
            architectures=architectures,
        )
        for kv, head_dim, architectures in (
            ("KV_F16", 64, ARCHITECTURES),
            ("KV_F16", 96, AMPERE_AND_HOPPER),
            ("KV_F32", 128, AMPERE_AND_HOPPER),
        )
    ),
    Gate(
        "flash_f32",
        {"KV": "KV_F32", "HEAD_DIM": "128"},
        needs={"flash_f32": ("LDG.128", "LDS.128", "FFMA")},
        registers={"flash_f32": 168},
    ),
)
