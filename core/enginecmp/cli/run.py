"""`cmp run`: measure engines against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from enginecmp.cli.conflicts import check_run
from enginecmp.cli.console import echo
from enginecmp.cli.grouped import GroupedCommand
from enginecmp.cli.measure import after, measure, prepare, terminated_like_interrupted
from enginecmp.cli.objects import bring, read_out, read_run, with_store
from enginecmp.cli.options import read_blocks, read_extra, read_share
from enginecmp.run.options import RunOptions

NATS = click.FloatRange(min=0, min_open=True)


GROUPS = {
    "What is measured": (
        *("engines", "scenario", "profile", "model", "matrix", "suite", "find_max", "slo", "tuned", "options"),
        *("threads", "device", "temperature", "top_k", "top_p", "stop_at_eos", "json_schema"),
    ),
    "How much": (
        *("blocks", "requests", "max_extra", "adaptive", "precision", "seed", "deadlines", "wait_idle", "no_sensors"),
        *("resume", "extend", "dry_run"),
    ),
    "How it is judged": (
        *("baseline", "save_baseline", "reference", "no_gate", "fresh_gate", "quality_only", "score_positions"),
        *("max_kl", "max_nll_increase"),
    ),
    "Where": ("on", "nodes", "require", "out", "as_json"),
}


@click.command(
    "run",
    cls=GroupedCommand,
    groups=GROUPS,
    short_help="Measure engines against each other.",
)
@click.option("--engines", default="all", show_default=True, help="all, or a,b, or label=engine; a server by its name.")
@click.option("--scenario", default="sustained", show_default=True, help="A name or a TOML file.")
@click.option("--profile", help="How much of the scenario: full or quick.  [default: full, or a file's only one]")
@click.option("--model", help="A catalog name or a GGUF file; see `cmp model list`.")
@click.option(
    "--matrix", metavar="MODEL[,...]", help="One run per file (NAME:q4_1+q8_0: both), or FILE.toml of factors."
)
@click.option("--suite", type=click.Path(path_type=Path), metavar="FILE", help="Several runs and one report; see docs.")
@click.option("--on", metavar="WHERE", help="Run on other machines: ssh:hosts.toml; see docs/FLEET.md.")
@click.option("--nodes", type=click.IntRange(min=1), help="On how many of them each run is made.  [default: all]")
@click.option("--require", metavar="KEY=VALUE[,...]", help="What a node of --on must have: gpu=H200,cpus=16.")
@click.option(
    "--find-max",
    type=click.Choice(["concurrency", "rate"]),
    help="Find the largest load that keeps --slo, by bracketing; --blocks is then the most.",
)
@click.option("--slo", multiple=True, metavar="SLO", help="What --find-max must keep: ttft_p95<200ms; repeatable.")
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
@click.option("--blocks", callback=read_blocks, metavar="N", help="Launches per engine, instead of the profile's.")
@click.option(
    "--max-extra",
    callback=read_extra,
    default="50%",
    show_default=True,
    help="Most time on top of the plan, to repeat disturbed launches and add blocks; 0 for none.",
)
@click.option("--adaptive", is_flag=True, help="Stop when precise enough; --blocks is then the most.  [4 × profile]")
@click.option("--precision", callback=read_share, default="2%", show_default=True, help="What --adaptive aims at.")
@click.option("--requests", type=click.IntRange(min=1), help="Measured requests per launch and cell.")
@click.option(
    "--temperature", type=click.FloatRange(0, 100), help="Draw ids at this temperature; 0 is greedy.  [greedy]"
)
@click.option("--top-k", type=click.IntRange(min=0), help="Draw among that many of the most likely ids; 0 is off.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw among ids that together have it.")
@click.option("--stop-at-eos", is_flag=True, help="Let requests end at end-of-sequence; lengths are the most then.")
@click.option(
    "--json-schema",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure every cell twice: free, and with answers that follow the JSON Schema.",
)
@click.option("-o", "options", multiple=True, metavar="ENGINE.KEY=VALUE", help="An option of one engine.")
@click.option("--deadline", "deadlines", multiple=True, metavar="PHASE=SECONDS", help="load, prefill, decode, score.")
@click.option(
    "--out", default="results", show_default=True, callback=read_out, help="Folder of runs, or s3://BUCKET/PREFIX."
)
@click.option("--seed", type=int, help="Of everything random; recorded in the manifest.  [default: drawn]")
@click.option("--no-gate", is_flag=True, help="Skip the equivalence gate; marks the run.")
@click.option("--fresh-gate", is_flag=True, help="Ask every engine again, whatever an earlier gate proved.")
@click.option("--reference", default="pytorch_baseline", show_default=True, help="Engine that the gate trusts.")
@click.option("--quality-only", is_flag=True, help="Run the gate, show perplexity and KL, and time nothing.")
@click.option("--score-positions", type=click.IntRange(min=2), help="Positions of text that the gate scores.  [64]")
@click.option("--max-kl", type=NATS, help="Largest mean KL that is comparable, nats.  [0.02]")
@click.option("--max-nll-increase", type=NATS, help="Largest rise of the text's cost, nats a token.  [none]")
@click.option("--no-sensors", is_flag=True, help="Leave the sensors off: no telemetry, no flags from it.")
@click.option("--wait-idle", is_flag=True, help="Wait (up to 10 minutes) until the machine is idle.")
@click.option("--resume", callback=read_run, metavar="RUN", help="Finish an interrupted run; s3://… too.")
@click.option("--extend", callback=read_run, metavar="RUN", help="Add blocks to a run: --blocks +2.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the time it will take.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> int:
    """Launch every engine many times in random order, and write down when each token came.

    Each engine is first held against a reference, then launched once per block in a process of its own. What is
    finished is on disk at any moment: Ctrl-C or a crash loses at most the request under way, and
    `cmp run --resume results/ID` goes on from there.

    A launch that the rest of the machine disturbed is repeated at once, decided by its flags and never by a value, and
    blocks are added at the end where launches that count are missing, within --max-extra. What is still missing then,
    `cmp run --extend results/ID --blocks +2` adds to the same run.

    With the name of a saved run as --baseline, the new run is compared with it afterwards; a confirmed critical
    regression exits with 3.
    """
    check_run(context)
    options = with_store(RunOptions(**given))
    with terminated_like_interrupted():
        if options.on is not None and options.resume is None:
            from enginecmp.cli.fleet import start_fleet

            return start_fleet(options, options.on)
        if options.suite is not None:
            from enginecmp.cli.suite import start_suite

            return start_suite(options, options.suite, context.command)
        if options.resume is not None or options.extend is not None:
            from enginecmp.cli.fleet import is_fleet, resume_fleet
            from enginecmp.cli.resume import extend, resume
            from enginecmp.cli.suite import is_suite, resume_suite

            bring(options)
            if options.resume is not None and is_fleet(options.resume):
                return resume_fleet(options, options.resume)
            if options.resume is not None and is_suite(options.resume):
                return resume_suite(options, options.resume, context.command)
            return resume(options, options.resume) if options.resume else extend(options, options.extend)
        if options.matrix is not None:
            from enginecmp.cli.matrix import measure_matrix

            return measure_matrix(options, options.matrix)
        return _start(options)


def _start(options: RunOptions) -> int:
    from enginecmp.results.baselines import check_name

    prepared = prepare(options)
    if options.save_baseline is not None:
        check_name(options.save_baseline, prepared.request.labels)
    if prepared.saved is not None:
        from enginecmp.cli.compare import check_conditions
        from enginecmp.run.manifest import new_manifest

        check_conditions(prepared.saved, new_manifest(prepared.request, "new"))
    if options.dry_run:
        from enginecmp.run.summary import plan_lines

        for line in plan_lines(prepared.request, prepared.seconds, prepared.basis):
            echo(line)
        return 0
    return after(options, measure(options, prepared), prepared.saved)
