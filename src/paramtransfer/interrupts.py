"""Ctrl-C and SIGTERM become one exception, so that what is open is closed; they wait while something is half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

_WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}


class Interrupted(SystemExit):
    """A person or the system has told the process to end; the message is one word."""


def end_gracefully() -> None:
    """From now on the signals raise `Interrupted`; a handler of somebody else's stays."""
    for number, word in _WORDS.items():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, partial(_end, word))


def _end(word: str, *_: object) -> NoReturn:
    raise Interrupted(word)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that arrive in the block wait for its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = [signal.signal(number, lambda number, _: arrived.append(number)) for number in _WORDS]
    try:
        yield
    finally:
        for number, handler in zip(_WORDS, before, strict=True):
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
