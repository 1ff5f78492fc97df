"""`cmp quality`: handed over to the plugin that scores texts, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import click

from enginecmp.errors import CmpError

GROUP = "enginecmp.commands"
"""Entry points of commands that plugins bring: name → module that is run as `python -m MODULE`."""


@click.command(
    "quality",
    short_help="Score the texts that engines generate.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Score the texts that engines generate: BLEU, chrF, ROUGE-L, pass@1, compared item by item."""
    found = metadata.entry_points(group=GROUP, name="quality")
    if not found:
        msg = "quality: expected the plugin enginecmp-text-quality, it is not installed; make setup brings it"
        raise CmpError(msg)
    (module, *_) = sorted(entry.value for entry in found)
    return subprocess.run([sys.executable, "-P", "-m", module, *arguments], check=False).returncode
