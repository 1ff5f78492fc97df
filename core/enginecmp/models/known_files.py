"""What is known of weights files without reading them again: their sidecars, in the cache.

The cache is one folder: NAME.QUANTIZATION.gguf, each with a sidecar NAME.QUANTIZATION.gguf.json that keeps its
hash. A file whose size or modification time is no longer the sidecar's is read and hashed again. Files outside
the cache are never written to: their sidecars lie in the cache's folder `known`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from enginecmp.errors import ModelError, ResultsError
from enginecmp.format.documents import read_json
from enginecmp.models.gguf_split import part_names
from enginecmp.models.paths import named_in_utf8
from enginecmp.types import ModelInfo


class Sidecar(msgspec.Struct, kw_only=True):
    """What is remembered of a weights file, valid as long as its size and modification time are these.

    Attributes:
        sha256: of the content; of a split model, of all parts one after the other.
        bytes: size of the file; of a split model, of its first part.
        mtime_ns: modification time in ns since 1970.
        others: size and modification time of the further parts of a split model.
        source: where it came from: a distribution, an "hf:" URI, or the SHA-256 of the file that it was derived from.
        info: what the host tells engines and results.
    """

    sha256: str
    bytes: int
    mtime_ns: int
    source: str
    info: ModelInfo
    others: tuple[tuple[int, int], ...] = ()


def cache_dir() -> Path:
    """Return the folder of cached models: ENGINECMP_CACHE, else the user's cache folder for applications."""
    if override := os.environ.get("ENGINECMP_CACHE"):
        return Path(override).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("enginecmp")) / "models"


def cached() -> list[Sidecar]:
    """Return the weights files of the cache by name; a file that was replaced is not among them."""
    found = (remembered(path.with_suffix("")) for path in sorted(cache_dir().glob("*.gguf.json")))
    return sorted((sidecar for sidecar in found if sidecar), key=lambda sidecar: sidecar.info.name)


def info_of(path: Path, *, name: str | None = None, source: str = "") -> ModelInfo:
    """Return what a file is, hashing and checking it only when it is new or has changed.

    Raises:
        ModelError: the file is missing or malformed.
    """
    path = named_in_utf8(path)
    sidecar = remembered(path)
    if sidecar is not None and (name is None or name == sidecar.info.name):
        return sidecar.info
    from enginecmp.models.info import describe

    info = describe(path, name=name)
    # An unwritable cache costs a hash at the next run, nothing else.
    remember(info, source or info.path, required=False)
    return info


def _sidecar_path(path: Path) -> Path:
    """Return where a weights file's sidecar lies: beside it inside the cache, else in `known`."""
    path = path.absolute()
    if path.is_relative_to(cache_dir()):
        return path.with_name(f"{path.name}.json")
    return known_place(path, ".json")


def known_place(path: Path, ending: str) -> Path:
    """Return the file of the cache that keeps what is known of an absolute path outside it."""
    return cache_dir() / "known" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}{ending}"


def remembered(path: Path) -> Sidecar | None:
    """Return a file's sidecar if there is one and the file is still that file."""
    try:
        status = path.stat()
        sidecar: Sidecar = read_json(_sidecar_path(path), Sidecar)
    except (OSError, ResultsError):
        return None
    # A first part that an earlier version took for the whole model.
    split = len(part_names(path.name)) > 1
    same = (sidecar.bytes, sidecar.mtime_ns) == (status.st_size, status.st_mtime_ns)
    if not same or sidecar.info.path != str(path.absolute()) or split != bool(sidecar.info.parts):
        return None
    return sidecar if sidecar.others == _stamps(sidecar.info.parts[1:]) else None


def _stamps(paths: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return size and modification time of each file; (0, 0) where it is missing."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def remember(info: ModelInfo, source: str, *, required: bool = True) -> None:
    """Write a file's sidecar, whole or not at all."""
    path = Path(info.path)
    status = path.stat()
    sidecar = Sidecar(
        sha256=info.sha256,
        bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        source=source,
        info=info,
        others=_stamps(info.parts[1:]),
    )
    encoded = msgspec.json.format(msgspec.json.encode(sidecar), indent=1)
    write_known(_sidecar_path(path), encoded, required=required)


def write_known(place: Path, content: bytes, *, required: bool = True) -> None:
    """Write what is known of a file, whole or not at all.

    Args:
        place: of the sidecar.
        content: of it.
        required: else a cache that cannot be written to is passed over: it costs a hash at the next run.

    Raises:
        ModelError: it cannot be written.
    """
    from enginecmp.models.gguf_write import whole_file

    try:
        with whole_file(place, len(content)) as file:
            file.write(content)
    except ModelError:
        if required:
            raise
