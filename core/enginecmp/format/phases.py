"""Where a worker can be: by number in the memory that it shares with the host, by name in messages and errors."""

from enum import IntEnum
from typing import Self


class Phase(IntEnum):
    """What a worker is doing; numbers are the protocol's, new ones go to the end."""

    UNKNOWN = -1
    """The worker wrote a number that is none of these."""
    START = 0
    PROBE = 1
    LOAD = 2
    IDLE = 3
    PREPARE = 4
    PREFILL = 5
    DECODE = 6
    SCORE = 7
    METRICS = 8
    UNLOAD = 9
    WAIT = 10
    """For requests to arrive."""
    STEP = 11
    """One step of several requests at once."""
    SUBMIT = 12
    """The engine is handed one of several requests."""

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return cls(-1)

    def __str__(self) -> str:
        """Return the name as messages say it."""
        return self.name.lower()
