"""What a sweep leaves in the terminal and in its run; `scripts/report.py`: the same from what the store has."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
import report

from paramtransfer.figures.curves import Curves
from paramtransfer.figures.drawing import SweepData
from paramtransfer.figures.paper_table import PaperTable
from paramtransfer.report.page_tables import figure_tables
from paramtransfer.report.summary import summarize, write_page
from paramtransfer.tracking.claims import Session
from paramtransfer.tracking.store import Store, open_store
from paramtransfer.tracking.sweeps import JobRecord, record_job, start_sweep, tags_of

Fixture = Callable[..., Any]


@pytest.fixture
def killed(tmp_path: Path, start: Fixture, runs_of: Fixture) -> Any:
    """The run of a sweep whose process was killed, by SIGKILL, after its second job."""
    with start(tmp_path, "-m", "alpha=" + ",".join(f"{share / 20}" for share in range(20))) as process:
        try:
            assert any(line.startswith("#1 ") for line in process.stdout)
        finally:
            process.kill()
    (sweep,) = runs_of(tmp_path)["sweep"]
    return sweep


def test_page_after_the_process_has_died(killed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job list, table, figure and page are made from the jobs that have ended; a name that is none is refused."""
    artifacts = Path(urlsplit(killed.info.artifact_uri).path)
    missing = {"jobs.json", "table.csv", "figure.png", "report.html"}
    assert not missing & {path.name for path in artifacts.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    open_store.cache_clear()

    monkeypatch.setattr("sys.argv", ["report.py", killed.info.run_id])
    report.main()
    assert missing <= {path.name for path in artifacts.iterdir()}
    num_ended = len(pd.read_csv(artifacts / "table.csv"))
    page = (tmp_path / "mlruns" / f"report-{killed.info.run_id}.html").read_text()
    assert page == (artifacts / "report.html").read_text()
    assert "<span>running, or its process has died</span>" in page
    assert f"{num_ended} of 20 jobs have ended" in page

    monkeypatch.setattr("sys.argv", ["report.py", "fig1c"])
    with pytest.raises(SystemExit, match=rf"^fig1c: must be the id of a sweep .* newest are {killed.info.run_id} \("):
        report.main()


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Of a new store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Session(Store(tmp_path / "mlruns"))


def keep_sweep(session: Session, *swept: Mapping[str, object]) -> tuple[str, list[JobRecord]]:
    """A sweep of jobs that gain -0.1, 0, 0.1, ... with an s.e. of 0.01; the last one failed. Its id and its jobs."""
    create, store = session.create, session.store
    baseline = create(name="baseline", tags={"stage": "baseline"}, params={}, files={})
    store.log_metrics(baseline, {"time/train": 7.0})
    sweep_id = start_sweep(session, name="sweep", tags={"question": "Why <b>?"}, config="alpha: 0.5\n", jobs=swept)
    store.tag(baseline, tags_of(sweep_id, 0))
    records = []
    for num, overrides in enumerate(swept[:-1]):
        values = {"test/acc": 0.4 + num / 10, "test/acc_without_transfer": 0.5, "test/gain": (num - 1) / 10}
        theory = {
            "transfer_ratio": 0.5 * (num + 1),
            "negative_transfer": num < 1,
            "condition_holds": 1,
            "scratch_ratio": 3,
            "gamma": 0.25,
        }
        inherited = {"summary": "1 of 4 filters inherited", "tensors": [{"target": "filters", "source": None}]}
        files = {"transfer.json": json.dumps(inherited), "theory.txt": "Transfer helps."}
        tags = {"stage": "downstream", **tags_of(sweep_id, num)}
        run_id = create(name="downstream", tags=tags, params={"replicates": 3}, files=files)
        metrics = {**values, **{f"{name}_sem": 0.01 for name in values}, "time/train": 2.0}
        store.log_metrics(run_id, metrics | {f"theory/{name}": float(value) for name, value in theory.items()})
        records.append(JobRecord(num=num, overrides=overrides, runs={"baseline": baseline, "downstream": run_id}))
    records.append(JobRecord(num=len(records), overrides=swept[-1], error="no memory"))
    for record in records:
        record_job(store, sweep_id, record)
    return sweep_id, records


def test_sweep_ends_with_table_figure_and_page(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number of the two jobs that finished, the third one's failure, the reused training's time."""
    sweep_id, records = keep_sweep(session, {"alpha": 0.2, "lr": 1}, {"alpha": 0.5, "lr": 1}, {"alpha": 1, "lr": 1})
    store = session.store
    summarize(store, sweep_id, records, draw=None, job=pytest.fail)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    note = "alpha=0.2: gain -0.1000 (p = 0.0099); Proposition 4.4 predicts harm"  # t = 10, 2 degrees of freedom
    row = "0.2 0.5000 ± 0.0100 0.4000 ± 0.0100 -0.1000 ± 0.0100 0.0099 3 0.5 harm"
    assert {row, "1 failed", "failed: #2 alpha=1: no memory", note} <= set(printed)

    html = write_page(store, sweep_id)
    files = store.read_files(sweep_id)
    assert {"jobs.json", "table.csv", "figure.png", "figure.pdf", "notes.txt"} <= files.keys()
    assert files["report.html"].decode() == html
    assert note in files["notes.txt"].decode().splitlines()
    counts = {"sweep/jobs": 3, "sweep/ended": 3, "sweep/failed": 1}
    assert store.run(sweep_id).metrics == {**counts, "sweep/gain_min": -0.1, "sweep/gain_max": 0}
    texts = " ".join(html.split())
    for text in (
        "Why &lt;b&gt;?",
        "<dt>alpha</dt><dd>0.2, 0.5, 1</dd>",
        "3 of 3 jobs have ended",
        "<td>-0.1000 ± 0.0100 (-10.0 s.e.)</td><td>0.009852</td><td>3</td>",
        "<td>0.5</td><td>3</td><td>0.25</td><td>yes</td><td>-0.1000 ± 0.0100 (-10.0 s.e.)</td><td>holds</td>",
        "Of the first job: Transfer helps.",
        "<td>filters</td><td>–</td>",
        "<td>baseline</td><td>0</td><td>0.0 s</td><td>1</td><td>7.0 s</td>",
        "<td>downstream</td><td>2</td><td>4.0 s</td><td>0</td><td>0.0 s</td>",
    ):
        assert text in texts


def test_no_figure_of_three_keys(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """Where values would be drawn over one another, the terminal says so, and table and page are made."""
    sweep_id, records = keep_sweep(session, {"alpha": 0, "lr": 1}, {"alpha": 1, "lr": 2}, {"alpha": 1, "lr": 3})
    summarize(session.store, sweep_id, records, draw=Curves(x="alpha"), job=pytest.fail)
    assert "No figure: lr was swept too, which Curves does not tell apart." in capsys.readouterr().out
    write_page(session.store, sweep_id)
    names = session.store.read_files(sweep_id).keys()
    assert {"table.csv", "report.html"} <= names
    assert "figure.png" not in names


def test_paper_table_is_shown_as_it_is_written() -> None:
    """The paper's values beside ours, the gain with its interval and p (t = 10, 2 degrees of freedom), gaps as gaps."""
    estimates = {"test/acc": 0.93, "test/acc_without_transfer": 0.83, "test/gain": 0.1}
    sems = {f"{name}_sem": sem for name, sem in zip(estimates, (0.005, 0, 0.01), strict=True)}
    table = pd.DataFrame([{"model": "a", "task.ratio": 2, **estimates, **sems, "n": 3}])
    data = SweepData(keys=list(table)[:2], table=table, rows=table, job=pytest.fail, history=pytest.fail)  # type: ignore[arg-type]
    drawing = PaperTable(rows="model", columns="task.ratio", published={"a": {2: 94.0}})(data)
    files = {f"{name}.csv": content.to_csv(index=False).encode() for name, content in drawing.tables.items()}
    (shown,) = figure_tables(files)
    assert shown.columns == [
        "pair",
        "",
        "paper %",
        "ours %",
        "s.e.",
        "difference",
        "gain %",
        "gain s.e.",
        "95 % (t)",
        "p",
        "n",
    ]
    assert shown.rows[0] == ["a", "without transfer", "", "83.00", "0.00", "", "", "", "–", "", "3"]
    assert shown.rows[1] == [
        "a",
        "ratio=2",
        "94.00",
        "93.00",
        "0.50",
        "-1.00",
        "+10.00",
        "1.00",
        "+5.70 to +14.30",
        "0.01",
        "3",
    ]
