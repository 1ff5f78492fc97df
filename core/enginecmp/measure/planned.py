"""What the requests of a cell are, before the first one is sent: the same for every engine of a block."""

from __future__ import annotations

import random
from itertools import accumulate, islice
from operator import add
from typing import NamedTuple

import msgspec

from enginecmp.format.flags import Flag
from enginecmp.format.records import Asked
from enginecmp.measure.task import Task
from enginecmp.prompts.lengths import draw, draw_seconds
from enginecmp.scenarios.decoding import request_seed
from enginecmp.scenarios.traces import Trace
from enginecmp.scenarios.workload import Workload
from enginecmp.types import GREEDY, Decoding


class Planned(NamedTuple):
    """One request that is to be sent.

    Attributes:
        token_ids: the prompt.
        output_tokens: ids to ask for.
        asked: what its sample says of it; None where all requests of the cell are alike.
        measured: whether it is measured, or warms up.
        after: place in the plan of the request whose answer it waits for; None where it waits for none.
        think_seconds: between that answer and this request.
        decoding: how its ids are chosen, and what ends it.
    """

    token_ids: tuple[int, ...]
    output_tokens: int
    asked: Asked | None = None
    measured: bool = True
    after: int | None = None
    think_seconds: float = 0.0
    decoding: Decoding = GREEDY

    def length_flags(self, output_tokens: int) -> list[str]:
        """Return the flag of an answer of so many ids where others were asked for."""
        if output_tokens == self.output_tokens or (self.decoding.end_ids and 0 < output_tokens < self.output_tokens):
            return []
        return [Flag.SHORT_OUTPUT if output_tokens < self.output_tokens else Flag.LONG_OUTPUT]


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
        users, trace = at.cell.concurrency, workload.trace
        if trace is None:
            spoken = _drawn(task, workload, [workload.most_turns] * users, "behind")
        else:
            spoken = recorded(task, trace, users * workload.most_turns, skip=warmups + measured)
        others = _decoded(task, _conversations(task, workload, spoken, "behind"), "behind")
        plan += [request._replace(measured=False) for request in _behind(plan, others)]
    return plan


def _behind(plan: list[Planned], more: list[Planned]) -> list[Planned]:
    """Return requests as they follow a plan: places count from its beginning."""
    return [r if r.after is None else r._replace(after=len(plan) + r.after) for r in more]


def planned(task: Task, n: int) -> list[Planned]:
    """Return the first n requests of the cell and phase that a task is at; the last conversation may be cut short."""
    return _decoded(task, _alike_or_drawn(task, n), task.at.phase)


def _decoded(task: Task, requests: list[Planned], phase: str) -> list[Planned]:
    """Return requests with how their ids are chosen; where they may end early each says which one it is."""
    rule = task.scenario.rule(task.at.cell)
    if not rule.needs:
        return requests
    end_ids = task.prompts.end_ids if rule.may_end else ()
    found = []
    for number, request in enumerate(requests):
        decoding = rule.decoding(request_seed(task.seed, task.key(phase, number)), end_ids)
        asked = request.asked
        if rule.may_end:
            asked = asked or Asked(request=number, output_tokens=request.output_tokens)
            asked = msgspec.structs.replace(asked, may_end=True)
        found.append(request._replace(decoding=decoding, asked=asked))
    return found


def _alike_or_drawn(task: Task, n: int) -> list[Planned]:
    at, scenario = task.at, task.scenario
    workload = scenario.workload(at.cell)
    if workload is None:
        return [Planned(task.prompt(index), at.cell.output_tokens) for index in range(n)]
    # Users warm up with first turns, one behind the other.
    first_only = at.phase == "warmup"
    if workload.trace is not None:
        return _conversations(task, workload, recorded(task, workload.trace, n, first_only=first_only), at.phase)
    turns: list[int] = []
    drawn = [1] * n if first_only else draw(workload.turns, n, f"{_seed(task, at.phase)}/turns")
    while (left := n - sum(turns)) > 0:
        turns.append(min(left, drawn[len(turns)]))
    return _conversations(task, workload, _drawn(task, workload, turns, at.phase), at.phase)


class Spoken(NamedTuple):
    """What is new in one turn: ids of the prompt, ids of the answer, and blocks that the prompt is made of."""

    prompt: int
    output: int
    blocks: tuple[int, ...] = ()


def _drawn(task: Task, workload: Workload, turns: list[int], phase: str) -> list[list[Spoken]]:
    """Return conversations of so many turns, with drawn lengths."""
    seed, n = _seed(task, phase), sum(turns)
    prompts = draw(workload.prompt_tokens, n, f"{seed}/prompt")
    outputs = iter(draw(workload.output_tokens, n, f"{seed}/output"))
    said = map(Spoken, prompts, outputs)
    return [list(islice(said, number)) for number in turns]


def _conversations(task: Task, workload: Workload, spoken: list[list[Spoken]], phase: str) -> list[Planned]:
    """Return the requests of conversations one after the other.

    Args:
        task: at the cell.
        workload: of the cell.
        spoken: turns of each conversation.
        phase: tells these conversations from others of the cell.
    """
    seed, has_turns = _seed(task, phase), workload.has_turns
    thinks = draw_seconds(workload.think_seconds, sum(map(len, spoken)), f"{seed}/think")
    prefixes = random.Random(f"{seed}/prefix")
    plan: list[Planned] = []
    for conversation, turns in enumerate(spoken):
        begin, outputs = len(plan), [turn.output for turn in turns]
        if workload.trace is not None and turns[0].blocks:
            plan.append(_of_blocks(task, turns[0], begin, workload.trace.block_tokens))
            continue
        which = None
        if workload.shared_prefix_tokens and prefixes.random() < workload.shared_prefix_share:
            which = prefixes.randrange(workload.shared_prefixes)
        prefix = (
            ()
            if which is None
            else task.prompts.take(workload.shared_prefix_tokens, task.key("shared prefix", which), task.seed)
        )
        # New ids in every turn; before the first the beginning, before every other as many as the answer has.
        before = [workload.shared_prefix_tokens, *outputs[:-1]]
        lengths = list(accumulate(map(add, before, (turn.prompt for turn in turns))))
        key = task.key(f"{phase}/conversation" if has_turns else phase, conversation)
        token_ids = task.prompts.take_turns(lengths, key, task.seed, after=prefix)
        known = len(prefix) if (task.at.cell, which) in task.at.known_prefixes else 0
        for turn, (length, known_tokens) in enumerate(zip(lengths, [known, *lengths], strict=False)):
            request = begin + turn
            asked = Asked(
                request=request,
                output_tokens=outputs[turn],
                conversation=conversation,
                turn=turn,
                known_tokens=known_tokens,
            )
            plan.append(
                Planned(
                    token_ids[:length],
                    outputs[turn],
                    asked,
                    after=request - 1 if turn else None,
                    think_seconds=thinks[request] if turn else 0.0,
                )
            )
        if which is not None:
            task.at.known_prefixes.add((task.at.cell, which))
    return plan


def _of_blocks(task: Task, turn: Spoken, request: int, block_tokens: int) -> Planned:
    """Return a request whose prompt is made of blocks; one that stands in two prompts has the same ids in both.

    A block stands for all that is before it as well, as a hash of Mooncake's does.
    """
    ids: tuple[int, ...] = ()
    known = 0
    for number in turn.blocks:
        if len(ids) >= turn.prompt:
            break
        place = (task.at.cell, number)
        if place in task.at.known_blocks:
            ids = task.at.known_blocks[place]
            known = len(ids)
            continue
        lengths = (len(ids) + block_tokens,)
        ids = task.prompts.take_turns(lengths, task.key("block", number), task.seed, after=ids)
        task.at.known_blocks[place] = ids
    if len(ids) < turn.prompt:
        ids = task.prompts.take_turns((turn.prompt,), task.key(f"{task.at.phase}/tail", request), task.seed, after=ids)
    asked = Asked(
        request=request, output_tokens=turn.output, conversation=request, known_tokens=min(known, turn.prompt)
    )
    return Planned(ids[: turn.prompt], turn.output, asked)


def recorded(
    task: Task, trace: Trace, n: int, *, skip: int | None = None, first_only: bool = False
) -> list[list[Spoken]]:
    """Return the next conversations of a trace that have n requests together, the last one cut short.

    Each block goes on in the trace where the one before it left off, from its end back to its beginning.

    Args:
        task: at the cell and phase.
        trace: recorded requests.
        n: how many.
        skip: conversations of this block's part that are passed over; None passes over those that warm up, after them.
        first_only: take first turns alone.
    """
    starts = list(accumulate(trace.turns, initial=0))
    blocks = trace.blocks or ((),) * len(trace.prompt_tokens)
    if skip is None:
        skip = 0 if first_only else task.scenario.warmups_in(task.at.cell)
    begin = _begin(task, trace) + skip
    found: list[list[Spoken]] = []
    left = n
    while left:
        place = (begin + len(found)) % len(trace.turns)
        turns = min(left, 1 if first_only else trace.turns[place])
        rows = range(starts[place], starts[place] + turns)
        found.append([Spoken(trace.prompt_tokens[row], trace.output_tokens[row], blocks[row]) for row in rows])
        left -= turns
    return found


def recorded_arrivals(task: Task, trace: Trace, n: int) -> list[float]:
    """Return when n conversations of a block's part of a trace begin, in seconds after the first one.

    From the end of a trace to its beginning passes its mean gap.
    """
    begin, many, last = _begin(task, trace), len(trace.seconds), trace.seconds[-1]
    around = last + last / max(1, many - 1)
    times = [trace.seconds[place % many] + place // many * around for place in range(begin, begin + n)]
    return [time - times[0] for time in times]


def _begin(task: Task, trace: Trace) -> int:
    """Return the conversation with which a block's part of a trace begins."""
    scenario, cell = task.scenario, task.at.cell
    each = scenario.warmups_in(cell) + scenario.requests_in(cell)
    return task.at.planned.block * each % len(trace.turns)


def _seed(task: Task, phase: str) -> str:
    return f"{task.seed}/lengths/{task.at.planned.block}/{task.scenario.prompt_cell(task.at.cell)}/{phase}"


def again(task: Task, index: int, request: Planned) -> Planned:
    """Return a request like another one, with a prompt of its own: no engine may answer it from a cache."""
    return request._replace(token_ids=task.prompt(index, len(request.token_ids)))
