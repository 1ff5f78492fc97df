"""What the requests of a cell are, before the first one is sent: the same for every engine of a block."""

from __future__ import annotations

import random
from itertools import accumulate
from operator import add
from typing import NamedTuple

from enginecmp.format.records import Asked
from enginecmp.measure.task import Task
from enginecmp.prompts.lengths import draw, draw_seconds, limits
from enginecmp.scenarios.plan import prompt_key
from enginecmp.scenarios.workload import Workload


class Planned(NamedTuple):
    """One request that is to be sent.

    Attributes:
        token_ids: the prompt.
        output_tokens: ids to ask for.
        asked: what its sample says of it; None where all requests of the cell are alike.
        measured: whether it is measured, or warms up.
        after: place in the plan of the request whose answer it waits for; None where it waits for none.
        think_seconds: between that answer and this request.
    """

    token_ids: tuple[int, ...]
    output_tokens: int
    asked: Asked | None = None
    measured: bool = True
    after: int | None = None
    think_seconds: float = 0.0


def whole_plan(task: Task, warmups: int, measured: int) -> list[Planned]:
    """Return the requests that warm up a cell and behind them those that are measured; the cell's phase is then that.

    In a closed loop of conversations further ones follow, unmeasured, so that no user is idle while the last measured
    turns are still to come.

    Args:
        task: at the cell.
        warmups: how many warm up.
        measured: how many are measured.
    """
    at, workload = task.at, task.scenario.workload(task.at.cell)
    at.enter(at.cell, "warmup")
    plan = [request._replace(measured=False) for request in planned(task, warmups)]
    at.enter(at.cell, "measure")
    plan += _behind(plan, planned(task, measured))
    if workload is not None and workload.has_turns and not at.cell.arrival:
        longest = limits(workload.turns)[1]
        others = _conversations(task, workload, [longest] * at.cell.concurrency, "behind")
        plan += [request._replace(measured=False) for request in _behind(plan, others)]
    return plan


def _behind(plan: list[Planned], more: list[Planned]) -> list[Planned]:
    """Return requests as they follow a plan: places count from its beginning."""
    return [r if r.after is None else r._replace(after=len(plan) + r.after) for r in more]


def planned(task: Task, n: int) -> list[Planned]:
    """Return the first n requests of the cell and phase that a task is at; the last conversation may be cut short."""
    at, scenario = task.at, task.scenario
    workload = scenario.workload(at.cell)
    if workload is None:
        return [Planned(task.prompt(index), at.cell.output_tokens) for index in range(n)]
    turns: list[int] = []
    # Users warm up with first turns, one behind the other.
    drawn = [1] * n if at.phase == "warmup" else draw(workload.turns, n, f"{_seed(task, at.phase)}/turns")
    while (left := n - sum(turns)) > 0:
        turns.append(min(left, drawn[len(turns)]))
    return _conversations(task, workload, turns, at.phase)


def _conversations(task: Task, workload: Workload, turns: list[int], phase: str) -> list[Planned]:
    """Return the requests of conversations one after the other.

    Args:
        task: at the cell.
        workload: of the cell.
        turns: of each conversation.
        phase: tells these conversations from others of the cell.
    """
    seed, n = _seed(task, phase), sum(turns)
    prompts = draw(workload.prompt_tokens, n, f"{seed}/prompt")
    outputs = draw(workload.output_tokens, n, f"{seed}/output")
    thinks = draw_seconds(workload.think_seconds, n, f"{seed}/think")
    prefixes = random.Random(f"{seed}/prefix")
    plan: list[Planned] = []
    for conversation, number in enumerate(turns):
        begin = len(plan)
        which = None
        if workload.shared_prefix_tokens and prefixes.random() < workload.shared_prefix_share:
            which = prefixes.randrange(workload.shared_prefixes)
        prefix = (
            ()
            if which is None
            else task.prompts.take(workload.shared_prefix_tokens, _key(task, "shared prefix", which), task.seed)
        )
        # New ids in every turn; before the first the beginning, before every other as many as the answer has.
        before = [workload.shared_prefix_tokens, *outputs[begin : begin + number - 1]]
        lengths = list(accumulate(map(add, before, prompts[begin : begin + number])))
        key = _key(task, f"{phase}/conversation" if workload.has_turns else phase, conversation)
        token_ids = task.prompts.take_turns(lengths, key, task.seed, after=prefix)
        known = len(prefix) if (task.at.cell, which) in task.at.known_prefixes else 0
        for turn, (length, known_tokens) in enumerate(zip(lengths, [known, *lengths], strict=False)):
            request = begin + turn
            asked = Asked(
                request=request,
                output_tokens=outputs[request],
                conversation=conversation,
                turn=turn,
                known_tokens=known_tokens,
            )
            plan.append(
                Planned(
                    token_ids[:length],
                    outputs[request],
                    asked,
                    after=request - 1 if turn else None,
                    think_seconds=thinks[request] if turn else 0.0,
                )
            )
        if which is not None:
            task.at.known_prefixes.add((task.at.cell, which))
    return plan


def _seed(task: Task, phase: str) -> str:
    return f"{task.seed}/lengths/{task.at.planned.block}/{task.scenario.cells.index(task.at.cell)}/{phase}"


def _key(task: Task, what: str, number: int) -> int:
    cell_number = task.scenario.cells.index(task.at.cell)
    return prompt_key(task.at.planned.block, cell_number, what, number, task.seed)


def again(task: Task, index: int, request: Planned) -> Planned:
    """Return a request like another one, with a prompt of its own: no engine may answer it from a cache."""
    return request._replace(token_ids=task.prompt(index, len(request.token_ids)))
