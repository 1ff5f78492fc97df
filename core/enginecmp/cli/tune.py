"""`cmp tune`: which settings of an engine are best here, for this model?"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from enginecmp.cli.console import say
from enginecmp.cli.options import read_duration, read_share
from enginecmp.errors import CmpError, UsageError

if TYPE_CHECKING:
    from enginecmp.cli.racing import RaceResult, Rules
    from enginecmp.run_request import RunRequest
    from enginecmp.tune.candidates import Candidate, Sweep
    from enginecmp.tune.store import Tuned

_FIRST_SHARE = 0.6
"""Of the time, for single changes; the rest is for the best ones together."""

_ALPHA = 0.05


@click.command("tune", short_help="Find the best settings of an engine.")
@click.argument("engine")
@click.option("--model", help="A catalog name or a GGUF file; see `cmp model list`.")
@click.option("--device", help="cpu, cuda, ...; the engine's default without it.")
@click.option("--scenario", default="sustained", show_default=True, help="A name or a TOML file.")
@click.option("--profile", default="quick", show_default=True, help="How much of the scenario.")
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
def command(engine: str, **arguments: Any) -> int:
    """Try the settings that ENGINE's plugin calls tunable, and keep the best for `cmp run --tuned`.

    Every setting is a contender of an ordinary run, launched in randomized blocks; whoever is shown to be worse than
    the leader runs no more. The default wins unless another setting is shown to be better. Settings that change what
    is computed beyond the gate's limit are left out.
    """
    from enginecmp.cli.measure import terminated_like_interrupted

    if arguments["forget"]:
        return _forget(engine, arguments["model"])
    with terminated_like_interrupted():
        return _tune(engine, arguments)


def _tune(engine: str, arguments: dict[str, Any]) -> int:
    from enginecmp.cli.prepare import check_idle, exact_of
    from enginecmp.cli.racing import Rules
    from enginecmp.results import ResultsFolder
    from enginecmp.tune.candidates import sweep_of, values_of
    from enginecmp_analysis.metrics import find_metric

    request = _prepare(engine, arguments)
    if not request.contenders:
        came = arguments["device"]
        msg = f"{engine}: expected a device whose speed means something, came {came}; pass another --device"
        raise UsageError(msg)
    (contender,) = request.contenders
    assert contender.plugin.info is not None
    fixed = {*contender.options.extra} | ({"threads"} if arguments["threads"] != "auto" else set())
    sweep = sweep_of(values_of(contender.plugin.info, contender.options.device, fixed))
    if len(sweep.candidates) == 1:
        msg = f"{engine}: has nothing to tune here: its plugin names no values to try that are not set already"
        raise CmpError(msg)
    metric = find_metric(arguments["metric"] or request.scenario.primary_metric).name
    budget = arguments["budget"]
    rules = Rules(metric=metric, alpha=_ALPHA, margin=arguments["margin"], seconds=budget, most_seconds=budget)
    _announce(request, sweep, rules, arguments["out"])
    if arguments["dry_run"]:
        for candidate in sweep.candidates:
            click.echo(candidate.label)
        return 0
    if request.reference is not None:
        request.exact = exact_of(request.model)
    folder: Path = arguments["out"] / f"tune-{engine}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    with ResultsFolder(folder):
        check_idle(arguments["wait_idle"])
        try:
            races = _races(request, sweep, folder, rules)
        except KeyboardInterrupt:
            say(f"interrupted: nothing is stored; what was measured is in {folder}: cmp stats {folder}")
            raise
    return _conclude(races, request, rules, folder, arguments["as_json"])


def _prepare(engine: str, arguments: dict[str, Any]) -> RunRequest:
    """Return the run of the engine as it comes, from the same options as `cmp run` has."""
    from enginecmp.cli import prepare
    from enginecmp.cli.run import command as run
    from enginecmp.plugins import discover
    from enginecmp.scenarios.fit import fit

    line = ["--engines", engine, "--scenario", arguments["scenario"], "--profile", arguments["profile"]]
    line += ["--threads", arguments["threads"], "--reference", arguments["reference"]]
    line += ["--blocks", str(arguments["blocks"]), "--requests", str(arguments["requests"])]
    line += ["--device", arguments["device"]] if arguments["device"] else []
    line += ["--max-kl", str(arguments["max_kl"])] if arguments["max_kl"] else []
    line += ["--seed", str(arguments["seed"])] if arguments["seed"] is not None else []
    line += ["--no-gate"] if arguments["no_gate"] else []
    for option in arguments["options"]:
        line += ["-o", f"{engine}.{option}"]
    values = run.make_context("cmp run", line).params
    plugins = discover()
    model = prepare.find_model(arguments["model"])
    scenario = fit(prepare.make_scenario(values, plugins), model, say)
    return prepare.make_request(values, scenario, model, prepare.choose_seed(values), plugins)


def _announce(request: RunRequest, sweep: Sweep, rules: Rules, out: Path) -> None:
    from enginecmp.estimate import duration, expected_seconds
    from enginecmp_analysis.statistics.race import MIN_BLOCKS

    (contender,) = request.contenders
    one = msgspec.structs.replace(request.scenario, blocks=1)
    seconds, basis = expected_seconds(one, request.model, request.contenders, out)
    how = (
        f"all {sweep.combinations} combinations"
        if sweep.kind == "grid"
        else f"{len(sweep.candidates) - 1} single changes of {sweep.combinations} combinations, then the best together"
    )
    block_seconds = seconds * len(sweep.candidates)
    say(
        f"{contender.label} on {request.model.name} ({contender.options.device}): {how}, for {rules.metric} in "
        f"{one.name}/{one.profile}; a block takes about {duration(block_seconds)} ({basis}), "
        f"at most {duration(rules.seconds)} of launches, and the gate before them"
    )
    if MIN_BLOCKS * block_seconds > rules.seconds:
        say(f"that may be too little: {MIN_BLOCKS} blocks must be run before anything can be told; see --budget")


def _races(request: RunRequest, sweep: Sweep, folder: Path, rules: Rules) -> list[RaceResult]:
    """Run the race, and after single changes a second one between the winner and the best changes together."""
    from enginecmp.cli.racing import race
    from enginecmp.tune.candidates import DEFAULT, combined

    if sweep.kind == "grid":
        return [race(request, sweep.candidates, DEFAULT, folder, rules)]
    # Two races share what may go wrong: half of alpha each.
    half = msgspec.structs.replace(rules, alpha=rules.alpha / 2, seconds=_FIRST_SHARE * rules.seconds)
    first = race(request, sweep.candidates, DEFAULT, folder, half)
    together = combined([c for c in sweep.candidates if c.changes], first.advantages())
    if together is None:
        say("no two options were better than their defaults, so nothing is tried together")
        return [first]
    second = _second_candidates(first, together)
    say(f"together: {together.label}, against {' and '.join(c.label for c in second if c != together)}")
    rest = rules.seconds - first.seconds
    left = msgspec.structs.replace(half, seconds=rest, most_seconds=rest)
    return [first, race(msgspec.structs.replace(request, seed=request.seed + 1), second, DEFAULT, folder, left)]


def _second_candidates(first: RaceResult, together: Candidate) -> list[Candidate]:
    from enginecmp.tune.candidates import DEFAULT

    # The default again, if only to have its ratio in the same blocks.
    labels = dict.fromkeys((first.winner, DEFAULT))
    return [*(first.candidates[label] for label in labels), together]


def _conclude(races: list[RaceResult], request: RunRequest, rules: Rules, folder: Path, as_json: bool) -> int:
    """Store and tell the winner; with too few blocks, tell that nothing can be told."""
    from enginecmp.tune.store import publish

    last = races[-1]
    # A second race that its time cut short takes nothing back of what the first one found.
    final = last if last.decided else races[0]
    winner = _record(final, races, request, rules)
    if final.decided:
        publish(winner)
    if as_json:
        content = {"stored": final.decided, "winner": winner, "races": races}
        text = msgspec.json.encode(content, enc_hook=str)
        sys.stdout.buffer.write(msgspec.json.format(text, indent=2) + b"\n")
    else:
        for result in races:
            _print(result, rules)
    say(f"all of it: cmp stats {folder}")
    if not final.decided:
        say(
            f"nothing is stored: {final.blocks} blocks tell nothing, it takes 3 without disturbed launches; "
            "give it more time with --budget, or an idle machine"
        )
        return 1
    engine = request.contenders[0].plugin.name
    setting = ", ".join(f"{k}={v}" for k, v in winner.changes.items()) or "its default"
    say(f"stored for {engine} {winner.version} and {winner.model}: {setting}; use it with cmp run --tuned tuned")
    return 0


def _record(final: RaceResult, races: list[RaceResult], request: RunRequest, rules: Rules) -> Tuned:
    from enginecmp.cli.racing import in_terms_of
    from enginecmp.environment import describe_environment
    from enginecmp.noise import machine_of
    from enginecmp.tune.store import Tuned

    (contender,) = request.contenders
    standing = final.standings[final.winner]
    limits = sorted(in_terms_of(rules.metric, limit) for limit in (standing.ci_low, standing.ci_high))
    told = math.isfinite(limits[0])
    changes = final.candidates[final.winner].changes
    return Tuned(
        machine=machine_of(describe_environment()),
        engine=contender.plugin.name,
        version=contender.engine_version,
        model=request.model.name,
        model_sha256=request.model.sha256,
        device=contender.options.device,
        changes=changes,
        metric=rules.metric,
        scenario=f"{request.scenario.name}/{request.scenario.profile}",
        ratio=in_terms_of(rules.metric, standing.ratio) if changes else 1.0,
        ci_low=limits[0] if changes and told else None,
        ci_high=limits[1] if changes and told else None,
        n_launches=standing.n,
        ended=final.ended,
        runs=[str(result.folder) for result in races],
        tuned_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _print(result: RaceResult, rules: Rules) -> None:
    """Print one race: every candidate beside the default."""
    from enginecmp.cli.racing import in_terms_of

    rows = [("setting", "launches", f"{rules.metric} / default's", "outcome")]
    for label, standing in result.standings.items():
        ratio = ""
        if math.isfinite(standing.ratio):
            ratio = f"{in_terms_of(rules.metric, standing.ratio):.3f}"
            if math.isfinite(standing.ci_low):
                low, high = sorted(in_terms_of(rules.metric, x) for x in (standing.ci_low, standing.ci_high))
                ratio += f" [{low:.3f}, {high:.3f}]"
        rows.append((label, str(result.launches[label]), ratio, result.outcomes[label]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[3]]).rstrip())
    click.echo(f"over because {result.ended}, after {result.blocks} blocks\n")


def _forget(engine: str, model: str | None) -> int:
    from enginecmp.cli.prepare import find_model
    from enginecmp.tune.store import forget

    gone = forget(engine, find_model(model).sha256 if model else None)
    for tuned in gone:
        setting = ", ".join(f"{k}={v}" for k, v in tuned.changes.items()) or "its default"
        click.echo(f"forgotten: {tuned.engine} {tuned.version} on {tuned.model} ({tuned.device}): {setting}")
    if not gone:
        say(f"nothing was stored for {engine}{f' and {model}' if model else ''}")
    return 0
