"""Results of other tools, read into what results format version 1 can carry; one module a tool.

The rule of all of them: what a tool does not tell is absent, never invented. Each module's docstring says what it
carries, what is absent, and where its metrics begin and end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError, UsageError, did_you_mean
from enginecmp.importers import aiperf, guidellm, llama_bench, vllm
from enginecmp.importers.fields import read_documents
from enginecmp.importers.parts import Launch


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool whose results can be read.

    Attributes:
        recognizes: says whether the JSON values of a file are of this tool.
        read: turns them into launches; raises ResultsError naming file and key.
    """

    recognizes: Callable[[Sequence[Any]], bool]
    read: Callable[[Path, Sequence[Any]], list[Launch]]


TOOLS: Mapping[str, Tool] = {
    module.NAME: Tool(module.recognizes, module.read) for module in (llama_bench, vllm, aiperf, guidellm)
}
"""Every tool by its name on the command line."""


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
    if tool is not None and tool not in TOOLS:
        msg = f"unknown tool '{tool}'{did_you_mean(tool, TOOLS)}"
        raise UsageError(msg)
    documents = read_documents(path)
    if tool is None:
        tool = next((name for name, candidate in TOOLS.items() if candidate.recognizes(documents)), None)
        if tool is None:
            msg = f"{path}: expected results of {', '.join(TOOLS)}, got other JSON; name the tool with --from"
            raise ResultsError(msg)
    elif not TOOLS[tool].recognizes(documents):
        msg = f"{path}: expected results of {tool}, the keys are of something else; leave --from out to find the tool"
        raise ResultsError(msg)
    try:
        launches = TOOLS[tool].read(path, documents)
    except OverflowError as error:
        msg = f"{path}: {error}"
        raise ResultsError(msg) from error
    for part in (part for launch in launches for part in launch):
        for number, request in enumerate(part.requests):
            times = [request.start_ns, *request.token_ns, request.end_ns]
            if times != sorted(times):
                msg = f"{path}: request {number}: expected start <= tokens, rising <= end, got {times[:4]}... ns"
                raise ResultsError(msg)
    return tool, launches
