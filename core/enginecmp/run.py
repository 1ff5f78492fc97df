"""One run: the gate, then every planned launch in turn, with everything finished safely on disk.

The order of events: manifest with status "running" → equivalence gate → launches, block by block → manifest
with status "complete". Ctrl-C, a full disk or kill -9 at any moment leaves a run that `resume` can finish.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec

from enginecmp import doctor, equivalence
from enginecmp.contender import Contender
from enginecmp.drive import Driver
from enginecmp.errors import CmpError, ResultsError
from enginecmp.estimate import Pace
from enginecmp.manifest import new_manifest
from enginecmp.plan import PlannedLaunch, plan_launches
from enginecmp.plugins import sensor_modules
from enginecmp.prompts import PromptSet
from enginecmp.results import (
    CALIBRATION,
    LOGS,
    LaunchRecord,
    RunWriter,
    Torn,
    finished_launches,
    mark_torn,
    write_in_run,
)
from enginecmp.run_request import RunRequest
from enginecmp.scenarios import Scenario
from enginecmp.sweep import calibrate, described
from enginecmp.telemetry.bandwidth import probe
from enginecmp.telemetry.memory import reset_peak
from enginecmp.telemetry.watch import Telemetry
from enginecmp.types import Equivalence, Manifest, Sample

MIN_BLOCKS = 10
"""An adaptive run never stops earlier: intervals from five blocks on cover 92 %, from ten 95 %."""


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a run.

    Attributes:
        folder: where it is.
        status: complete or interrupted.
        launches: how many are over.
        failed: failed launches, in order.
        flagged: measured samples left out, by flag.
        given_up: labels that failed too often to go on.
    """

    folder: Path
    status: str
    launches: int
    failed: list[LaunchRecord]
    flagged: dict[str, int]
    given_up: list[str]


def execute(
    request: RunRequest,
    folder: Path,
    say: Callable[[str], None],
    manifest: Manifest | None = None,
) -> Outcome:
    """Run, or go on with, one run.

    Args:
        request: what to do.
        folder: the run's own folder.
        say: told one line at a time, only while no engine is being measured.
        manifest: of an earlier start of the same run, when resuming.

    Raises:
        KeyboardInterrupt: after the run was marked as interrupted.
        ResultsError: the results cannot be written any more.
        CmpError: the gate's reference failed.
    """
    prompts = PromptSet(request.model)
    if manifest is None:
        request.scenario = msgspec.structs.replace(request.scenario, prompts_sha256=prompts.sha256)
        manifest = new_manifest(request, folder.name)
    else:
        manifest.status = "running"
    if prompts.sha256 != manifest.scenario.get("prompts_sha256", prompts.sha256):
        msg = f"{folder}: was made with other prompt texts than this version's; start a new run"
        raise ResultsError(msg)
    # Longest prompts first: a prompt that the model cannot hold must fail before anything is written.
    for cell in request.scenario.cells:
        prompts.take(cell.prompt_tokens, key=0, seed=request.seed)
    # Before the samples are opened for appending: marking replaces the file.
    over = finished_launches(folder)
    torn = mark_torn(folder, [record.launch for record in over])
    if torn.samples:
        say(f"resume: {torn.samples} samples of an unfinished launch are marked: {', '.join(torn.launches)}")
    writer = RunWriter(folder, manifest)
    try:
        if request.scenario.copy_bandwidth and "copy_bandwidth" not in manifest.environment:
            manifest.environment |= probe([contender.options for contender in request.contenders], say)
        if not reset_peak():
            say("memory: this kernel does not reset the high-water mark; peak_rss_bytes is that of whole launches")
            manifest.environment["peak_rss_reset"] = False
        with Telemetry(folder if request.sensors else None, say, sensor_modules()) as telemetry:
            if not manifest.equivalence:
                manifest.equivalence = _gate(request, prompts, folder, say)
            manifest.environment["sensors"] = telemetry.facts()
            manifest.environment["doctor"] = _examine(folder.parent, say)
            if request.scenario.offered_load and not request.scenario.calibration:
                request.scenario = _calibrated(request, prompts, folder, telemetry, say)
                manifest.scenario = msgspec.to_builtins(request.scenario)
            writer.write_manifest()
            outcome = _launches(request, prompts, writer, over, torn, telemetry, say)
        manifest.environment["sensors"] = telemetry.facts()
    except BaseException:
        manifest.status = "interrupted"
        with contextlib.suppress(ResultsError):  # the first error is the one to show
            writer.write_manifest()
        raise
    finally:
        writer.close()
    manifest.status = "complete"
    writer.write_manifest()
    return outcome


def _examine(results: Path, say: Callable[[str], None]) -> list[dict[str, str]]:
    """Look at the machine right before the first launch; return what the manifest keeps."""
    findings = doctor.examine(results)
    if bad := [finding.check for finding in findings if finding.severity == "warning"]:
        say(f"warning: this will disturb the measurement: {', '.join(bad)}; `cmp doctor` says why and what mends it")
    return doctor.short(findings)


def _calibrated(
    request: RunRequest, prompts: PromptSet, folder: Path, telemetry: Telemetry, say: Callable[[str], None]
) -> Scenario:
    """Return the scenario of a sweep with its rates fixed; what was measured for that is kept beside the samples."""

    def drive(
        scenario: Scenario, planned: PlannedLaunch, contender: Contender, keep: Callable[[Sample], None]
    ) -> LaunchRecord:
        driver = Driver(scenario, request.model, prompts, request.seed, folder / LOGS, telemetry)
        return driver.run(planned, contender, f"calibration-{contender.label}", keep)

    scenario, samples = calibrate(request.scenario, request.contenders, drive, say)
    write_in_run(folder / CALIBRATION, b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples))
    for line in described(scenario):
        say(line)
    return scenario


def _gate(request: RunRequest, prompts: PromptSet, folder: Path, say: Callable[[str], None]) -> list[Equivalence]:
    if request.reference is None or request.exact is None:
        say("gate: skipped; nothing proves that the engines compute the same thing")
        return equivalence.not_checked([contender.label for contender in request.everybody])
    try:
        gate = equivalence.Gate(
            reference=request.reference,
            timed=request.model,
            exact=request.exact,
            token_ids=prompts.score_ids(request.scenario.score_positions),
            logs=folder / LOGS,
            deadlines=request.scenario.deadlines,
            max_kl=request.scenario.max_kl,
            max_nll_increase=request.scenario.max_nll_increase,
            timed_only=request.gate_timed_only,
        )
        return equivalence.run_gate(request.everybody, gate, say)
    except CmpError as error:
        msg = f"equivalence gate: the reference failed: {error}; mend it or run with --no-gate"
        raise CmpError(msg) from error


def _launches(
    request: RunRequest,
    prompts: PromptSet,
    writer: RunWriter,
    over: list[LaunchRecord],
    torn: Torn,
    telemetry: Telemetry,
    say: Callable[[str], None],
) -> Outcome:
    scenario, folder = request.scenario, writer.folder
    contenders = {contender.label: contender for contender in request.contenders}
    labels = [label for label in contenders if any(scenario.offered(cell, label) for cell in scenario.cells)]
    plan = plan_launches(
        labels, scenario.blocks, request.seed, len(scenario.cells) if scenario.launch_per_cell else None
    )
    done = {record.key for record in over}
    driver = Driver(scenario, request.model, prompts, request.seed, folder / LOGS, telemetry)
    pace = Pace([planned for planned in plan if _offered(scenario, planned)], over)
    flags: Counter[str] = Counter()
    failed = [record for record in over if record.status != "ok"]
    given_up: list[str] = []
    retired: Collection[str] = ()

    def keep(sample: Sample) -> None:
        if sample.phase == "measure":
            flags.update(sample.flags)
        writer.append(sample)

    for planned in plan:
        if planned.key in done:
            continue
        if planned.order == 0 and planned.block >= MIN_BLOCKS and request.enough and request.enough(folder):
            # What was planned beyond is not missing: the run is complete with these blocks.
            writer.manifest.scenario["blocks"] = planned.block
            break
        if planned.order == 0 and request.retire:
            retired = request.retire(folder, planned.block)
            pace.without(retired)
            if contenders.keys() <= set(retired):
                writer.manifest.scenario["blocks"] = planned.block
                break
        if planned.engine in given_up or planned.engine in retired or not _offered(scenario, planned):
            continue
        record = driver.run(planned, contenders[planned.engine], _name(planned, torn), keep)
        writer.end_launch(record)
        over.append(record)
        pace.ended(record)
        say(_progress(planned, record, scenario.blocks, pace))
        if record.status != "ok":
            failed.append(record)
        if _failing(over, planned.engine, scenario.give_up_after):
            given_up.append(planned.engine)
            say(f"{planned.engine}: given up after {scenario.give_up_after} failed launches in a row")
    return Outcome(
        folder=folder,
        status="complete",
        launches=len(over),
        failed=failed,
        flagged=dict(flags),
        given_up=given_up,
    )


def _offered(scenario: Scenario, planned: PlannedLaunch) -> bool:
    """Say whether a launch has anything to measure: a sweep spares engines rates far beyond what they can do."""
    return planned.cell is None or scenario.offered(scenario.cells[planned.cell], planned.engine)


def _name(planned: PlannedLaunch, torn: Torn) -> str:
    """Return how a launch is named; one that was cut off is redone under a new name."""
    attempt = planned.name
    number = 2
    while attempt in torn.launches:
        attempt = f"{planned.name}.{number}"
        number += 1
    return attempt


def _failing(over: Sequence[LaunchRecord], engine: str, limit: int) -> bool:
    last = [record.status for record in over if record.engine == engine][-limit:]
    return len(last) == limit and "ok" not in last


def _progress(planned: PlannedLaunch, record: LaunchRecord, blocks: int, pace: Pace) -> str:
    outcome = f"{record.seconds:5.1f} s" if record.status == "ok" else f"{record.status}: {record.error}"
    outcome = "; ".join([outcome, *record.notes])
    return f"block {planned.block + 1}/{blocks}  {record.engine:<18} {outcome}  {pace.describe()}"
