"""What a user is told, one sentence each: settings, trainings and the tracking store that cannot go on."""

import os


class ConfigError(ValueError):
    """A setting that is out of range: one sentence that names the key, the value and what is allowed."""


class TrainingError(RuntimeError):
    """What ends a training that has begun: one sentence, also where a worker process says it within its traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("TrainingError: ")[2].strip())


class SharedStageError(RuntimeError):
    """A stage that this job needs failed in the job that trained it; the message says why."""


class StoreError(RuntimeError):
    """The tracking store cannot be reached or written; the message is one sentence without any password.

    Attributes:
        reason: the part of the sentence that says why.
    """

    exit_code = 1

    def __init__(self, sentence: str, reason: str | None = None) -> None:
        super().__init__(sentence)
        self.reason = reason or sentence


class LostRun(StoreError):
    """Another process has taken a run over, which was this one's."""


class Unreadable(StoreError):
    """What a run keeps cannot be read, though the store answers."""


class Undelivered(StoreError):
    """A job has finished, but the store has not taken its results: they are kept on disk."""

    exit_code = os.EX_TEMPFAIL  # what sysexits.h has for "try again later"


def first_line(error: BaseException) -> str:
    """What a library's error says, for a sentence of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0]
