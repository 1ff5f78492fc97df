"""One run: the gate, then every planned launch in turn, with everything finished safely on disk.

The order of events: manifest with status "running" → equivalence gate → launches, block by block → manifest
with status "complete". Ctrl-C, a full disk or kill -9 at any moment leaves a run that `resume` can finish.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginecmp import doctor
from enginecmp.errors import CannotWrite, CmpError, ModelError, ResultsError, UsageError
from enginecmp.format.files import CALIBRATION, LOGS, RESUME
from enginecmp.format.readers import finished_launches
from enginecmp.format.records import DIFFERENT, NOT_COMPARABLE, Equivalence, LaunchRecord, Manifest, Sample
from enginecmp.format.text import to_json
from enginecmp.gate import equivalence
from enginecmp.gate.gate import Gate
from enginecmp.gate.speculation import PROMPT_TOKENS, check_speculation, speculates
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.model_file import file_for
from enginecmp.models.diffusion import mask_of
from enginecmp.models.gguf_file import read_gguf
from enginecmp.plugins.discovery import sensor_modules
from enginecmp.prompts import PromptSet
from enginecmp.results.writer import RunWriter, mark_torn, write_in_run
from enginecmp.run.drive import Driver
from enginecmp.run.launches import Outcome, run_launches
from enginecmp.run.manifest import new_manifest
from enginecmp.run.request import RunRequest
from enginecmp.run.search import search_launches
from enginecmp.run.sweep import calibrate, described
from enginecmp.run.unproven import after_gate
from enginecmp.run.versions import Versions
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.plan import PlannedLaunch
from enginecmp.telemetry.bandwidth import probe
from enginecmp.telemetry.memory import reset_peak
from enginecmp.telemetry.watch import Telemetry


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
        CannotWrite: the results cannot be written any more.
        ResultsError: the run cannot be gone on with.
        CmpError: the gate's reference failed.
    """
    prompts = PromptSet(request.model)
    for config in request.everybody:
        try:
            file_for(config.plugin, request.model, say, extra=config.options.extra)
        except ModelError as error:  # its launches fail with the same words, the others go on
            say(f"{config.label}: {error}")
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
        if request.again is not None:
            write_in_run(folder / RESUME, to_json(request.again, indent=1) + b"\n")
        if request.scenario.copy_bandwidth and "copy_bandwidth" not in manifest.environment:
            manifest.environment |= probe([config.options for config in request.configs], say)
        if not reset_peak():
            say("memory: this kernel does not reset the high-water mark; peak_rss_bytes is that of whole launches")
            manifest.environment["peak_rss_reset"] = False
        used = {config.plugin.module for config in request.configs}
        modules = sensor_modules(used) if request.sensors else []
        with Telemetry(folder if request.sensors else None, say, modules) as telemetry:
            versions = Versions(manifest.engines, request.everybody)
            if not manifest.equivalence:
                manifest.equivalence = _gate(request, prompts, folder, versions, say)
                _hold_guesses(request, prompts, folder, manifest, say)
                manifest.baseline = after_gate(request, manifest.equivalence, say)
            manifest.environment["sensors"] = telemetry.facts()
            manifest.environment["doctor"] = _examine(folder.parent, say)
            if request.scenario.offered_load and not request.scenario.calibration:
                request.scenario = _calibrated(request, prompts, folder, telemetry, say)
                manifest.scenario = msgspec.to_builtins(request.scenario)
            writer.write_manifest()

            def driver_of(scenario: Scenario) -> Driver:
                logs = folder / LOGS
                return Driver(scenario, request.model, prompts, request.seed, logs, telemetry, versions.loaded)

            if request.scenario.find_max:
                outcome = search_launches(request, driver_of, writer, over, torn, say)
            else:
                outcome = run_launches(request, driver_of(request.scenario), writer, over, torn, say)
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
        say(f"warning: this will disturb the measurement: {', '.join(bad)}; `cmp doctor` says why and what fixes it")
    return doctor.short(findings)


def _calibrated(
    request: RunRequest, prompts: PromptSet, folder: Path, telemetry: Telemetry, say: Callable[[str], None]
) -> Scenario:
    """Return the scenario of a sweep with its rates fixed; what was measured for that is kept beside the samples."""

    def drive(
        scenario: Scenario, planned: PlannedLaunch, config: EngineConfig, keep: Callable[[Sample], None]
    ) -> LaunchRecord:
        driver = Driver(scenario, request.model, prompts, request.seed, folder / LOGS, telemetry)
        return driver.run(planned, config, f"calibration-{config.label}", keep)

    scenario, samples = calibrate(request.scenario, request.configs, drive, say)
    write_in_run(folder / CALIBRATION, b"".join(to_json(sample) + b"\n" for sample in samples))
    for line in described(scenario):
        say(line)
    return scenario


def _hold_guesses(
    request: RunRequest, prompts: PromptSet, folder: Path, manifest: Manifest, say: Callable[[str], None]
) -> None:
    """Ask engines that guess ahead whether guessing changes what they say; one that it changes is not comparable."""
    if request.reference is None or not any(map(speculates, request.everybody)):
        return
    asked = [prompts.take(PROMPT_TOKENS, key=number, seed=request.seed) for number in range(3)]
    # A text said twice: what is looked up is found there.
    asked.append(asked[0][: PROMPT_TOKENS // 2] + asked[0][-PROMPT_TOKENS // 2 :] + asked[0][-PROMPT_TOKENS // 2 :])
    manifest.speculation = check_speculation(
        request.everybody, request.model, asked, folder / LOGS, request.scenario.deadlines, say
    )
    wrong = {entry.engine: entry.note for entry in manifest.speculation if entry.verdict == DIFFERENT}
    for entry in manifest.equivalence:
        if entry.engine in wrong:
            entry.verdict = NOT_COMPARABLE
            entry.note = f"guessing ahead changes its greedy ids: {wrong[entry.engine]}"


def _gate(
    request: RunRequest, prompts: PromptSet, folder: Path, versions: Versions, say: Callable[[str], None]
) -> list[Equivalence]:
    if request.reference is None or request.exact is None:
        if request.scenario.needs_model:
            say("gate: skipped; nothing proves that the engines compute the same thing")
        return equivalence.not_checked([config.label for config in request.everybody])
    try:
        gate = Gate(
            reference=request.reference,
            timed=request.model,
            exact=request.exact,
            token_ids=prompts.score_ids(request.scenario.score_positions),
            logs=folder / LOGS,
            deadlines=request.scenario.deadlines,
            max_kl=request.scenario.max_kl,
            max_nll_increase=request.scenario.max_nll_increase,
            timed_only=request.gate_timed_only,
            mask_id=mask_of(read_gguf(request.exact.path)),
            loaded=versions.loaded,
        )
        return equivalence.run_gate(request.everybody, gate, say, fresh=request.fresh_gate)
    except (CannotWrite, UsageError):
        raise
    except CmpError as error:
        msg = f"equivalence gate: the reference failed: {error}; fix it or run with --no-gate"
        raise CmpError(msg) from error
