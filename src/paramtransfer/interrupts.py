"""Signals that end a process become one exception, so that what is open is closed; what is half done is finished."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

_WORDS = {
    signal.SIGTERM: "terminated",
    signal.SIGINT: "interrupted",
    signal.SIGHUP: "hung up",
    signal.SIGQUIT: "quit",
    signal.SIGUSR1: "ended by SIGUSR1",
    signal.SIGUSR2: "ended by SIGUSR2",
    signal.SIGXCPU: "out of CPU time",
}
SIGNALS = tuple(_WORDS)
"""What ends a process."""
_AGAIN_SECONDS = 1.0

_closing = threading.Event()
_pending: list[int] = []
_num_holding = 0  # blocks that hold signals back: the mask alone lets another thread take them for the main one


class Interrupted(SystemExit):
    """A person or the system has told the process to end; the message is a word or two."""


def end_gracefully() -> None:
    """From now on the signals raise `Interrupted`; a handler of somebody else's stays."""
    _closing.clear()
    for number, word in _WORDS.items():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, partial(_end, word))


def _end(word: str, number: int, _: object) -> None:
    if _num_holding:
        _pending.append(number)
        return
    threading.Thread(target=_repeat, args=[number], name="interrupt", daemon=True).start()
    raise Interrupted(word)


def _repeat(number: int) -> None:
    """Python swallows what is raised in a destructor or a weak reference's callback: then once more."""
    if not _closing.wait(_AGAIN_SECONDS):
        os.kill(os.getpid(), number)


def begin_closing() -> None:
    """The interruption has been noticed: it is not repeated."""
    _closing.set()


def is_interruption(error: BaseException) -> bool:
    """Whether a process was told to end; submitit has an exception of its own for a job's last time limit."""
    return not isinstance(error, Exception) or type(error).__module__.startswith("submitit.")


def leave_to_parent(_: object = None) -> None:
    """In a process that helps another one, which alone answers signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals wait for the block's end; a process that is started in it sees none, from its first moment on."""
    global _num_holding
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    _num_holding += 1
    try:
        yield
    finally:
        _num_holding -= 1
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if _pending and not _num_holding:
            signal.raise_signal(_pending.pop())


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that arrive in the block wait for its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    with held_back():  # until all handlers are exchanged
        before = [signal.signal(number, lambda number, _: arrived.append(number)) for number in _WORDS]
    try:
        yield
    finally:
        with held_back():
            for number, handler in zip(_WORDS, before, strict=True):
                signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
