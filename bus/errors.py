"""Errors of the bus. The ack policy reads them: a handler that returns is acknowledged, one that raises gives what it
means with these. Declined is the one that crosses an ask.

The docstring of an error is its default message.
"""

INTERNAL = "internal"
"""The reason of a Declined that stands for a bug: the log of the agent that was asked holds the traceback."""


class DarkroomError(Exception):
    """Darkroom could not do what was asked."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class UserError(DarkroomError):
    """Something the user can mend; the message has how. Commands print it without a traceback and exit non-zero."""


class Retry(DarkroomError):
    """Not now: a dependency is missing. The job comes back after `delay` seconds, and no attempt is used up."""

    def __init__(self, message: str = "", *, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class Reject(DarkroomError):
    """Never: this job can't succeed however often it is tried. `reason` is a stable word for programs."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Fail(Reject):
    """Never, though the request was a good one: the job ends as failed. `reason` is a stable word for programs."""


class Declined(DarkroomError):
    """What was asked can't be done; the message has why. `reason` is a stable word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Undecodable(DarkroomError):
    """The payload is not what its subject stands for; it goes to the dead letters."""


class BadSubject(DarkroomError):
    """A subject or a token that is not in the table."""


class Taken(DarkroomError):
    """The subject holds its one message already: a job is queued, a result was written by somebody else."""


class Full(DarkroomError):
    """The stream holds as much as it may; try again when its readers have caught up."""


class TooLarge(DarkroomError):
    """The payload is over the 64 KiB that ride the bus."""


class NoAnswer(DarkroomError):
    """Nobody answered in time: is the agent that should running? `darkroom doctor` looks."""


class NoBus(UserError):
    """No NATS server can be reached."""
