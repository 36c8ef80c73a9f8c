"""The process is told to end at a bad moment."""

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm.strategies import _LazyLoader

from paramtransfer.interrupts import SIGNALS, Interrupted, begin_closing, end_gracefully, held_back
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.store import Store


@pytest.fixture(autouse=True)
def graceful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The signals end this process as they would a job, for one test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    end_gracefully()
    yield
    begin_closing()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_what_ends_a_process_leaves_no_run_open(number: signal.Signals, store: Store) -> None:
    """A closed terminal, a batch system's warning, a person: the runs are KILLED."""

    def train() -> None:
        with session:
            session.begin(_create(session))
            signal.raise_signal(number)

    session = Session(store)
    with pytest.raises(Interrupted):
        train()
    assert [store.run(run_id).status for run_id in session.opened] == ["KILLED"]


@pytest.mark.parametrize("number", [1, 5, 9, 13])
def test_a_call_that_is_interrupted_locks_nothing(number: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal between two rows of an answer: the frames of the call would hold a cursor, and it the database."""
    plain, calls = _LazyLoader.create_row_processor, iter(range(1, 10**6))

    def interrupted(*args: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and next(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return plain(*args)

    def train() -> None:
        with session:
            _create(session)
            monkeypatch.setattr(_LazyLoader, "create_row_processor", interrupted)
            _create(session)

    session = Session(store)
    with pytest.raises(Interrupted):
        train()
    assert next(calls) > number
    assert {run.status for run in store.runs("tags.stage != ''")} == {"KILLED"}


def _create(session: Session) -> str:
    return session.create(name="n", tags={"stage": "upstream"}, params={}, files={})


def test_a_signal_that_is_swallowed_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a weak reference's callback, where Python prints what is raised and goes on."""

    class Thing: ...

    def callback(_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    swallowed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: swallowed.append(error.exc_type))
    thing = Thing()
    watched = weakref.ref(thing, callback)
    del thing
    assert watched() is None
    assert swallowed == [Interrupted]
    with pytest.raises(Interrupted):
        time.sleep(10)


def test_a_signal_waits_though_another_thread_could_take_it() -> None:
    """The mask of the main thread alone would leave it to the other one, and the handler to this one's next line."""
    told: list[str] = []
    release = threading.Event()
    other = threading.Thread(target=release.wait)
    other.start()

    def hold() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            told.append("the whole block")

    try:
        with pytest.raises(Interrupted):
            hold()
    finally:
        release.set()
        other.join()
    assert told == ["the whole block"]
