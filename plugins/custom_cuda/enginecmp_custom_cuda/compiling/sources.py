"""Where the kernels' sources lie, which files a source takes in, and what it is compiled with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from enginecmp import EngineError, did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
KERNELS = PACKAGE / "kernels"
EMULATOR = PACKAGE / "emulator"
INCLUDE_FOLDERS = (KERNELS, EMULATOR)

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)

Defines = Mapping[str, str]


def find(source: str | Path) -> Path:
    """Return the path of a kernel file: "decode" is kernels/decode.cu, a path is itself.

    Raises:
        EngineError: there is no such file.
    """
    if isinstance(source, Path):
        if source.is_file():
            return source
        msg = f"custom_cuda: expected a kernel source, got no file {source}; check the path"
        raise EngineError(msg)
    path = KERNELS / f"{source}.cu"
    if path.is_file():
        return path
    known = did_you_mean(source, (file.stem for file in KERNELS.glob("*.cu")))
    msg = f"custom_cuda: expected a file of {KERNELS}, got '{source}'{known}"
    raise EngineError(msg)


def closure(source: Path, include_folders: tuple[Path, ...] = INCLUDE_FOLDERS) -> dict[Path, str]:
    """Return the text of a source and of every file that it may include.

    Conditions are not evaluated: a header that only the emulator takes counts too. Names that lie nowhere (`<...>`
    and the compiler's own) are left out.
    """
    texts: dict[Path, str] = {}
    waiting = [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = path.read_text(encoding="utf-8")
        for included in _INCLUDE.findall(texts[path]):
            folders = (path.parent, *include_folders)
            waiting += [(folder / included).resolve() for folder in folders if (folder / included).is_file()][:1]
    return texts


def macros(defines: Defines) -> list[tuple[str, str]]:
    """Return the defines as sorted pairs, so that their order changes nothing.

    Raises:
        EngineError: a name is no macro name, or a value has characters beyond names, numbers and signs.
    """
    for name, value in defines.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or not re.fullmatch(r"[\w.+-]*", str(value)):
            msg = f"custom_cuda: expected a define like WEIGHT=WEIGHT_Q8_0, got {name}={value}; correct it"
            raise EngineError(msg)
    return sorted((name, str(value)) for name, value in defines.items())
