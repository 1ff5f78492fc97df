"""The child process of a plugin's judge: `python -P -m enginecmp.measure.judge_server FD CLASS`.

The judge is a plugin's code: it is imported here, and the host reads answers of a strict schema. One object a question,
kept, so that what a judge works out once (the true neighbours of a query, say) serves every launch of the run.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import msgspec

from enginecmp.plugins.manager import load_object
from enginecmp.types import Given
from enginecmp.wire.protocol import Channel, describe
from enginecmp.worker.results import numbers


class _Judges:
    """Answers the host with judges of one class."""

    def __init__(self, place: str) -> None:
        self._make: Any = load_object(place)
        self._judges: dict[str, Any] = {}

    def check(self, message: dict[str, Any]) -> bool:
        """Make a judge and forget it: a wrong parameter is an error now."""
        self._made(message)
        return True

    def question(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return what the engine is given, and the tokens or rows of a call."""
        key = message["key"]
        if key not in self._judges:
            self._judges[key] = self._made(message)
        parameters, amount = self._judges[key].question()
        return {"parameters": dict(parameters), "amount": int(amount)}

    def judge(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the metrics of an answer, or what is wrong with it."""
        try:
            found = self._judges[message["key"]].judge(
                _unpacked(message["answer"]), message["seconds"], message["marks"]
            )
        except ValueError as error:
            return {"metrics": {}, "wrong": str(error) or "wrong, without a reason"}
        return {"metrics": numbers("judge", found), "wrong": ""}

    def _made(self, message: dict[str, Any]) -> Any:
        return self._make(message["parameters"], msgspec.convert(message["given"], Given))


def _unpacked(answer: Any) -> Any:
    """Return an answer as the judge reads it: a matrix as an array."""
    if not isinstance(answer, dict):
        return answer
    import numpy as np

    return np.frombuffer(answer["data"], np.float32).reshape(answer["shape"])


def main(arguments: list[str]) -> int:
    """Serve one host until it closes the socket."""
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    judges: _Judges | None = None
    while (message := channel.receive()) is not None:
        began = time.process_time()
        try:
            judges = judges or _Judges(arguments[1])
            operations = {"check": judges.check, "question": judges.question, "judge": judges.judge}
            answer: dict[str, Any] = {"ok": operations[message["op"]](message)}
        except BaseException as error:  # whatever a plugin raises
            answer = {"error": describe(error)}
        channel.send({**answer, "cpu_seconds": time.process_time() - began})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
