"""From options to what a user is told of a run: what `cmp run`, `--matrix`, `--resume` and `cmp selftest` share."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from enginecmp.cli.console import print_json, say
from enginecmp.cli.objects import kept_there
from enginecmp.errors import CannotWrite, CmpError, ResultsError, UsageError, did_you_mean
from enginecmp.format.files import MANIFEST
from enginecmp.format.readers import read_manifest
from enginecmp.format.text import command_line, operand
from enginecmp.plugins.discovery import discover
from enginecmp.run.options import RunOptions
from enginecmp.run.prepare import check_idle, exact_of, make_request, make_scenario, model_for
from enginecmp.run.summary import headline
from enginecmp.scenarios.fit import fit
from enginecmp.types import ModelInfo

if TYPE_CHECKING:
    from enginecmp.format.records import Manifest
    from enginecmp.run.probe import AskedOnce
    from enginecmp.run.request import RunRequest
    from enginecmp.scenarios import Scenario


class Prepared(msgspec.Struct, frozen=True):
    """A run that can start.

    Attributes:
        request: what it will do, with its baseline.
        saved: folder of the saved run that it is compared with afterwards.
        seconds: how long its launches will take.
        basis: what that rests on.
    """

    request: RunRequest
    saved: Path | None
    seconds: float
    basis: str


def prepare(options: RunOptions, model: ModelInfo | None = None, once: AskedOnce | None = None) -> Prepared:
    """Return the run that the options ask for.

    Args:
        options: what was asked for.
        model: the file being timed; None is the one that the options ask for.
        once: keeps what engines answered, where many runs are prepared.

    Raises:
        UsageError: a name or a combination does not exist.
        CmpError: an engine that was named cannot run, or none can.
    """
    from enginecmp.results.baselines import engine_or_saved
    from enginecmp.run.estimate import expected_seconds

    plugins = once.plugins if once else discover()
    scenario = make_scenario(options)
    model = model or model_for(options, scenario)
    if options.find_max is not None:
        from enginecmp.cli.find_max import searching

        scenario = searching(scenario, options)
    scenario = fit(scenario, model, say)
    _check_claims(scenario)
    request = make_request(options, scenario, model, options.chosen_seed(), plugins, say, once)
    if options.tuned != "default":
        from enginecmp.tune.apply import with_tuned

        request.configs = with_tuned(
            request.configs,
            model,
            both=options.tuned == "both",
            everything=options.engines == "all",
            threads_given=options.threads != "auto",
            say=say,
        )
    request.baseline, saved = engine_or_saved(options.baseline, request.labels, options.out)
    request.baseline_chosen = options.baseline is not None and saved is None
    return Prepared(request, saved, *expected_seconds(request.scenario, model, request.configs, options.out))


def _check_claims(scenario: Scenario) -> None:
    """Refuse claims about what nothing measures, before anything is measured.

    Raises:
        UsageError: names the claim and the nearest right metric.
    """
    if not scenario.expect:
        return
    from enginecmp_analysis.data.metrics import METRICS, learn
    from enginecmp_analysis.decisions.expect import RATIO

    learn(scenario.measure)
    for claim in scenario.expect:
        if claim.metric not in (RATIO, *METRICS):
            hint = did_you_mean(claim.metric, [RATIO, *METRICS])
            msg = f"scenario {scenario.name}: [[expect]] of {claim.engine}: unknown metric '{claim.metric}'{hint}"
            raise UsageError(msg)


def measure(options: RunOptions, prepared: Prepared, run_id: str = "") -> Path:
    """Run what was prepared, in a new folder, and return that folder.

    Args:
        options: what was asked for.
        prepared: the run.
        run_id: name of the folder; empty makes one.
    """
    from enginecmp.results.writer import ResultsFolder
    from enginecmp.run.estimate import duration, time_range
    from enginecmp.run.guess import gate_seconds
    from enginecmp.run.manifest import new_run_id
    from enginecmp.run.request import Again

    request = prepared.request
    if request.reference is not None:
        request.exact = exact_of(request.model)
    with ResultsFolder(options.out):
        folder = options.out / (run_id or new_run_id(request.scenario.name))
        most = gate_seconds(request.scenario, request.model, request.everybody)
        gate = f" and the gate, at most {duration(most)} or so" if request.reference is not None else ""
        takes = f"about {time_range(prepared.seconds, request.scenario.max_extra)}{gate} ({prepared.basis})"
        say(f"{folder}: {headline(request)}; {takes if request.scenario.blocks else 'the gate alone'}")
        if request.scenario.blocks:
            check_idle(options.wait_idle, say)
        path = str(Path(request.model.path).absolute())
        request.again = Again(
            model=path,
            reference=options.reference,
            sensors=not options.no_sensors,
            baseline=options.baseline if prepared.saved is not None else None,
            save_baseline=options.save_baseline,
            command=shlex.join(options.same_question(path).words()),
        )
        with kept_there(options, folder, request):
            execute(request, folder, None, options.as_json)
    return folder


def after(options: RunOptions, folder: Path, saved: Path | None) -> int:
    """Show the answer, save the run under the name asked for, compare it with a saved one; return the exit code."""
    from enginecmp.results import baselines

    if not (options.as_json or options.quality_only):
        _answer(folder)
    if options.save_baseline is not None:
        baselines.save(folder.parent, options.save_baseline, folder)
        say(f"saved as baseline '{options.save_baseline}'")
    if saved is None:
        return 0
    from enginecmp.cli.compare import compare_with_saved

    return compare_with_saved(saved, folder, say)


def _answer(folder: Path) -> None:
    """Print what `cmp stats` would say first of a run."""
    if read_manifest(folder).scenario.get("find_max"):
        from enginecmp.cli.find_max import tell

        tell(folder)
        return
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.asked import kept_command
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.render.first_screen import first_screen

    analysis = analyse(load_runs([folder]))
    if analysis.report.rankings:
        # On stderr like everything else of a run: a closed stdout must not make a finished run a failure.
        shown = command_line(["cmp", "stats", operand(folder)])
        for text, _ in first_screen(analysis, shown, shutil.get_terminal_size().columns):
            say(text)
    primary = [c for c in analysis.report.comparisons if c.primary]
    withheld = [c for c in primary if c.verdict == "withheld"]
    # Where launches lack requests, more of the same launches would never do. What was tested and is open is another
    # question: to go on because of its p-value would raise false alarms.
    needed = max((c.launches_needed or 0 for c in withheld if not c.requests_needed), default=0)
    if needed:
        command = command_line(["cmp", "run", "--extend", str(folder), "--blocks", f"+{needed}"])
        say(f"{len(withheld)} of {len(primary)} comparisons withheld for lack of launches; go on with: {command}")
    short = [c for c in withheld if c.requests_needed]
    asked = analysis.groups[0].runs[0].manifest.scenario.get("requests")
    if short and isinstance(asked, int):
        least = max(c.requests_needed for c in short)
        launches = max((c.n_launches + c.launches_needed for c in short if c.launches_needed), default=0)
        more = [*(("--blocks", str(launches)) if launches else ()), "--requests", str(least)]
        start = kept_command(analysis.groups[0].runs[0]) or ["cmp", "run"]
        why, words = ("", more) if asked < least else (" (too many were flagged)", ["--wait-idle"])
        say(
            f"{len(short)} of {len(primary)} comparisons withheld for lack of requests{why}; start a new run: "
            f"{command_line([*start, *words])}"
        )


def execute(request: RunRequest, folder: Path, manifest: Manifest | None, as_json: bool) -> None:
    """Run and tell the outcome.

    Args:
        request: what to do.
        folder: of the run.
        manifest: of an earlier start of it, when resuming.
        as_json: print the outcome as JSON too.

    Raises:
        KeyboardInterrupt: after telling how to go on.
        ResultsError: the folder cannot be written; tells how to go on.
        CmpError: nothing was measured.
    """
    from enginecmp.run import execute as run

    try:
        if request.scenario.find_max:
            from enginecmp.cli.find_max import loads_of

            request.next_loads = loads_of(request.scenario)
        if request.scenario.precision:
            request.enough = _precise_enough(request.scenario.precision)
        outcome = run.execute(request, folder, say, manifest)
    except KeyboardInterrupt:
        kept = (folder / MANIFEST).exists()
        say(f"interrupted; everything finished is kept: {resume_command(folder)}" if kept else "interrupted")
        raise
    except CannotWrite as error:
        kept = (folder / MANIFEST).exists()
        then = f"what was measured is kept; make room or grant access, then: {resume_command(folder)}"
        msg = f"{error}; {then if kept else 'nothing was measured; make room or grant access, and start again'}"
        raise ResultsError(msg) from error
    if not request.scenario.blocks:
        from enginecmp.cli.quality_table import show_quality

        show_quality(folder, as_json)
        return
    for flag, count in sorted(outcome.flagged.items()):
        say(f"{count} measured requests are flagged {flag} and left out by rule")
    for record in outcome.failed:
        say(f"block {record.block + 1}, {record.launch}: {record.status}: {record.error}")
    if as_json:
        print_json(outcome)
    if len(outcome.without_result) == len(request.configs) and outcome.flagged and not as_json:
        _answer(folder)  # figures that are marked are better than none
    require_result(outcome.without_result, len(request.configs), folder)
    for label, why in outcome.without_result.items():
        say(f"warning: {label}: nothing that counts was measured: {why}")
    say(f"done: {folder}; read it with: {command_line(['cmp', 'stats', operand(folder)])}")
    if len(outcome.given_up) == len(request.configs):
        msg = f"every engine was given up before the end; the reasons are above and in {folder}"
        raise CmpError(msg)


def require_result(without: dict[str, str], engines: int, folder: Path) -> None:
    """Refuse to call a run done of which no engine has a result.

    Args:
        without: label → why it has none.
        engines: how many are timed.
        folder: of the run.

    Raises:
        CmpError: the reason first.
    """
    if engines and len(without) == engines:
        reasons = dict.fromkeys(without.values())
        told = next(iter(reasons)) if len(reasons) == 1 else "; ".join(f"{k}: {v}" for k, v in without.items())
        msg = f"nothing was measured: {told}; the run is in {folder}"
        raise CmpError(msg)


def resume_command(folder: Path) -> str:
    """Return the command that goes on with a run, ready to be pasted into a shell."""
    return command_line(["cmp", "run", "--resume", str(folder)])


def _precise_enough(precision: float) -> Callable[[Path], bool]:
    """Return the question that an adaptive run asks before each block: precision, never significance."""
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.judge.stopping import progress

    def enough(folder: Path) -> bool:
        found = progress(analyse(load_runs([str(folder)])).report.comparisons, precision)
        say(f"precision ±{found.precision:.1%} after {found.launches} launches, wanted ±{precision:.1%}")
        return found.reached

    return enough


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end a run the way Ctrl-C does: worker killed, manifest valid."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
