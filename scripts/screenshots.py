"""The README's pictures of MLflow's UI and of a sweep's page, taken along the path that a person clicks.

    python scripts/screenshots.py               runs a sweep over alpha in an empty folder, writes docs/images/*.png

Needs Debian's chromium (apt-get install chromium) or Chrome. tests/test_browser.py walks the same path and checks what
it reads.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Browser, Page, expect, sync_playwright

_REPO = Path(__file__).parents[1]
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_START_SECONDS = 60
_WAIT_MS = 20_000


class Point(NamedTuple):
    """A run in the plot of the compared runs."""

    name: str
    alpha: float
    accuracy: float


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def serving(uri: str) -> Iterator[str]:
    """MLflow's UI as `make ui` starts it, on a free port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, *command, "--backend-store-uri", uri],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/health")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(address: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, **options: Any) -> Page:
    """A page of the size of a small laptop."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
    page.set_default_timeout(_WAIT_MS)
    expect.set_options(timeout=_WAIT_MS)
    return page


def compare(page: Page, address: str, sweep_id: str, num_runs: int) -> list[Point]:
    """From the start page to the plot of accuracy against alpha of the downstream runs of a sweep, as plotted."""
    page.goto(address)
    page.get_by_text("Model training", exact=True).first.click()
    page.goto(f"{address}/#/experiments/1/runs")
    _close_assistant(page)
    box = page.get_by_placeholder("metrics.rmse")
    box.fill(f"tags.stage = 'downstream' and tags.`sweep.{sweep_id}` LIKE '%'")
    box.press("Enter")
    expect(page.get_by_text(f"{num_runs} matching runs")).to_be_visible()
    page.get_by_role("checkbox", name="Select all runs").check()
    page.get_by_text("Compare", exact=True).first.click()
    page.get_by_role("tab", name="Scatter Plot").click()
    plot = page.locator("[role=tabpanel]:visible .js-plotly-plot")
    plot.locator("canvas").first.wait_for()
    axes = [page.locator(f"#{axis}-axis-selector").inner_text() for axis in ("x", "y")]
    assert axes == ["alpha", "test/acc"], axes
    (trace,) = plot.evaluate("plot => plot.data.map(({x, y, text}) => ({x, y, text}))")
    return [
        Point(name=text.partition("</b>")[0].removeprefix("<b>"), alpha=float(x), accuracy=float(y))
        for x, y, text in zip(trace["x"], trace["y"], trace["text"], strict=True)
    ]


def open_run(page: Page, address: str, run_id: str, artifact: str | None = None) -> None:
    """The page of a run, or one of its artifacts there."""
    path = f"/artifacts/{artifact}" if artifact else ""
    page.goto(f"{address}/#/experiments/1/runs/{run_id}{path}")
    _close_assistant(page)


def _close_assistant(page: Page) -> None:
    """MLflow's panel at the right, which hides a third of the page."""
    button = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    page.get_by_role("button").first.wait_for()
    if button.count():
        button.click()


def main() -> None:
    """Run a sweep, walk through it and keep what is seen."""
    if find_browser() is None:
        sys.exit(f"no browser: one of {', '.join(_NAMES)} must be on PATH (apt-get install chromium)")
    images = _REPO / "docs" / "images"
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, str(_REPO / "train.py"), "-m", "alpha=0.25,0.5,0.75", "trainer.progress=false"]
        own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        subprocess.run(command, cwd=folder, env=own, check=True)
        (sweep,) = {path.parent.parent.name for path in folder.glob("mlruns/artifacts/*/artifacts/report.html")}
        with serving(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}") as address, browsing() as browser:
            page = open_page(browser)
            compare(page, address, sweep, num_runs=3)
            page.screenshot(path=images / "compare.png")
            report = open_page(browser, viewport={"width": 900, "height": 1200})
            report.goto((folder / "mlruns" / "artifacts" / sweep / "artifacts" / "report.html").as_uri())
            report.screenshot(path=images / "report.png")
    for path in sorted(images.glob("*.png")):
        print(path)


if __name__ == "__main__":
    main()
