"""The `cmp` command: one file per verb, imported only when that verb is used.

`cmp` is also the name of the POSIX tool that compares two files. Inside an activated environment ours comes
first on PATH, so a call of the POSIX kind is handed over unchanged, exit code included: an option that is not
ours, or two or more operands of which the first is not a verb.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from enginecmp import __version__
from enginecmp.errors import CmpError, did_you_mean

VERBS = {
    "run": "Measure engines against each other.",
    "stats": "Turn samples into verdicts.",
    "engines": "List engines, and what keeps the missing ones away.",
    "model": "List, fetch, convert, describe or invent weights files.",
}
"""Every verb and its line in the help; the module of the same name holds its command."""

_OWN_OPTIONS = ("-h", "--help", "--version", "--debug")


class _Verbs(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"enginecmp.cli.{cmd_name}").command  # type: ignore[no-any-return]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in VERBS:
            msg = f"unknown command '{args[0]}'{did_you_mean(args[0], VERBS)}"
            raise click.UsageError(msg)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which LLM inference engine is faster here, by how much, how sure, and is it computing the same thing?\n\n"
    "Start with `cmp engines`, then `cmp run --engines all --scenario sustained --profile quick` and "
    "`cmp stats results/`. Comparing two files as the POSIX cmp does still works: `cmp a b`.",
)
@click.version_option(__version__, prog_name="enginecmp")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors; anywhere on the line.")
def program(debug: bool) -> None:
    """Hold the options that every verb shares."""


def is_posix_call(arguments: list[str]) -> bool:
    """Say whether a command line is meant for the POSIX cmp."""
    if not arguments or arguments[0] in VERBS or arguments[0] in _OWN_OPTIONS:
        return False
    if arguments[0].startswith("-"):
        return True
    operands = [argument for argument in arguments if argument == "-" or not argument.startswith("-")]
    misspelt = not os.path.exists(arguments[0]) and "did you mean" in did_you_mean(arguments[0], VERBS)
    return len(operands) >= 2 and not misspelt


def system_cmp() -> str | None:
    """Return the path of the next `cmp` on PATH that is not ours."""
    ours = os.path.realpath(os.path.dirname(sys.argv[0]))
    for folder in os.get_exec_path():
        candidate = os.path.join(folder, "cmp")
        inside = {os.path.realpath(folder)} & {ours, os.path.realpath(os.path.dirname(sys.executable))}
        if not inside and os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    return None


def main() -> None:
    """Run the command line; every expected error is one line on stderr and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if is_posix_call(arguments):
        path = system_cmp()
        if path is not None:
            os.execv(path, ["cmp", *arguments])
    try:
        code = program.main(args=arguments, prog_name="cmp", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        _fail(f"cmp: {error.format_message()}")
        code = 2
    except click.Abort:
        code = 130
    except KeyboardInterrupt:
        code = 130
    except CmpError as error:
        if debug:
            raise
        _fail(f"cmp: {error}")
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output went away (`cmp stats | head`): not an error, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        _fail(f"cmp: internal error: {type(error).__name__}: {error}; run again with --debug and report it")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _fail(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr)
