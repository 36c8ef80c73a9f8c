"""`scripts/report.py`: a page from what the store has, whatever became of the process that started the sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
import report

from paramtransfer.figures.drawing import SweepData
from paramtransfer.figures.paper_table import PaperTable
from paramtransfer.report.page import other_tables
from paramtransfer.tracking.store import open_store

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


def test_paper_table_is_shown_as_it_is_written() -> None:
    """The paper's values beside ours, differences in standard errors too, gaps as gaps."""
    estimates = {"test/acc": 0.93, "test/acc_without_transfer": 0.83, "test/gain": 0.1}
    sems = {f"{name}_sem": sem for name, sem in zip(estimates, (0.005, 0, 0.01), strict=True)}
    table = pd.DataFrame([{"model": "a", "task.ratio": 2, **estimates, **sems, "n": 3}])
    data = SweepData(keys=list(table)[:2], table=table, rows=table, job=pytest.fail, history=pytest.fail)  # type: ignore[arg-type]
    drawing = PaperTable(rows="model", columns="task.ratio", published={"a": {2: 94.0}})(data)
    files = {f"{name}.csv": content.to_csv(index=False).encode() for name, content in drawing.tables.items()}
    (shown,) = other_tables(files)
    assert shown.columns == [
        "pair",
        "",
        "paper %",
        "ours %",
        "s.e.",
        "difference",
        "in s.e.",
        "gain %",
        "gain s.e.",
        "n",
    ]
    assert shown.rows[0] == ["a", "without transfer", "", "83.00", "0.00", "", "", "", "", "3"]
    assert shown.rows[1] == ["a", "ratio=2", "94.00", "93.00", "0.50", "-1.00", "-2.0", "+10.00", "1.00", "3"]
