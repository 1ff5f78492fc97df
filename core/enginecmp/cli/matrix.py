"""`cmp run --matrix`: the same measurement on several files, one run each, and one table at the end."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from enginecmp.cli.console import say
from enginecmp.cli.measure import measure
from enginecmp.cli.prepare import choose_seed, find_model, headline, make_request, make_scenario
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.scenarios.fit import fit
from enginecmp.types import ModelInfo

if TYPE_CHECKING:
    from enginecmp.run_request import RunRequest


class MatrixRun(msgspec.Struct, kw_only=True):
    """One run of a matrix: one file.

    Attributes:
        model: name of the file.
        folder: where the run is; empty where none came about.
        error: why there is none, or why it failed; empty when all went well.
    """

    model: str
    folder: str = ""
    error: str = ""


def names_of(text: str) -> list[str]:
    """Return the models of "a,b:q4_1+q8_0": a, b:q4_1, b:q8_0; each once.

    Raises:
        UsageError: nothing named.
    """
    found: dict[str, None] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        base, colon, quantizations = item.rpartition(":")
        # "hf:OWNER/REPO/FILE.gguf" and addresses hold a colon too, and no list behind it.
        several = quantizations.split("+") if colon and "/" not in quantizations else [""]
        for quantization in several:
            found[f"{base}:{quantization}" if quantization else item] = None
    if not found:
        msg = "--matrix: no model named; try smollm2-135m-instruct:q4_1+q8_0, or see `cmp model list`"
        raise UsageError(msg)
    return list(found)


def model_of(name: str) -> ModelInfo:
    """Return the model of that name; a quantization that is not there is derived, as by `cmp model quantize`."""
    from enginecmp.models.store import QUANTIZATIONS, base_name, cache_dir, derived, resolve

    base, _, quantization = name.rpartition(":")
    if base.endswith(".gguf") and quantization.lower() in QUANTIZATIONS:
        source = resolve(base, fetch=True)
        return derived(source, quantization, cache_dir() / f"{base_name(source)}.{quantization.lower()}.gguf", say=say)
    return find_model(name)


def measure_matrix(arguments: dict[str, Any]) -> int:
    """Measure every model of `--matrix` in a run of its own, with one scenario and one seed.

    Everything is prepared before the first launch, so that a wrong name costs no measurement. An engine that cannot
    load a file is told and left out of that run; a run that fails is told, and the next one starts.

    Returns:
        0, or 1 when a run failed.
    """
    from enginecmp.estimate import duration, expected_seconds

    names = names_of(arguments["matrix"])
    arguments = {**arguments, "seed": choose_seed(arguments)}
    done: list[MatrixRun] = []
    ready: list[tuple[MatrixRun, RunRequest, float, str]] = []
    for name in names:
        model = model_of(name)
        run = MatrixRun(model=model.name)
        done.append(run)
        try:
            request = _prepare(arguments, model)
        except UsageError:
            raise
        except CmpError as error:
            run.error = str(error)
            say(f"no run of {model.name}: {error}")
            continue
        ready.append((run, request, *expected_seconds(request.scenario, model, request.contenders, arguments["out"])))
    total = sum(seconds for _, _, seconds, _ in ready)
    say(f"matrix of {len(ready)} runs, seed {arguments['seed']}, about {duration(total)} and the gates:")
    for number, (_, request, seconds, _) in enumerate(ready, start=1):
        say(f"  {number}. {headline(request)}; about {duration(seconds)}")
    if arguments["dry_run"]:
        return 0
    for number, (run, request, seconds, basis) in enumerate(ready):
        try:
            # With --json, stdout is for the one document at the end.
            with contextlib.redirect_stdout(sys.stderr if arguments["as_json"] else sys.stdout):
                run.folder = str(measure({**arguments, "as_json": False}, request, seconds, basis))
        except KeyboardInterrupt:
            left = ",".join(other.model for other, *_ in ready[number + 1 :])
            say(f"not begun: cmp run --matrix {left} --seed {arguments['seed']}" if left else "it was the last one")
            raise
        except ResultsError:
            raise  # nothing can be written any more
        except CmpError as error:
            run.error = str(error)
            say(f"run of {run.model} failed: {error}")
    _summarize(done, arguments)
    return 1 if any(run.error for run in done) else 0


def _prepare(arguments: dict[str, Any], model: ModelInfo) -> RunRequest:
    from enginecmp.baselines import engine_or_saved
    from enginecmp.plugins import discover

    plugins = discover()
    scenario = fit(make_scenario(arguments, plugins), model, say)
    request = make_request(arguments, scenario, model, arguments["seed"], plugins)
    request.baseline, saved = engine_or_saved(arguments["baseline"], request.labels, arguments["out"])
    if saved is not None:
        msg = f"--matrix --baseline {arguments['baseline']}: a saved run is one file; name an engine"
        raise UsageError(msg)
    return request


def _summarize(done: list[MatrixRun], arguments: dict[str, Any]) -> None:
    """Print the table of models and engines, as text or as JSON."""
    rows: list[dict[str, Any]] = []
    for run in done:
        if run.folder and not arguments["quality_only"]:
            rows += _rows(run)
    if arguments["as_json"]:
        content = {"runs": done, "results": rows}
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        return
    if rows:
        _print(rows)
    elif not arguments["quality_only"]:
        click.echo("no request ended well and undisturbed")
    for run in done:
        if run.error:
            click.echo(f"{run.model}: {run.error}")
    folders = " ".join(run.folder for run in done if run.folder)
    if folders:
        click.echo(f"all of it: cmp stats {folders}")


def _print(rows: list[dict[str, Any]]) -> None:
    table: list[tuple[str, ...]] = [("model", "cell", "engine", rows[0]["metric"], "verdict")]
    table += [(r["model"], r["cell"], r["engine"], _number(r["mean"]), r["verdict"]) for r in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for before, row in zip([(), *table], table, strict=False):
        # A model and a cell are named once.
        shown = ["" if row[:k] == before[:k] and k <= 2 else row[k - 1] for k in range(1, len(row) + 1)]
        click.echo("  ".join(text.ljust(width) for text, width in zip(shown, widths, strict=True)).rstrip())


def _rows(run: MatrixRun) -> list[dict[str, Any]]:
    """Return one row an engine and cell of a run: mean of the primary metric, and the verdict on it."""
    from enginecmp_analysis.data.cells import short_name
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.report import analyse

    analysis = analyse(load_runs([run.folder]))
    metric = analysis.contexts[0].primary_metric
    verdicts = {(c.engine, c.cell): c.verdict for c in analysis.report.comparisons if c.metric == metric}
    baseline = analysis.contexts[0].baseline
    excluded = analysis.contexts[0].not_comparable
    found = []
    for summary in analysis.report.summaries:
        if summary.metric != metric:
            continue
        cell = summary.cell
        verdict = "baseline" if summary.engine == baseline else verdicts.get((summary.engine, cell), "")
        found.append(
            {
                "model": run.model,
                "folder": str(Path(run.folder)),
                "cell": short_name(cell),
                "engine": summary.engine,
                "metric": metric,
                "mean": summary.mean,
                "ci_low": summary.ci_low,
                "ci_high": summary.ci_high,
                "verdict": "not comparable" if summary.engine in excluded else verdict,
            }
        )
    return found


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "n/a"
