"""What the doctor finds: one thing of the machine that does or does not spoil a measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from enginecmp.format.text import plain

Severity = Literal["ok", "note", "warning"]

NOTHING = "nothing can be done from inside a virtual machine"
NO_ANSWER = "nothing: read the numbers with that in mind"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    Attributes:
        check: what was looked at.
        severity: ok; note (know it when you read the numbers); warning (fix it first).
        found: how it is here.
        why: why that spoils a measurement; empty when ok.
        fix: the exact command, or that there is none; empty when ok.
    """

    check: str
    severity: Severity
    found: str
    why: str = ""
    fix: str = ""


def unknown(check: str, got: str, why: str, fix: str = "") -> Finding:
    """Return what is said where nothing was learned: never that all is well.

    Args:
        check: what was to be looked at.
        got: why there is no answer.
        why: what cannot be told without one.
        fix: what gives an answer; empty where nothing does.
    """
    return Finding(check=check, severity="note", found=f"not known: {plain(got)}", why=why, fix=fix or NO_ANSWER)


def text(path: Path) -> str:
    """Return what a file of /proc or /sys holds, stripped; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def field(content: str, name: str) -> str:
    """Return the value behind "name:" in a file like /proc/meminfo or /proc/cpuinfo; "" without it."""
    for line in content.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return ""


def virtual(root: Path) -> bool:
    """Say whether this is a virtual machine."""
    return "hypervisor" in field(text(root / "proc/cpuinfo"), "flags").split()


def gibibytes(n_bytes: float) -> str:
    """Return a size for people."""
    return f"{n_bytes / 2**30:.1f} GiB"
