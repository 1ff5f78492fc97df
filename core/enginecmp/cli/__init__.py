"""The `cmp` command: one file per verb, imported only when that verb is used.

`cmp` is also the name of the POSIX tool that compares two files. Inside an activated environment ours comes
first on PATH, so a call of the POSIX kind is handed over unchanged, exit code included: an option that is not
ours, or two or more operands of which the first is not a verb.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

from enginecmp import __version__
from enginecmp.cli.streams import ReaderGone, give_up_output, prepare_streams
from enginecmp.errors import CmpError, UsageError, did_you_mean

VERBS = {
    "run": "Measure engines against each other.",
    "stats": "Turn samples into verdicts.",
    "tune": "Find the best settings of an engine on this machine.",
    "report": "Draw verdicts, launches and distributions in one HTML file.",
    "export": "Write runs as Parquet files, a store that grows.",
    "guide": "Write which engine to deploy for which use, what it costs, what is open.",
    "compare": "Say whether a new run is slower than an old one.",
    "quality": "Score the texts that engines generate, item by item.",
    "selftest": "Compare an engine with itself: the noise floor of this machine.",
    "import": "Bring results of other tools into this format.",
    "doctor": "Say what on this machine will spoil a measurement, and what fixes it.",
    "engines": "List engines, and what keeps the missing ones away.",
    "scenario": "List, show and check scenarios.",
    "plugin": "Make, list, check and install engine plugins.",
    "model": "List, fetch, convert, describe or synthesize weights files.",
    "fleet-node": "Serve `cmp run --on` on this machine; started by it, not by hand.",
}
"""Every verb and its line in the help; the module of the same name holds its command."""

_MODULES = {"import": "import_results", "fleet-node": "fleet_node"}
"""Modules of verbs whose names are none for Python."""

_SCENARIO_VERBS = ("list", "show", "check")

_OWN_OPTIONS = ("-h", "--help", "--version", "--debug")


_HELP = """Usage: cmp COMMAND [OPTIONS] [ARGS]...

  Which LLM inference engine is faster here, by how much, how sure, and is it
  computing the same thing?

  Start with `cmp engines`, then
      cmp run --engines all --scenario sustained --profile quick
      cmp stats results/

Commands:
{verbs}

Options:
  -h, --help  Show this message, or that of a command.
  --version   Show the version.
  --debug     Show tracebacks of errors; anywhere on the line.

Two files are compared as by the POSIX cmp: `cmp a b`.
"""


def is_posix_call(arguments: list[str]) -> bool:
    """Say whether a command line is meant for the POSIX cmp."""
    if arguments[:1] == ["scenario"] and len(arguments) > 1 and arguments[1] not in _SCENARIO_VERBS:
        # A word that files bear, too: two of them are compared.
        return all(os.path.exists(argument) for argument in arguments[:2])
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
    prepare_streams()
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if is_posix_call(arguments):
        path = system_cmp()
        if path is not None:
            os.execv(path, ["cmp", *arguments])
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except CmpError as error:
        if debug:
            raise
        code = _fail(str(error), error.exit_code)
    except ReaderGone:
        code = 0
    except Exception as error:
        if debug:
            raise
        text = f"internal error: {type(error).__name__}: {error}; run again with --debug and report it"
        if isinstance(error, OSError):
            text = _of_the_system(error) or text
        code = _fail(text, 1)
    try:
        sys.stdout.flush()
    except (CmpError, ReaderGone):  # told already, or told by an error before it
        give_up_output()
    sys.exit(code)


def _dispatch(arguments: list[str]) -> int:
    # Without click, whose import takes longer than everything else here.
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print(_HELP.format(verbs="\n".join(f"  {verb:<{width}}  {line}" for verb, line in VERBS.items())), end="")
        return 0
    if arguments[0] == "--version":
        print(f"enginecmp {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        msg = f"unknown command '{verb}'{did_you_mean(verb, VERBS)}"
        raise UsageError(msg)
    import click

    command: click.Command = importlib.import_module(f"enginecmp.cli.{_MODULES.get(verb, verb)}").command
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    try:
        code = command.main(args=arguments[1:], prog_name=f"cmp {verb}", standalone_mode=False)
    except click.ClickException as error:
        msg = error.format_message()
        raise UsageError(msg) from error
    except click.Abort:
        return 130
    return code if isinstance(code, int) else 0


def _of_the_system(error: OSError) -> str:
    """Return what to say of a failure that is the machine's and no fault of ours; empty for any other."""
    if error.errno == errno.ENAMETOOLONG:
        # No file has such a name, wherever it is looked for.
        return f"{str(error.filename)[:80]}…: {error.strerror}; give the path of a file or folder that is there"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return f"{error.filename or 'a file'}: cannot be written: {error.strerror}; make room, and try again"
    if "temporary directory" in (error.strerror or ""):  # tempfile tried to write into each of them
        return f"{error.strerror}: none can be written; make room there, or name another by TMPDIR"
    return ""


def _fail(text: str, code: int) -> int:
    from enginecmp.format.text import visible  # takes a while

    print("cmp:", visible(" ".join(text.split())), file=sys.stderr)
    return code
