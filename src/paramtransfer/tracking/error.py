"""What a user is told about the tracking store."""

import os


class StoreError(RuntimeError):
    """The tracking store cannot be reached or written; the message is one sentence without any password.

    Attributes:
        reason: the part of the sentence that says why.
    """

    exit_code = 1

    def __init__(self, sentence: str, reason: str | None = None) -> None:
        super().__init__(sentence)
        self.reason = reason or sentence


class Undelivered(StoreError):
    """A job has finished, but the store has not taken its results: they are kept on disk."""

    exit_code = os.EX_TEMPFAIL  # what sysexits.h has for "try again later"
