"""Everything that raysegment raises, arranged by what the caller can do about it.

    RaysegmentError
    ├── UsageError              2   mend the call: an option, a value, a configuration key
    │   └── NotBuiltError       2   promised, not there yet
    ├── InputError              2   mend the input: an image, a mask or a model that does not fit
    ├── OutputExistsError       2   pass --overwrite, or name another output
    ├── JobError                *   a submitted job failed, was stopped, or goes on without us: its own exit code
    └── WorkError               1   the work itself failed
        ├── ReadError           1   pixels of one region cannot be read
        ├── AnswerError         1   the network answered something that is no probability
        ├── StorageError        1   an object store or a web server refuses, or does not answer
        │   └── GoneError       1   there is no such object (any more)
        └── LockedError         1   another run, still alive, holds the output

Each error knows the exit code of the command that it ends. A message is one line: what, the value
seen, what to do. Foreign errors are mapped at the edge where they enter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RaysegmentWarning(UserWarning):
    """What a caller from Python should know, and no reason to stop; the command line prints it."""


class RaysegmentError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class UsageError(RaysegmentError):
    """An option, a value or a configuration key is wrong."""

    exit_code = 2


class NotBuiltError(UsageError):
    """The contract promises it, this version does not have it."""


class InputError(RaysegmentError):
    """An image, a mask or a model is missing, unreadable or does not fit."""

    exit_code = 2


class OutputExistsError(RaysegmentError):
    """The output is there already and belongs to another run."""

    exit_code = 2


class WorkError(RaysegmentError):
    """Something failed during the work."""


class ReadError(WorkError):
    """Pixels of one region cannot be read."""


class AnswerError(WorkError):
    """The network answered NaN, inf or something outside [0, 1]."""


class StorageError(WorkError):
    """An object store or a web server refuses, or does not answer: no statement about what lies there."""


class GoneError(StorageError, FileNotFoundError):
    """There is no object of that name, or no longer."""


class LockedError(WorkError):
    """Another run, still alive, holds the output."""


class JobError(RaysegmentError):
    """A submitted job failed, was stopped, or goes on without us; `exit_code` is the job's."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def first_complaint(error: ValidationError) -> str:
    """What pydantic found first, in one line: "class 2 value: Input should be a valid integer"."""
    complaint = error.errors()[0]
    place = " ".join(str(part + 1) if isinstance(part, int) else part for part in complaint["loc"])
    message = complaint["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
