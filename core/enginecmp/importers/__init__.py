"""Results of other tools, read into what results format version 1 can carry; one module a tool.

The rule of all of them: what a tool does not tell is absent, never made up. Each module's docstring says what it
carries, what is absent, and where its metrics begin and end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError, UsageError, did_you_mean, meant
from enginecmp.format.text import plain
from enginecmp.importers import (
    aiperf,
    genai_perf,
    guidellm,
    inference_perf,
    llama_bench,
    optimum_benchmark,
    sglang,
    vllm,
)
from enginecmp.importers.check import check_launches
from enginecmp.importers.documents import read_documents
from enginecmp.importers.fields import MissingKey
from enginecmp.importers.parts import Launch


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool whose results can be read.

    Attributes:
        reads: the versions whose files were looked at.
        recognizes: says whether the JSON values of a file are of this tool.
        read: turns them into launches; raises ResultsError naming file and key.
    """

    reads: str
    recognizes: Callable[[Sequence[Any]], bool]
    read: Callable[[Path, Sequence[Any]], list[Launch]]


TOOLS: Mapping[str, Tool] = {
    module.NAME: Tool(module.READS, module.recognizes, module.read)
    for module in (llama_bench, vllm, sglang, aiperf, genai_perf, guidellm, inference_perf, optimum_benchmark)
}
"""Every tool by its name on the command line."""

_RELATED: Mapping[frozenset[str], str] = {
    frozenset({"avg_latency", "latencies"}): "vllm bench latency tells neither model nor lengths; use vllm bench serve",
    frozenset({"elapsed_time", "tokens_per_second"}): "vllm bench throughput tells no times; use vllm bench serve",
    frozenset({"experiments", "service_kind"}): "perf_analyzer counts no tokens; give profile_export_genai_perf.json",
}
"""Keys of files beside those that are read, and what to do."""


def read_file(path: Path, tool: str | None = None) -> tuple[str, list[Launch]]:
    """Read one file of another tool.

    Args:
        path: the file.
        tool: name of the tool; None finds it out from the keys.

    Returns:
        The tool, and the launches that the file holds.

    Raises:
        UsageError: no tool of that name.
        ResultsError: no tool writes such a file, or it is malformed.
    """
    tool = tool and meant(tool, TOOLS)
    if tool is not None and tool not in TOOLS:
        msg = f"unknown tool '{tool}'{did_you_mean(tool, TOOLS)}"
        raise UsageError(msg)
    documents = read_documents(path)
    names = TOOLS if tool is None else (tool, *TOOLS)
    found = next((name for name in names if TOOLS[name].recognizes(documents)), None)
    if found is None or tool not in (None, found):
        expected = tool or ", ".join(TOOLS)
        got = f"those of {found}; pass --from {found}" if found else f"other JSON ({_described(documents)})"
        msg = f"{path}: expected results of {expected}, got {got}"
        raise ResultsError(msg)
    try:
        launches = TOOLS[found].read(path, documents)
    except OverflowError as error:
        msg = f"{path}: {error}"
        raise ResultsError(msg) from error
    except MissingKey as error:
        msg = f"{error}; read are files of {TOOLS[found].reads}, an older or newer version may lay them out differently"
        raise ResultsError(msg) from error
    check_launches(str(path), launches)
    return found, launches


def _described(documents: Sequence[Any]) -> str:
    """Return what other JSON is, in a few words."""
    document = documents[0]
    while isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict):
        return "no object with keys"
    for keys, advice in _RELATED.items():
        if keys <= document.keys():
            return advice
    return plain(f"keys {', '.join(list(document)[:8])}", 120) if document else "an empty object"
