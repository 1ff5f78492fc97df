"""The locked room: `python -I -m enginecmp_text_quality.jail WORD FOLDER` runs what its stdin holds, then says WORD.

Before the program begins the process has a network without an interface, an empty folder as its root, no capability, no
way to gain one, no open file but its answer, and limits of processor time, memory, files and processes. What Python
programs use as a rule is imported before; nothing else can be.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import sys

CPU_SECONDS = 2
MEMORY_BYTES = 512 << 20

_ALLOWED = (
    *(
        "abc",
        "array",
        "bisect",
        "cmath",
        "collections",
        "collections.abc",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
    ),
    *("enum", "fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re"),
    *("statistics", "string", "textwrap", "traceback", "types", "typing", "unicodedata"),
)
"""Modules that a program can import."""

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x20000, 0x10000000, 0x40000000, 0x8000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_CAPABILITIES_VERSION = 0x20080522


def lock_up(root: str) -> None:
    """Take everything from this process that a function over its arguments does not need.

    Args:
        root: an empty folder, all that is left of the files.

    Raises:
        OSError: the kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")

    call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWIPC)
    os.chroot(root)
    os.chdir("/")
    for kind, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def main(word: str, root: str) -> None:
    """Run the program on stdin, and say the word where it came to its end."""
    del sys.argv[1:]
    program = sys.stdin.buffer.read(1 << 20)
    for name in _ALLOWED:
        importlib.import_module(name)
    answer = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.closerange(3, answer)
    os.closerange(answer + 1, 1024)
    try:
        lock_up(root)
    except OSError as error:
        os.write(answer, f"{error.strerror}\n".encode())
        os._exit(1)
    os.write(answer, b"jailed\n")
    # Nothing may be opened from here on: what was opened before stays.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    try:
        exec(compile(program, "program", "exec"), {"__name__": "program"})
    except BaseException:
        os._exit(2)
    os.write(answer, f"{word}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:3])
