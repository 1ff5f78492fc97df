"""`cmp tune`: which settings of an engine are best here, for this model?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from enginecmp.cli.console import columns, echo, print_json, say
from enginecmp.cli.options import read_duration, read_share
from enginecmp.errors import CmpError, UsageError
from enginecmp.format.text import command_line, operand
from enginecmp.run.options import RunOptions

if TYPE_CHECKING:
    from enginecmp.run.request import RunRequest
    from enginecmp.tune.candidates import Candidate, Sweep
    from enginecmp.tune.race import Judge, RaceResult, Rules
    from enginecmp.tune.store import Tuned

_FIRST_SHARE = 0.6
"""Of the time, for single changes; the rest is for the best ones together."""

_ALPHA = 0.05


@click.command("tune", short_help="Find the best settings of an engine.")
@click.argument("engine")
@click.option("--model", help="A catalog name or a GGUF file; see `cmp model list`.")
@click.option("--device", help="cpu, cuda, ...; the engine's default without it.")
@click.option("--scenario", default="sustained", show_default=True, help="A name or a TOML file.")
@click.option("--profile", help="How much of the scenario.  [default: quick, or the only one that a file has]")
@click.option("--metric", help="What to race for.  [default: the scenario's primary metric]")
@click.option("--budget", callback=read_duration, default="5min", show_default=True, help="Time for the launches.")
@click.option("--blocks", type=click.IntRange(min=3), default=30, show_default=True, help="Most launches of each.")
@click.option("--requests", type=click.IntRange(min=1), default=5, show_default=True, help="Per launch and cell.")
@click.option("--margin", callback=read_share, default="3%", show_default=True, help="Less than this is a tie.")
@click.option("--threads", default="auto", show_default=True, help="The default's; with a number none is tried.")
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="An option for all candidates.")
@click.option("--max-kl", type=click.FloatRange(min=0, min_open=True), help="As for `cmp run`.  [0.02]")
@click.option("--no-gate", is_flag=True, help="Let settings win that change what is computed.")
@click.option("--reference", default="pytorch_baseline", show_default=True, help="Engine that the gate trusts.")
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--seed", type=int, help="Of everything random.  [default: drawn]")
@click.option("--wait-idle", is_flag=True, help="Wait (up to 10 minutes) until the machine is idle.")
@click.option("--dry-run", is_flag=True, help="Print what would be tried.")
@click.option(
    "--forget", is_flag=True, help="Remove what is stored (with --model: for that model), and measure nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(engine: str, **given: Any) -> int:
    """Try the settings that ENGINE's plugin calls tunable, and keep the best for `cmp run --tuned`.

    Every candidate takes part in an ordinary run, launched in randomized blocks; whoever is shown to be worse than
    the leader runs no more. The default wins unless another setting is shown to be better. Settings that change what
    is computed beyond the gate's limit are left out.
    """
    from enginecmp.cli.measure import terminated_like_interrupted

    asked = _Asked(engine=engine, **given)
    if asked.forget:
        return _forget(engine, asked.model)
    with terminated_like_interrupted():
        return _tune(asked)


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command, by the names of their parameters."""

    engine: str
    model: str | None
    device: str | None
    scenario: str
    profile: str | None
    metric: str | None
    budget: float
    blocks: int
    requests: int
    margin: float
    threads: str
    options: tuple[str, ...]
    max_kl: float | None
    no_gate: bool
    reference: str
    out: Path
    seed: int | None
    wait_idle: bool
    dry_run: bool
    forget: bool
    as_json: bool

    def run_options(self) -> RunOptions:
        """Return what is asked of the run of the engine as it comes."""
        return RunOptions(
            engines=self.engine,
            model=self.model,
            device=self.device,
            scenario=self.scenario,
            profile=self.profile,
            usual_profile="quick",
            blocks=self.blocks,
            requests=self.requests,
            threads=self.threads,
            options=tuple(f"{self.engine}.{option}" for option in self.options),
            max_kl=self.max_kl,
            no_gate=self.no_gate,
            max_extra=0.0,  # a race that was disturbed goes on by its own rules
            reference=self.reference,
            out=self.out,
            seed=self.seed,
        )


def _tune(asked: _Asked) -> int:
    from enginecmp.cli.measure import prepare
    from enginecmp.results.writer import ResultsFolder
    from enginecmp.run.prepare import check_idle, exact_of, find_model
    from enginecmp.tune.candidates import sweep_of, values_of
    from enginecmp.tune.race import Rules
    from enginecmp_analysis.data.metrics import find_metric

    request = prepare(asked.run_options(), find_model(asked.model)).request
    if not request.configs:
        msg = (
            f"{asked.engine}: expected a device whose speed means something, got {asked.device}; pass another --device"
        )
        raise UsageError(msg)
    (config,) = request.configs
    assert config.plugin.info is not None
    fixed = {*config.options.extra} | ({"threads"} if asked.threads != "auto" else set())
    sweep = sweep_of(values_of(config.plugin.info, config.options.device, fixed))
    if len(sweep.candidates) == 1:
        msg = f"{asked.engine}: has nothing to tune here: its plugin names no values to try that are not set already"
        raise CmpError(msg)
    metric = find_metric(asked.metric or request.scenario.primary_metric)
    rules = Rules(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        alpha=_ALPHA,
        margin=asked.margin,
        seconds=asked.budget,
        most_seconds=asked.budget,
    )
    _announce(request, sweep, rules, asked.out)
    if asked.dry_run:
        for candidate in sweep.candidates:
            echo(candidate.label)
        return 0
    if request.reference is not None:
        request.exact = exact_of(request.model)
    folder = asked.out / f"tune-{asked.engine}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    with ResultsFolder(folder):
        check_idle(asked.wait_idle, say)
        try:
            races = _races(request, sweep, folder, rules)
        except KeyboardInterrupt:
            say(f"interrupted: nothing is stored; what was measured is in {folder}: {_stats(folder)}")
            raise
    return _conclude(races, request, rules, folder, asked.as_json)


def _stats(folder: Path) -> str:
    return command_line(["cmp", "stats", operand(folder)])


def _announce(request: RunRequest, sweep: Sweep, rules: Rules, out: Path) -> None:
    from enginecmp.run.estimate import duration, expected_seconds
    from enginecmp_analysis.judge.race import MIN_BLOCKS

    (config,) = request.configs
    one = msgspec.structs.replace(request.scenario, blocks=1)
    seconds, basis = expected_seconds(one, request.model, request.configs, out)
    how = (
        f"all {sweep.combinations} combinations"
        if sweep.kind == "grid"
        else f"{len(sweep.candidates) - 1} single changes of {sweep.combinations} combinations, then the best together"
    )
    block_seconds = seconds * len(sweep.candidates)
    say(
        f"{config.label} on {request.model.name} ({config.options.device}): {how}, for {rules.metric} in "
        f"{one.name}/{one.profile}; a block takes about {duration(block_seconds)} ({basis}), "
        f"at most {duration(rules.seconds)} of launches, and the gate before them"
    )
    if MIN_BLOCKS * block_seconds > rules.seconds:
        say(f"that may be too little: {MIN_BLOCKS} blocks must be run before anything can be told; see --budget")


def _judge(labels: Sequence[str], rules: Rules) -> Judge:
    """Return what decides a race: the statistics of the analysis over the runs on disk."""
    from enginecmp.tune.race import Judge
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.judge.judge import Options
    from enginecmp_analysis.judge.race import MIN_BLOCKS, Race, scores_of

    def scores(run: Path) -> Mapping[str, Mapping[int, float]]:
        (group,) = analyse(load_runs([str(run)]), Options(metrics=(rules.metric,))).groups
        return scores_of(group.means, rules.metric)

    return Judge(
        state=Race(labels, alpha=rules.alpha, margin=rules.margin),
        scores=scores,
        beside=lambda ordered, scores: Race(ordered).standings(scores),
        min_blocks=MIN_BLOCKS,
    )


def _races(request: RunRequest, sweep: Sweep, folder: Path, rules: Rules) -> list[RaceResult]:
    """Run the race, and after single changes a second one between the winner and the best changes together."""
    from enginecmp.tune.candidates import combined
    from enginecmp.tune.race import race

    def run(request: RunRequest, candidates: Sequence[Candidate], rules: Rules) -> RaceResult:
        judge = _judge([candidate.label for candidate in candidates], rules)
        return race(request, candidates, folder, rules, judge, say)

    if sweep.kind == "grid":
        return [run(request, sweep.candidates, rules)]
    # Two races share what may go wrong: half of alpha each.
    half = msgspec.structs.replace(rules, alpha=rules.alpha / 2, seconds=_FIRST_SHARE * rules.seconds)
    first = run(request, sweep.candidates, half)
    together = combined([c for c in sweep.candidates if c.changes], first.advantages())
    if together is None:
        say("no two options were better than their defaults, so nothing is tried together")
        return [first]
    second = _second_candidates(first, together)
    say(f"together: {together.label}, against {' and '.join(c.label for c in second if c != together)}")
    rest = rules.seconds - first.seconds
    left = msgspec.structs.replace(half, seconds=rest, most_seconds=rest)
    return [first, run(msgspec.structs.replace(request, seed=request.seed + 1), second, left)]


def _second_candidates(first: RaceResult, together: Candidate) -> list[Candidate]:
    from enginecmp.tune.candidates import DEFAULT

    # The default again, if only to have its ratio in the same blocks.
    labels = dict.fromkeys((first.winner, DEFAULT))
    return [*(first.candidates[label] for label in labels), together]


def _conclude(races: list[RaceResult], request: RunRequest, rules: Rules, folder: Path, as_json: bool) -> int:
    """Store and tell the winner; with too few blocks, tell that nothing can be told."""
    from enginecmp.run.prepare import model_words
    from enginecmp.tune.apply import device_words
    from enginecmp.tune.store import publish

    last = races[-1]
    # A second race that its time cut short takes nothing back of what the first one found.
    final = last if last.decided else races[0]
    winner = _record(final, races, request, rules)
    if final.decided:
        publish(winner)
    if as_json:
        content = {"stored": final.decided, "winner": winner, "races": races}
        print_json(content)
    else:
        for result in races:
            _print(result, rules)
    say(f"all of it: {_stats(folder)}")
    if not final.decided:
        say(
            f"nothing is stored: {final.blocks} blocks tell nothing, it takes 3 without disturbed launches; "
            "give it more time with --budget, or an idle machine"
        )
        return 1
    engine = request.configs[0].plugin.name
    setting = ", ".join(f"{k}={v}" for k, v in winner.changes.items()) or "its default"
    use = ["cmp", "run", "--engines", engine, "--tuned", "tuned", *model_words(request.model)]
    use += device_words(request.configs[0])
    say(f"stored for {engine} {winner.version} and {winner.model}: {setting}; use it with: {command_line(use)}")
    return 0


def _record(final: RaceResult, races: list[RaceResult], request: RunRequest, rules: Rules) -> Tuned:
    from enginecmp.machine.environment import describe_environment
    from enginecmp.machine.noise import machine_of
    from enginecmp.tune.store import Tuned

    (config,) = request.configs
    standing = final.standings[final.winner]
    limits = sorted(rules.in_terms_of_metric(limit) for limit in (standing.ci_low, standing.ci_high))
    told = math.isfinite(limits[0])
    changes = final.candidates[final.winner].changes
    return Tuned(
        machine=machine_of(describe_environment()),
        engine=config.plugin.name,
        version=config.engine_version,
        model=request.model.name,
        model_sha256=request.model.sha256,
        device=config.options.device,
        changes=changes,
        metric=rules.metric,
        scenario=f"{request.scenario.name}/{request.scenario.profile}",
        ratio=rules.in_terms_of_metric(standing.ratio) if changes else 1.0,
        ci_low=limits[0] if changes and told else None,
        ci_high=limits[1] if changes and told else None,
        n_launches=standing.n,
        ended=final.ended,
        runs=[str(result.folder) for result in races],
        tuned_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _print(result: RaceResult, rules: Rules) -> None:
    """Print one race: every candidate beside the default."""
    rows = [("setting", "launches", f"{rules.metric} / default's", "outcome")]
    for label, standing in result.standings.items():
        ratio = ""
        if math.isfinite(standing.ratio):
            ratio = f"{rules.in_terms_of_metric(standing.ratio):.3f}"
            if math.isfinite(standing.ci_low):
                low, high = sorted(rules.in_terms_of_metric(x) for x in (standing.ci_low, standing.ci_high))
                ratio += f" [{low:.3f}, {high:.3f}]"
        rows.append((label, str(result.launches[label]), ratio, result.outcomes[label]))
    columns(rows)
    echo(f"over because {result.ended}, after {result.blocks} blocks")
    echo()


def _forget(engine: str, model: str | None) -> int:
    from enginecmp.run.prepare import find_model
    from enginecmp.tune.store import forget

    gone = forget(engine, find_model(model).sha256 if model else None)
    for tuned in gone:
        setting = ", ".join(f"{k}={v}" for k, v in tuned.changes.items()) or "its default"
        echo(f"forgotten: {tuned.engine} {tuned.version} on {tuned.model} ({tuned.device}): {setting}")
    if not gone:
        say(f"nothing was stored for {engine}{f' and {model}' if model else ''}")
    return 0
