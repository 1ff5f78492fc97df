"""`cmp run --matrix`: the same measurement on several files, one run each, and one table at the end."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.cli.console import columns, echo, print_json, say
from enginecmp.cli.measure import Prepared, measure, prepare
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.format.text import command_line, listed, operand
from enginecmp.run.matrix_file import expanded, is_file, read_matrix
from enginecmp.run.options import RunOptions
from enginecmp.run.prepare import find_model
from enginecmp.run.probe import AskedOnce
from enginecmp.run.summary import headline
from enginecmp.types import ModelInfo

if TYPE_CHECKING:
    from enginecmp_analysis.data.load import Run
    from enginecmp_analysis.decisions.frontier import FrontierRow


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
    for item in listed(text):
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


def measure_matrix(options: RunOptions, models: str) -> int:
    """Measure every model of `--matrix` in a run of its own, with one scenario and one seed.

    Everything is prepared before the first launch, so that a wrong name costs no measurement. An engine that cannot
    load a file is told and left out of that run; a run that fails is told, and the next one starts.

    Args:
        options: of every run.
        models: value of `--matrix`: models, or a file of models and factors.

    Returns:
        0, or 1 when a run failed.
    """
    from enginecmp.run.estimate import duration

    if is_file(models):
        options, models = expanded(options, read_matrix(Path(models)))
    names = names_of(models)
    options = msgspec.structs.replace(options, seed=options.chosen_seed())
    once = AskedOnce()
    done: list[MatrixRun] = []
    ready: list[tuple[str, MatrixRun, Prepared]] = []
    for name in names:
        model = model_of(name)
        run = MatrixRun(model=model.name)
        done.append(run)
        try:
            ready.append((name, run, _prepare(options, model, once)))
        except UsageError:
            raise
        except CmpError as error:
            run.error = str(error)
            say(f"no run of {model.name}: {error}")
    total = sum(prepared.seconds for *_, prepared in ready)
    say(f"matrix of {len(ready)} runs, seed {options.seed}, about {duration(total)} and the gates:")
    for number, (*_, prepared) in enumerate(ready, start=1):
        say(f"  {number}. {headline(prepared.request)}; about {duration(prepared.seconds)}")
    if options.dry_run:
        return 0
    for number, (_, run, prepared) in enumerate(ready, start=1):
        try:
            # With --json, stdout is for the one document at the end.
            with contextlib.redirect_stdout(sys.stderr if options.as_json else sys.stdout):
                run.folder = str(measure(msgspec.structs.replace(options, as_json=False), prepared))
        except KeyboardInterrupt:
            left = ",".join(name for name, *_ in ready[number:])
            rest = msgspec.structs.replace(options, matrix=left)
            say(f"not begun: {command_line(rest.words())}" if left else "it was the last one")
            raise
        except ResultsError:
            raise  # nothing can be written any more
        except CmpError as error:
            run.error = str(error)
            say(f"run of {run.model} failed: {error}")
    _summarize(done, options)
    return 1 if any(run.error for run in done) else 0


def _prepare(options: RunOptions, model: ModelInfo, once: AskedOnce) -> Prepared:
    prepared = prepare(options, model, once)
    if prepared.saved is not None:
        msg = f"--matrix --baseline {options.baseline}: a saved run is one file; name an engine"
        raise UsageError(msg)
    return prepared


def _summarize(done: list[MatrixRun], options: RunOptions) -> None:
    """Print the table of models and engines, as text or as JSON."""
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_run
    from enginecmp_analysis.decisions.frontier import frontier

    rows: list[dict[str, Any]] = []
    points: list[FrontierRow] = []
    measured = [run for run in done if run.folder and not options.quality_only]
    loaded = [load_run(Path(run.folder)) for run in measured]
    for run, one in zip(measured, loaded, strict=True):
        rows += _rows(run, one)
    if rows:
        points = frontier(analyse(loaded).groups)
    if options.as_json:
        print_json({"runs": done, "results": rows, "frontier": points})
        return
    if rows:
        _print(rows)
        _print_frontier(points)
    elif not options.quality_only:
        echo("no request ended well and undisturbed")
    for run in done:
        if run.error:
            echo(f"{run.model}: {run.error}")
    folders = [run.folder for run in done if run.folder]
    if folders:
        echo(f"all of it: {command_line(['cmp', 'stats', *map(operand, folders)])}")
        if len(folders) > 1:
            echo(f"pictured: {command_line(['cmp', 'report', *map(operand, folders)])}")


def _print_frontier(points: Sequence[FrontierRow]) -> None:
    """Say who is dominated in speed, memory and quality, and by whom."""
    from enginecmp_analysis.data.cells import short_name

    dominated = [point for point in points if point.dominated_by]
    for point in dominated:
        echo(
            f"dominated: {point.model}, {point.engine} ({short_name(point.cell)}) by {point.dominated_by}: better in "
            f"{', '.join(point.better_in)}, no worse in anything"
        )
    echo(f"{len(points) - len(dominated)} of {len(points)} points are not shown to be dominated")


def _print(rows: list[dict[str, Any]]) -> None:
    table: list[tuple[str, ...]] = [("model", "cell", "engine", rows[0]["metric"], "verdict")]
    table += [(r["model"], r["cell"], r["engine"], _number(r["mean"]), r["verdict"]) for r in rows]
    # A model and a cell are named once.
    columns(
        [
            ["" if row[:k] == before[:k] and k <= 2 else row[k - 1] for k in range(1, len(row) + 1)]
            for before, row in zip([(), *table], table, strict=False)
        ]
    )


def _rows(run: MatrixRun, loaded: Run) -> list[dict[str, Any]]:
    """Return one row an engine and cell of a run: mean of the primary metric, and the verdict on it."""
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.cells import short_name

    analysis = analyse([loaded])
    metric = analysis.contexts[0].primary_metric
    verdicts = {(c.engine, c.cell): c.verdict for c in analysis.report.comparisons if c.metric == metric}
    baseline = analysis.contexts[0].baseline
    excluded = analysis.contexts[0].not_comparable
    found = []
    for summary in analysis.report.summaries:
        if summary.metric != metric or summary.flagged:
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
