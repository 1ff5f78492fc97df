"""What the requests of a cell are, before the first one is sent: the same for every engine of a block."""

from __future__ import annotations

from typing import NamedTuple

from enginecmp.format.records import Asked
from enginecmp.measure.task import Task
from enginecmp.prompts.lengths import draw


class Planned(NamedTuple):
    """One request that is to be sent.

    Attributes:
        token_ids: the prompt.
        output_tokens: ids to ask for.
        asked: what its sample says of it; None where all requests of the cell are alike.
    """

    token_ids: tuple[int, ...]
    output_tokens: int
    asked: Asked | None = None


def planned(task: Task, n: int) -> list[Planned]:
    """Return the first n requests of the cell and phase that a task is at."""
    at, scenario = task.at, task.scenario
    workload = scenario.workload(at.cell)
    if workload is None:
        return [Planned(task.prompt(index), at.cell.output_tokens) for index in range(n)]
    seed = f"{task.seed}/lengths/{at.planned.block}/{scenario.cells.index(at.cell)}/{at.phase}"
    prompts = draw(workload.prompt_tokens, n, f"{seed}/prompt")
    outputs = draw(workload.output_tokens, n, f"{seed}/output")
    return [
        Planned(task.prompt(index, prompt), output, Asked(request=index, output_tokens=output))
        for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
    ]


def again(task: Task, index: int, request: Planned) -> Planned:
    """Return a request like another one, with a prompt of its own: no engine may answer it from a cache."""
    return request._replace(token_ids=task.prompt(index, len(request.token_ids)))
