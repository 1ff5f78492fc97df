"""`cmp quality`: engines answer items greedily, their texts are scored, and the scores are compared item by item."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from enginecmp.errors import CmpError, UsageError
from enginecmp.format.text import plain, visible
from enginecmp_text_quality.compare import Difference, Score, compare
from enginecmp_text_quality.items import Item, read_items
from enginecmp_text_quality.scores import Scored, score_code, score_texts


@click.command("quality", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engines", default="all", show_default=True, help='Engines as for `cmp run`: "all", or a list.')
@click.option("--tasks", default="text", show_default=True, help="text, code, or a .jsonl file of your own.")
@click.option("--model", help="Name, path or hf: URI.  [default: the embedded model]")
@click.option("--baseline", help="Engine that the others are compared with.  [default: the first]")
@click.option("--threads", default="auto", show_default=True, help="Compute threads.")
@click.option("-o", "--option", "options", multiple=True, metavar="ENGINE.KEY=VALUE", help="Option of one engine.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many items.")
@click.option("--seed", type=int, help="Of the bootstrap.  [default: drawn]")
@click.option("--answers", type=click.Path(path_type=Path), help="Write every answer into this .jsonl file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(**given: Any) -> int:
    """Score the texts that engines generate: BLEU, chrF and ROUGE-L, or pass@1 of code.

    Every engine continues the same prompts greedily, and its texts are scored with sacrebleu, rouge-score, or by
    running them locked up. Engines are compared by a paired bootstrap over items. A score that lies near the floor,
    what the same answers get when they are dealt to other items, is shown and never ranked.
    """
    return _run(**given)


def _run(
    engines: str,
    tasks: str,
    model: str | None,
    baseline: str | None,
    threads: str,
    options: tuple[str, ...],
    limit: int | None,
    seed: int | None,
    answers: Path | None,
    as_json: bool,
) -> int:
    items = read_items(tasks, limit)
    if len(items) < 2:
        msg = f"--tasks {tasks}: expected at least 2 items to compare engines on, got {len(items)}"
        raise UsageError(msg)
    seed = secrets.randbelow(2**31) if seed is None else seed
    texts = _answers(engines, model, threads, options, items)
    if answers is not None:
        lines = [{"id": item.id, "engine": e, "answer": t[n]} for e, t in texts.items() for n, item in enumerate(items)]
        answers.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    baseline = baseline or next(iter(texts))
    if baseline not in texts:
        msg = f"--baseline {baseline}: expected one of {', '.join(texts)}"
        raise UsageError(msg)
    score = score_code if items[0].tests else score_texts
    found = {label: score(items, text) for label, text in texts.items()}
    # One place on: every item gets the answer to another.
    floors = {label: score(items, [*text[1:], text[0]]) for label, text in texts.items()}
    scores: list[Score] = []
    differences: list[Difference] = []
    for n in range(len(next(iter(found.values())))):
        more, apart = compare(_nth(found, n), _nth(floors, n), texts, baseline, seed)
        scores += more
        differences += apart
    if as_json:
        told = {
            "schema": "enginecmp-quality/1",
            "tasks": tasks,
            "items": len(items),
            "seed": seed,
            "baseline": baseline,
        }
        click.echo(msgspec.json.format(msgspec.json.encode({**told, "scores": scores, "differences": differences})))
        return 0
    for line in table(tasks, len(items), scores, differences):
        click.echo(visible(line))
    return 0


def _nth(scored: Mapping[str, list[Scored]], n: int) -> dict[str, Scored]:
    return {label: metrics[n] for label, metrics in scored.items()}


def _answers(
    engines: str, model: str | None, threads: str, options: Sequence[str], items: Sequence[Item]
) -> dict[str, list[str]]:
    """Return the texts of every engine that can run; one that fails is told and left out."""
    from enginecmp.models.gguf_file import read_gguf
    from enginecmp.models.isolated_tokenizer import IsolatedTokenizer
    from enginecmp.plugins.discovery import discover
    from enginecmp.run.prepare import find_model
    from enginecmp.run.probe import probe
    from enginecmp.run.selection import (
        check_options,
        choose,
        implied_options,
        parse_engines,
        parse_options,
        resolve_threads,
    )
    from enginecmp_text_quality.generate import answers_of, prompt_ids

    info, plugins = find_model(model), discover()
    tokenizer = IsolatedTokenizer(info.path)
    prompts = prompt_ids(items, tokenizer, info)
    end_id = read_gguf(info.path).metadata.get("tokenizer.ggml.eos_token_id")
    chosen = parse_engines(engines, plugins)
    given = [*implied_options(engines, plugins), *options]
    texts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="cmp-quality-") as logs:
        configs = choose(
            chosen,
            info,
            everything=engines == "all",
            devices={},
            threads=resolve_threads(threads),
            context_tokens=max(len(ids) + item.output_tokens for ids, item in zip(prompts, items, strict=True)),
            extra=check_options(parse_options(given, chosen), chosen),
            probe=lambda plugin, device, extra: probe(plugin, device, Path(logs), extra),
            say=_say,
        )
        for config in configs:
            log = Path(logs) / f"{config.label}.log"
            _say(f"{config.label}: {len(items)} items")
            try:
                end = end_id if isinstance(end_id, int) else None
                texts[config.label] = answers_of(config, info, items, prompts, tokenizer, end, log, _say)
            except CmpError as error:
                _say(f"left out: {str(error).partition('; log:')[0]}")
    if not texts:
        msg = "no engine answered; see above"
        raise CmpError(msg)
    return texts


def table(tasks: str, items: int, scores: Sequence[Score], differences: Sequence[Difference]) -> list[str]:
    """Return the answer in lines: a sentence, then a row an engine and metric."""
    better = [d for d in differences if d.verdict in ("better", "worse")]
    floor = sorted({score.metric for score in scores if score.near_floor})
    parts = [f"{d.engine} is {d.verdict} than {d.baseline} in {d.metric}" for d in better]
    if not parts:
        parts = ["No engine was told apart from another" if differences else f"{scores[0].engine} is alone here"]
    if floor:
        parts.append(f"{', '.join(floor)} near the floor: shown, not ranked")
    of = {(d.engine, d.metric): d for d in differences}
    width = max(len("engine"), *(len(score.engine) for score in scores))
    lines = ["; ".join(parts) + f" ({tasks}, {items} items).", ""]
    lines.append(f"{'engine':<{width}}  {'metric':<8} {'score':>6}  {'95 %':<14} {'floor':>6}  against the baseline")
    for score in scores:
        limits = f"[{score.low:.1f}, {score.high:.1f}]"
        told = _told(of.get((score.engine, score.metric)), score)
        row = (
            f"{score.engine:<{width}}  {score.metric:<8} {score.value:>6.1f}  {limits:<14} {score.floor:>6.1f}  {told}"
        )
        lines.append(row.rstrip())
    lines.append("")
    lines += [f"{score.metric}: {score.signature}" for score in {s.metric: s for s in scores}.values()]
    return lines


def _told(difference: Difference | None, score: Score) -> str:
    if difference is None:
        return "near the floor" if score.near_floor else ""
    same = "every answer is the same text"
    limits = f"{difference.points:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"
    return same if difference.verdict == "identical" else f"{difference.verdict}: {limits}"


def _say(text: str) -> None:
    click.echo(visible(text), err=True)


def main() -> int:
    """Run the command; every expected error is one line on stderr and an exit code."""
    try:
        code = command.main(prog_name="cmp quality", standalone_mode=False)
    except click.ClickException as error:
        text, code = error.format_message(), 2
    except CmpError as error:
        text, code = str(error), error.exit_code
    except KeyboardInterrupt:
        return 130
    else:
        return code if isinstance(code, int) else 0
    click.echo(f"cmp: {plain(text, 2000)}", err=True)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
