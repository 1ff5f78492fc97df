"""Does an engine answer a prompt that it has just had from a cache? One prompt twice, once per launch."""

from __future__ import annotations

from enginecmp.format.flags import Flag
from enginecmp.launch.launch import LaunchFailure
from enginecmp.measure.task import Task


def check_repeated_prompt(task: Task) -> None:
    """Send a prompt that no other request of the launch has, and send it again; one output token each.

    Both are warm-up samples, so nothing is compared with them but one with the other. A prompt that the engine refuses
    is left at that: the measured requests have told it.

    Raises:
        LaunchFailure: the worker is gone.
    """
    at, cell, scenario = task.at, task.at.cell, task.scenario
    token_ids = task.prompts.take(cell.prompt_tokens, key=task.key("repeat", 0), seed=task.seed)
    at.enter_behind(cell, "warmup")
    for flags in ((), (Flag.REPEATED_PROMPT,)):
        try:
            answer = task.launch.request(token_ids, 1, scenario.deadlines)
        except LaunchFailure as failure:
            if failure.fatal:
                raise
            return
        if answer["error"] is not None:
            return
        task.keep(
            at.sample(
                start_ns=answer["start_ns"],
                end_ns=answer["end_ns"],
                token_ns=answer["token_ns"],
                output_tokens=answer["output_tokens"],
                status="ok",
                flags=flags,
                metrics=answer["metrics"],
            )
        )
        at.index += 1
