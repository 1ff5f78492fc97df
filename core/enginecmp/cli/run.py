"""`cmp run`: measure engines against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from enginecmp.cli.conflicts import check_run
from enginecmp.cli.console import say
from enginecmp.cli.measure import after, measure, terminated_like_interrupted
from enginecmp.cli.options import read_share
from enginecmp.cli.prepare import choose_seed, find_model, make_request, make_scenario, print_plan
from enginecmp.scenarios.fit import fit

NATS = click.FloatRange(min=0, min_open=True)


@click.command("run", short_help="Measure engines against each other.")
@click.option("--engines", default="all", show_default=True, help="all, or a,b, or label=engine,other=engine.")
@click.option("--scenario", "scenario_name", default="sustained", show_default=True, help="A name or a TOML file.")
@click.option("--profile", default="full", show_default=True, help="How much of the scenario: full or quick.")
@click.option("--model", "model_name", help="A catalog name or a GGUF file; see `cmp model list`.")
@click.option("--matrix", metavar="MODEL[,...]", help="One run per file; NAME:q4_1+q8_0 means both of them.")
@click.option(
    "--tuned",
    type=click.Choice(["default", "tuned", "both"]),
    default="default",
    show_default=True,
    help="With what `cmp tune` stored; both runs NAME and NAME+tuned.",
)
@click.option("--baseline", help="Engine that others are compared with, or a saved run.  [default: pytorch_baseline]")
@click.option("--save-baseline", metavar="NAME", help="Save the run under a name when it is complete.")
@click.option("--threads", default="auto", show_default=True, help="Compute threads; auto leaves the host a core.")
@click.option("--device", help="cpu, cuda, …, or ENGINE=cuda,OTHER=cpu; each engine's default without it.")
@click.option("--blocks", type=click.IntRange(min=1), help="Launches per engine, instead of the profile's.")
@click.option("--adaptive", is_flag=True, help="Stop when precise enough; --blocks is then the most.  [4 × profile]")
@click.option("--precision", callback=read_share, default="2%", show_default=True, help="What --adaptive aims at.")
@click.option("--requests", type=click.IntRange(min=1), help="Measured requests per launch and cell.")
@click.option("-o", "options", multiple=True, metavar="ENGINE.KEY=VALUE", help="An option of one engine.")
@click.option("--deadline", "deadlines", multiple=True, metavar="PHASE=SECONDS", help="load, prefill, decode, score.")
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--seed", type=int, help="Of everything random; recorded in the manifest.  [default: drawn]")
@click.option("--no-gate", is_flag=True, help="Skip the equivalence gate; marks the run.")
@click.option("--reference", default="pytorch_baseline", show_default=True, help="Engine that the gate trusts.")
@click.option("--quality-only", is_flag=True, help="Run the gate, show perplexity and KL, and time nothing.")
@click.option("--score-positions", type=click.IntRange(min=2), help="Positions of text that the gate scores.  [64]")
@click.option("--max-kl", type=NATS, help="Largest mean KL that is comparable, nats.  [0.02]")
@click.option("--max-nll-increase", type=NATS, help="Largest rise of the text's cost, nats a token.  [none]")
@click.option("--no-sensors", is_flag=True, help="Leave the sensors off: no telemetry, no flags from it.")
@click.option("--wait-idle", is_flag=True, help="Wait (up to 10 minutes) until the machine is idle.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Finish an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the time it will take.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_context
def command(context: click.Context, /, **arguments: Any) -> int:
    """Launch every engine many times in random order, and write down when each token came.

    Each engine is first held against a reference, then launched once per block in a process of its own. What is
    finished is on disk at any moment: Ctrl-C or a crash loses at most the request under way, and
    `cmp run --resume results/ID` goes on from there.

    With the name of a saved run as --baseline, the new run is compared with it afterwards; a confirmed critical
    regression exits with 3.
    """
    check_run(context)
    with terminated_like_interrupted():
        if arguments["resume"] is not None:
            from enginecmp.cli.resume import resume

            return resume(arguments)
        if arguments["matrix"] is not None:
            from enginecmp.cli.matrix import measure_matrix

            return measure_matrix(arguments)
        return _start(arguments)


def _start(arguments: dict[str, Any]) -> int:
    from enginecmp.baselines import check_name, engine_or_saved
    from enginecmp.estimate import expected_seconds
    from enginecmp.plugins import discover

    plugins = discover()
    scenario = make_scenario(arguments, plugins)
    model = find_model(arguments["model_name"])
    scenario = fit(scenario, model, say)
    request = make_request(arguments, scenario, model, choose_seed(arguments), plugins)
    if arguments["save_baseline"] is not None:
        check_name(arguments["save_baseline"], request.labels)
    scenario = request.scenario
    request.baseline, saved = engine_or_saved(arguments["baseline"], request.labels, arguments["out"])
    if saved is not None:
        from enginecmp.cli.compare import check_conditions
        from enginecmp.manifest import new_manifest

        check_conditions(saved, new_manifest(request, "new"))
    seconds, basis = expected_seconds(scenario, model, request.contenders, arguments["out"])
    if arguments["dry_run"]:
        print_plan(request, seconds, basis)
        return 0
    folder = measure(arguments, request, seconds, basis)
    return after(arguments, folder, saved)
