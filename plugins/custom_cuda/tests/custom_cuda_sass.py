"""What the compiler made of a kernel: registers, memory and machine instructions, read without a GPU.

The wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm bring the two programs (extra "sass"); they are not looked
for on PATH, so that every machine reads with the same ones.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from enginecmp import EngineError

INSTALL = "pip install 'enginecmp-custom-cuda[sass]'"

MOST_REGISTERS = 255
"""Of a thread, on every architecture since Kepler."""

_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_FUNCTION = re.compile(r"^\s*Function : (\w+)$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes.

    Attributes:
        registers: of a thread.
        stack_bytes: of a thread: arrays indexed at run time, and registers that did not fit.
        local_bytes: of a thread, beside the stack.
        shared_bytes: of a block, static; from sm_80 on with the 1024 bytes that the system keeps.
        opcodes: instructions with their modifiers, such as "LDG.E.128.CONSTANT", and how often each occurs.
    """

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    opcodes: Counter[str] = field(default_factory=Counter)

    def has(self, instruction: str) -> bool:
        """Return whether an instruction occurs, with at least the modifiers named: "LDG.128" finds "LDG.E.128"."""
        name, *modifiers = instruction.split(".")
        return any(
            found[0] == name and set(modifiers) <= set(found[1:]) for found in (op.split(".") for op in self.opcodes)
        )


@dataclass(frozen=True)
class Budget:
    """What one kernel may take.

    Attributes:
        registers: of a thread, at most.
        shared_bytes: of a block, at most; None does not ask.
        needs: instructions that must occur, as `Usage.has` takes them.
        forbids: instructions that must not.
    """

    registers: int = MOST_REGISTERS
    shared_bytes: int | None = None
    needs: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()


def check(cubin: bytes, budgets: Mapping[str, Budget]) -> list[str]:
    """Return what is wrong with a cubin's kernels, one line each; nothing when all is well.

    No kernel may use stack or local memory, whether a budget names it or not. Instructions are read only where a
    budget asks for some, because that takes a second.

    Args:
        cubin: from `compile_cubin`.
        budgets: by kernel name.
    """
    asked = any(budget.needs or budget.forbids for budget in budgets.values())
    usages = read(cubin, opcodes=asked)
    problems = [f"{name}: expected a kernel of this name, got none" for name in budgets if name not in usages]
    for name, usage in usages.items():
        budget = budgets.get(name, Budget())
        if usage.stack_bytes or usage.local_bytes:
            problems.append(
                f"{name}: expected no memory behind the registers, got stack {usage.stack_bytes} and local "
                f"{usage.local_bytes} bytes a thread"
            )
        if usage.registers > budget.registers:
            problems.append(f"{name}: expected at most {budget.registers} registers, got {usage.registers}")
        if budget.shared_bytes is not None and usage.shared_bytes > budget.shared_bytes:
            problems.append(f"{name}: expected at most {budget.shared_bytes} shared bytes, got {usage.shared_bytes}")
        problems += [f"{name}: expected {op}, got none" for op in budget.needs if not usage.has(op)]
        problems += [f"{name}: expected no {op}, got some" for op in budget.forbids if usage.has(op)]
    return problems


def read(cubin: bytes, *, opcodes: bool = True) -> dict[str, Usage]:
    """Return what each kernel of a cubin takes.

    Args:
        cubin: machine code of one architecture.
        opcodes: disassemble too, which takes a second.

    Raises:
        EngineError: the programs are missing, or cannot read it.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        # In two calls: the first one alone does not start the disassembler.
        usage = _dump("-res-usage", file.name)
        listing = _dump("-sass", file.name) if opcodes else ""
    counts = dict(_instructions(listing))
    usages = {}
    for name, *numbers in _USAGE.findall(usage):
        registers, stack, shared, local = map(int, numbers)
        usages[name] = Usage(registers, stack, local, shared, counts.get(name, Counter()))
    return usages


def _instructions(listing: str) -> list[tuple[str, Counter[str]]]:
    """Return the instructions of each function of a listing."""
    # Before the first function there is only a header; then names and bodies take turns.
    parts = _FUNCTION.split(listing)[1:]
    return [(name, Counter(_INSTRUCTION.findall(body))) for name, body in zip(parts[::2], parts[1::2], strict=True)]


def _dump(option: str, path: str) -> str:
    program = _program("cuobjdump")
    environment = {**os.environ, "NVDISASM_PATH": str(_program("nvdisasm").parent)}
    done = subprocess.run([program, option, path], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        msg = f"custom_cuda: expected machine code that cuobjdump reads, got: {said[-1]}; compile again"
        raise EngineError(msg)
    return done.stdout


@functools.cache
def _program(name: str) -> Path:
    """Return the path of a program inside its wheel."""
    try:
        files = metadata.files(f"nvidia-cuda-{name}") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate())).resolve()
    msg = f"custom_cuda: expected {name} in the wheel nvidia-cuda-{name}, got none; {INSTALL}"
    raise EngineError(msg)
