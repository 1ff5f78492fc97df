"""`cmp model`: list, fetch, convert, describe and invent weights files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from enginecmp.types import ModelInfo


@click.group("model", short_help="List, fetch, convert, describe or invent weights files.")
def command() -> None:
    """List, fetch, convert, describe or invent weights files.

    A MODEL is a catalog name such as smollm2-135m-instruct:q8_0, the name of a cached file, the path of a .gguf
    file, or hf:OWNER/REPO/FILE.gguf[@REVISION]. Cached files live in the user's cache folder, or in
    ENGINECMP_CACHE.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the models that are known by name and the files in the cache."""
    from enginecmp.models.store import cache_dir

    rows = _rows()
    if as_json:
        _print_json({"cache": str(cache_dir()), "models": rows})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "type", "MB", "parameters", "sha256", "status"):
        table.add_column(heading, justify="right" if heading in ("MB", "parameters") else "left", no_wrap=True)
    for row in rows:
        known = bool(row["bytes"])
        table.add_row(
            row["name"],
            row["quantization"],
            f"{row['bytes'] / 1e6:.1f}" if known else "",
            f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else "",
            row["sha256"][:12],
            f"[green]{row['status']}[/]" if row["status"] == "cached" else row["status"],
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\ncache: {cache_dir()}", markup=False, soft_wrap=True)


@command.command("pull")
@click.argument("model")
@click.option("--sha256", metavar="HEX", help="What the file of a URL must hash to; anything else is refused.")
def pull_command(model: str, sha256: str | None) -> None:
    """Bring MODEL into the cache: a catalog name, an hf: URI or the URL of a .gguf file.

    A file that is there already is not fetched again; an interrupted download of a URL is resumed.
    """
    from enginecmp.models.store import pull

    _require_hex(sha256)
    with _bytes_progress() as on_bytes:
        info = pull(model, sha256=sha256, say=_say, progress=sys.stderr.isatty(), on_bytes=on_bytes)
    _print_result(info)


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
        _print_result(pull(f"{base}:{quantization}", say=_say, progress=sys.stderr.isatty()))
        return
    source = pull(base, say=_say, progress=sys.stderr.isatty()) if base in CATALOG else resolve(model, fetch=True)
    if output is None:
        target = cache_dir() / f"{base_name(source)}.{quantization.lower()}.gguf"
        _print_result(derived(source, quantization, target, say=_say))
        return
    from enginecmp.models.quantize import quantize

    info, notes = quantize(source.path, output, quantization)
    for note in notes:
        _say(note)
    _print_result(info)


@command.command("info")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info_command(model: str, as_json: bool) -> None:
    """Say what MODEL is: hash, shape, context, tensor types, KV cache per token."""
    from enginecmp.models.gguf_file import read_gguf
    from enginecmp.models.info import shape_of, type_histogram
    from enginecmp.models.store import resolve

    info = resolve(model, fetch=False)
    file = read_gguf(info.path)
    shape = shape_of(file)
    facts = {
        **msgspec.to_builtins(info),
        **msgspec.to_builtins(shape),
        "quantization_histogram": dict(type_histogram(file).most_common()),
        "kv_bytes_per_token": shape.kv_bytes_per_token(),
        "tokenizer": file.metadata.get("tokenizer.ggml.model", ""),
        "description": file.metadata.get("general.description", ""),
    }
    if as_json:
        _print_json(facts)
        return
    types = ", ".join(f"{kind} {count:,}" for kind, count in facts["quantization_histogram"].items())
    lines = {
        "name": info.name,
        "path": info.path,
        "sha256": info.sha256,
        "architecture": info.architecture,
        "parameters": f"{info.parameters:,}",
        "layers": shape.layers,
        "hidden size": shape.hidden,
        "heads": f"{shape.heads} query, {shape.kv_heads} key/value, {shape.head_dim} wide",
        "feed-forward": shape.feed_forward,
        "context": f"{info.context_tokens:,} tokens",
        "vocabulary": f"{info.vocabulary:,} tokens ({facts['tokenizer'] or 'no tokenizer'})",
        "weights by type": types,
        "file": f"{info.bytes:,} bytes",
        "KV cache": f"{shape.kv_bytes_per_token():,} bytes per token (F16)",
    }
    if facts["description"]:
        lines["description"] = facts["description"]
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {value}")


@command.command("synth")
@click.option("--like", required=True, metavar="SHAPE", help="llama-3.2-1b, qwen2.5-0.5b, tiny-llama, ...")
@click.option("--quant", "quantization", default="Q8_0", show_default=True, help="Tensor type of the matrices.")
@click.option("--seed", type=int, default=0, show_default=True, help="Every weight comes from it.")
@click.option("--layers", type=int, help="Another number of layers than the original's.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .gguf file to write.")
def synth_command(like: str, quantization: str, seed: int, layers: int | None, output: Path) -> None:
    """Write a model with seeded random weights in a known shape.

    It says nothing sensible, but costs an engine what the real one costs. Shapes: llama-3.2-1b, llama-3.2-3b,
    qwen2.5-0.5b, phi-3-mini, gpt-2-small, mistral-7b; tiny-llama, tiny-qwen2, tiny-phi3 and tiny-gpt2 are under
    1 MB and need no download.
    """
    from enginecmp.models.synth import write_synth

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


@contextmanager
def _bytes_progress() -> Iterator[Callable[[int, int | None], None] | None]:
    """Give a callback that draws a download's progress on stderr, or None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", visible=False)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _require_hex(sha256: str | None) -> None:
    """Refuse something that cannot be a SHA-256 before anything is fetched."""
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        msg = f"--sha256: expected 64 hexadecimal digits, came '{sha256}'"
        raise click.UsageError(msg)


def _print_result(info: ModelInfo) -> None:
    """Print one line on stdout: the model that is now there."""
    click.echo(f"{info.name}  {info.quantization}  {info.bytes:,} bytes  sha256:{info.sha256}  {info.path}")


def _print_json(content: object) -> None:
    """Print JSON on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())


def _say(line: str) -> None:
    """Tell the user what is being done, on stderr."""
    click.echo(line, err=True)
