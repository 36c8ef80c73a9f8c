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
from sqlalchemy import Engine, event

from paramtransfer.interrupts import SIGNALS, Interrupted, begin_closing, end_gracefully
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


@pytest.mark.parametrize("statement", ["INSERT INTO runs", "INSERT INTO tags", "UPDATE runs", "INSERT INTO metrics"])
def test_a_call_that_is_interrupted_locks_nothing(statement: str, store: Store) -> None:
    """Its open transaction, which the error's frames hold, is let go before the runs are closed."""
    armed = threading.Event()

    def interrupt(connection: Any, cursor: Any, executed: str, *args: Any) -> None:
        if armed.is_set() and executed.startswith(statement) and threading.current_thread() is threading.main_thread():
            armed.clear()
            signal.raise_signal(signal.SIGTERM)

    def train() -> None:
        with session:
            run_id = _create(session)
            armed.set()
            store.client.log_metric(run_id, "loss", 1.0)
            store.tag(run_id, {"a": "b"})
            store.client.update_run(run_id, name="other")
            _create(session)

    session = Session(store)
    event.listen(Engine, "after_cursor_execute", interrupt)
    try:
        with pytest.raises(Interrupted):
            train()
    finally:
        event.remove(Engine, "after_cursor_execute", interrupt)
    assert not armed.is_set()
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
