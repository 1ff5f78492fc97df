"""`cmp model`: list, fetch, convert, describe and synthesize weights files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from enginecmp.cli.console import echo, print_json, say, table
from enginecmp.errors import UsageError, did_you_mean, meant
from enginecmp.format.text import plain
from enginecmp.types import ModelInfo


@click.group("model", short_help="List, fetch, convert, describe or synthesize weights files.")
def command() -> None:
    """List, fetch, convert, describe or synthesize weights files.

    A MODEL is a catalog name such as smollm2-135m-instruct:q8_0, the name of a cached file, the path of a .gguf
    file (of a split model, its first part) or of a Hugging Face folder, hf:OWNER/REPO/FILE.gguf[@REVISION], or
    hf:OWNER/REPO[@REVISION] for a folder. Cached files live in the user's cache folder, or in ENGINECMP_CACHE.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the models that are known by name and the files in the cache."""
    from enginecmp.models.store import cache_dir

    rows = _rows()
    if as_json:
        print_json({"cache": str(cache_dir()), "models": rows})
        return
    table(
        ("model", "type", "MB", "parameters", "sha256", "status"),
        [
            (
                row["name"],
                row["quantization"],
                f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "",
                f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else "",
                row["sha256"][:12],
                (row["status"], "green" if row["status"] == "cached" else ""),
            )
            for row in rows
        ],
        right=("MB", "parameters"),
    )
    echo()
    echo(f"cache: {cache_dir()}")


@command.command("pull")
@click.argument("model")
@click.option("--sha256", metavar="HEX", help="What the file must hash to; anything else is refused.")
def pull_command(model: str, sha256: str | None) -> None:
    """Bring MODEL into the cache: a catalog name or an hf: URI.

    A file that is there already is not fetched again.
    """
    from enginecmp.models.store import pull

    _require_hex(sha256)
    _print_result(pull(model, sha256=sha256, say=say, progress=sys.stderr.isatty()))


@command.command("quantize")
@click.argument("model")
@click.argument("quantization")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write this file, not one in the cache.")
def quantize_command(model: str, quantization: str, output: Path | None) -> None:
    """Write MODEL again with every matrix in QUANTIZATION (f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0).

    Norms and biases stay F32. A catalog model is always made from the file as it is carried, so nothing is
    rounded twice. The result is deterministic.
    """
    from enginecmp.models.catalog import CATALOG
    from enginecmp.models.store import base_name, cache_dir, derived, pull, resolve

    base = model.partition(":")[0]
    if base in CATALOG and output is None:
        _print_result(pull(f"{base}:{quantization}", say=say, progress=sys.stderr.isatty()))
        return
    source = pull(base, say=say, progress=sys.stderr.isatty()) if base in CATALOG else resolve(model, fetch=True)
    if output is None:
        target = cache_dir() / f"{base_name(source)}.{quantization.lower()}.gguf"
        _print_result(derived(source, quantization, target, say=say))
        return
    from enginecmp.models.quantize import quantize

    info, notes = quantize(source.path, output, quantization)
    for note in notes:
        say(note)
    _print_result(info)


@command.command("convert")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
def convert_command(model: str, output: Path) -> None:
    """Write MODEL in the other form: a GGUF file as the Hugging Face folder OUTPUT, a folder as OUTPUT.gguf.

    Weights in F32, F16 and BF16 stay bit for bit; other types become F32. The tokenizer is proven on texts before
    anything appears. Architectures: llama (and mistral), qwen2, phi3, gpt2. `cmp run` does this by itself, into the
    cache, for engines that read the other form only.
    """
    from enginecmp.models.gguf_file import read_gguf
    from enginecmp.models.gguf_write import copy_file
    from enginecmp.models.huggingface.folder import folder_sha256
    from enginecmp.models.huggingface.to_folder import write_folder_of
    from enginecmp.models.store import resolve

    info = resolve(model, fetch=True, say=say)
    to_gguf = output.suffix == ".gguf"
    if to_gguf != (info.derived == "gguf"):
        other = "a folder OUTPUT, without .gguf" if to_gguf else "OUTPUT.gguf"
        msg = f"{model}: expected {other}, got {output}; `cmp model quantize` changes types of weights"
        raise UsageError(msg)
    if to_gguf:
        # Made already, to be described: into the cache, under the folder's hash.
        copy_file(Path(info.path), output)
        echo(f"{output}  sha256:{info.sha256}  made from {info.hf_folder}  sha256:{info.hf_sha256}")
        return
    write_folder_of(read_gguf(info.path), info.sha256, output)
    echo(f"{output}  sha256:{folder_sha256(output)}  made from {info.path}  sha256:{info.sha256}")


@command.command("info")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info_command(model: str, as_json: bool) -> None:
    """Say what MODEL is: hash, shape, context, tensor types, KV cache per token."""
    from enginecmp.models.gguf_file import read_gguf
    from enginecmp.models.info import shape_of, type_histogram
    from enginecmp.models.store import resolve

    info = resolve(model, fetch=False, say=say)
    file = read_gguf(info.path)
    shape = shape_of(file)
    facts = {
        **msgspec.to_builtins(info),
        **msgspec.to_builtins(shape),
        "quantization_histogram": dict(type_histogram(file).most_common()),
        "kv_bytes_per_token": shape.kv_bytes_per_token(),
        "tokenizer": plain(str(file.metadata.get("tokenizer.ggml.model", "")), 60),
        "description": plain(str(file.metadata.get("general.description", "")), 1000),
    }
    if as_json:
        print_json(facts)
        return
    types = ", ".join(f"{kind} {count:,}" for kind, count in facts["quantization_histogram"].items())
    lines = {
        "name": info.name,
        "path": info.path,
        "sha256": info.sha256,
        **({"made from": info.hf_folder, "its sha256": info.hf_sha256} if info.derived == "gguf" else {}),
        "architecture": info.architecture,
        "parameters": f"{info.parameters:,}",
        "layers": shape.layers,
        "hidden size": shape.hidden,
        "heads": f"{shape.heads} query, {shape.kv_heads} key/value, {shape.head_dim} wide",
        "feed-forward": shape.feed_forward,
        "context": f"{info.context_tokens:,} tokens",
        "vocabulary": f"{info.vocabulary:,} tokens ({facts['tokenizer'] or 'no tokenizer'})",
        "weights by type": types,
        "file": f"{info.bytes:,} bytes" + (f" in {len(info.parts)} parts of a split model" if info.parts else ""),
        "KV cache": f"{shape.kv_bytes_per_token():,} bytes per token (F16)",
    }
    if facts["description"]:
        lines["description"] = facts["description"]
    width = max(map(len, lines))
    for name, value in lines.items():
        echo(f"{name:<{width}}  {value}")


@command.command("synth")
@click.option("--like", required=True, metavar="SHAPE", help="llama-3.2-1b, qwen2.5-0.5b, tiny-llama, ...")
@click.option("--quant", "quantization", default="Q8_0", show_default=True, help="Tensor type of the matrices.")
@click.option("--seed", type=int, default=0, show_default=True, help="Every weight comes from it.")
@click.option("--layers", type=int, help="Another number of layers than the original's.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .gguf file to write.")
def synth_command(like: str, quantization: str, seed: int, layers: int | None, output: Path) -> None:
    """Write a model with seeded random weights in a known shape.

    It says nothing sensible, but costs an engine what the real one costs. Shapes: llama-3.2-1b, llama-3.2-3b,
    qwen2.5-0.5b, phi-3-mini, gpt-2-small, mistral-7b; of diffusion models llada-8b, dream-7b and llada-135m;
    tiny-llama, tiny-qwen2, tiny-phi3, tiny-gpt2, tiny-llada and tiny-dream are under 1 MB and need no download.
    Plugins may bring others.
    """
    from enginecmp.models.synth import write_synth
    from enginecmp.models.synth_shapes import SHAPES

    if meant(like, SHAPES) not in SHAPES:
        from enginecmp.plugins.brought import brought
        from enginecmp.plugins.brought_model import write_brought

        models = brought().models
        if (name := meant(like, models)) in models:
            _print_result(write_brought(name, models[name], output, quantization, seed, layers))
            return
        msg = f"synth: expected a known shape, got '{like}'{did_you_mean(like, {**SHAPES, **models})}"
        raise UsageError(msg)
    _print_result(write_synth(output, like, quantization, seed, layers))


def _rows() -> list[dict[str, Any]]:
    """Return one row a model: the catalog's files, then the other files of the cache."""
    from enginecmp.models.catalog import CATALOG, DEFAULT_QUANTIZATION
    from enginecmp.models.store import cached

    here = {sidecar.info.name: sidecar for sidecar in cached()}
    rows = []
    for model in CATALOG.values():
        for quantization in dict.fromkeys((model.quantization, DEFAULT_QUANTIZATION, "f32")):
            name = f"{model.name}:{quantization}"
            if name not in here:
                carried = quantization == model.quantization
                rows.append(
                    {
                        "name": name,
                        "quantization": quantization.upper(),
                        "bytes": model.bytes if carried else 0,
                        "parameters": 0,
                        "sha256": model.sha256 if carried else "",
                        "architecture": "",
                        "path": "",
                        "status": "to fetch" if carried else "to derive",
                        "source": f"{model.distribution} {model.version}" if carried else model.sha256,
                    }
                )
    for sidecar in here.values():
        rows.append({**msgspec.to_builtins(sidecar.info), "status": "cached", "source": sidecar.source})
    return sorted(rows, key=lambda row: row["name"])


def _require_hex(sha256: str | None) -> None:
    """Refuse something that cannot be a SHA-256 before anything is fetched."""
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        msg = f"--sha256: expected 64 hexadecimal digits, got '{sha256}'"
        raise click.UsageError(msg)


def _print_result(info: ModelInfo) -> None:
    """Print one line on stdout: the model that is now there."""
    echo(f"{info.name}  {info.quantization}  {info.bytes:,} bytes  sha256:{info.sha256}  {info.path}")
