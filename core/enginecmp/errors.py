"""Every error a user can meet, each one line: who, what was expected, what it got, the next step.

CmpError                    exit code 1
├── UsageError              exit code 2: a name, option or combination that does not exist
├── ModelError              a weights file is missing, malformed or not what its hash says
│   └── UnsupportedModel    well-formed, but not for this engine
├── EngineError             an engine cannot do what was asked
│   ├── UnknownOption       an engine option that the engine does not know
│   ├── RequestFailed       one of several requests in flight; the others go on
│   ├── ContextOverflow     more tokens than the session's context holds
│   └── RoundTripError      a text-only engine does not read its prompt back as the same ids
├── LaunchError             a worker crashed, hung or broke the protocol
│   ├── UnreadableSample    what it said would make the whole run unreadable, so it was not written
│   └── LaunchFailure       the same with its status, phase and tokens; in `enginecmp.launch.launch`
├── SensorAbsent            a sensor cannot be read here
├── ObjectStoreError        a bucket cannot be read or written
└── ResultsError            a file of a results folder is not what it should be
    ├── CannotWrite         a results folder cannot be written
    └── FolderHeld          another process is writing into it
"""

from __future__ import annotations

from collections.abc import Iterable


class CmpError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""

    exit_code = 1


class UsageError(CmpError):
    """The command line names something that does not exist or does not fit."""

    exit_code = 2


class ModelError(CmpError):
    """A weights file is missing, malformed or not what its hash says."""


class UnsupportedModel(ModelError):
    """The file is well-formed, but this engine cannot load it."""


class EngineError(CmpError):
    """An engine cannot do what was asked of it."""


class UnknownOption(EngineError):
    """An engine option that the engine does not know."""


class RequestFailed(EngineError):
    """One of several requests in flight cannot be finished; the engine has forgotten it, the others go on.

    Attributes:
        request_id: which.
    """

    def __init__(self, message: str, request_id: str) -> None:
        super().__init__(message)
        self.request_id = request_id


class ContextOverflow(EngineError):
    """More tokens than the session's context holds."""


class RoundTripError(EngineError):
    """A text-only engine does not read its prompt back as the same token ids."""


class LaunchError(CmpError):
    """A worker crashed, hung or broke the protocol."""


class UnreadableSample(LaunchError):
    """What a worker said would make the whole run unreadable, so it was not written."""


class SensorAbsent(CmpError):
    """This machine, or this user, cannot read the sensor; the message is the reason that people are shown."""


class ObjectStoreError(CmpError):
    """A bucket cannot be read or written, or what is in it is not what it should be."""


class ResultsError(CmpError):
    """A file of a results folder is not what it should be."""


class CannotWrite(ResultsError):
    """A results folder cannot be written: a full disk, a missing permission."""


class FolderHeld(ResultsError):
    """Another process is writing into a results folder."""


def meant(name: str, known: Iterable[str]) -> str:
    """Return the known name that a user means: hyphens and underscores are the same; else the name as it came.

    Args:
        name: what the user wrote.
        known: what exists.
    """
    names = list(known)
    if name in names:
        return name
    alike = [other for other in names if other.replace("-", "_") == name.replace("-", "_")]
    return alike[0] if len(alike) == 1 else name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the nearest known name, or the list of known names.

    Args:
        name: what the user wrote.
        known: what exists.
    """
    import difflib  # only when something was misspelt: `cmp --help` must be quick

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close and len(name) >= 3:
        close = [known_name for known_name in names if known_name.startswith(name)][:1]
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
