"""What a person sees after `python train.py -m alpha=0.25,0.5,0.75`, in a real browser on a real server."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from screenshots import Point, browsing, compare, find_browser, open_page, open_run, serving

Fixture = Callable[..., Any]

if find_browser() is None and os.environ.get("PARAMTRANSFER_REQUIRE_BROWSER") != "1":
    pytest.skip("no browser: apt-get install chromium", allow_module_level=True)

# For every element with text of its own: the contrast of its colour with what lies behind it (WCAG 2.2), if below 4.5.
LOW_CONTRAST = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    throw new Error("nothing opaque lies behind the page");
  };
  const found = [], seen = [];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen.push(ratio);
    if (ratio < 4.5) found.push(`${element.tagName} ${element.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  if (seen.length < 50) throw new Error(`only ${seen.length} texts`);
  return found;
}"""
# What is wider than its box, is cut off or scrolls, and cannot be reached by the keyboard.
OUT_OF_REACH = """() => [...document.querySelectorAll("body *")]
  .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible" && e.tabIndex < 0)
  .map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, train: Fixture, runs_of: Fixture) -> Any:
    """The runs of a sweep over alpha, and where they lie."""
    folder = tmp_path_factory.mktemp("sweep")
    process = train(folder, "-m", "alpha=0.25,0.5,0.75")
    assert process.returncode == 0, process.stderr
    runs = runs_of(folder)
    (own,) = runs["sweep"]
    artifacts = Path(urlsplit(own.info.artifact_uri).path)
    return SimpleNamespace(folder=folder, runs=runs, id=own.info.run_id, artifacts=artifacts)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as browser:
        yield browser


def test_compare_runs_in_the_ui(sweep: Any, browser: Any) -> None:
    """Filter, select, Compare: accuracy against alpha, by name; a description with links; plan and figure."""
    with serving(f"sqlite:///{sweep.folder / 'mlruns' / 'mlflow.db'}") as address:
        page = open_page(browser)
        points = compare(page, address, sweep.id, num_runs=3)
        expected = [
            Point(run.info.run_name, float(run.data.params["alpha"]), pytest.approx(run.data.metrics["test/acc"]))
            for run in sweep.runs["downstream"]
        ]
        assert sorted(points) == expected
        assert [point.name.partition(" d=")[0] for point in expected] == [
            "downstream α=0.25",
            "downstream α=0.5",
            "downstream α=0.75",
        ]

        run = sweep.runs["downstream"][0]
        open_run(page, address, run.info.run_id)
        page.get_by_text("1 of 4 filters inherited").first.wait_for()
        page.get_by_text(f"{run.data.metrics['test/gain']:+.4f} ± {run.data.metrics['test/gain_sem']:.4f}").wait_for()
        for stage in ("upstream", "baseline"):
            link = page.get_by_role("link", name=stage, exact=True)
            assert link.get_attribute("href").endswith(f"/runs/{sweep.runs[stage][0].info.run_id}")
        with page.expect_popup() as upstream:
            page.get_by_role("link", name="upstream", exact=True).click()
        upstream.value.get_by_text("Trained on task 1").wait_for()

        open_run(page, address, run.info.run_id, "transfer.json")
        page.get_by_text('"summary": "1 of 4 filters inherited"').wait_for()
        open_run(page, address, sweep.id, "figure.png")
        page.locator("img[src^='blob:'], img[src*='figure.png'], img[src^='data:image/png']").first.wait_for()
        page.get_by_text("report.html").click()
        page.frame_locator("iframe").get_by_role("heading", name="Sweep over alpha").wait_for()
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_on_a_phone_and_on_paper(scheme: str, sweep: Any, browser: Any) -> None:
    """No error, no request, nothing wider than 360 px or out of the keyboard's reach, every text legible."""
    page = open_page(browser, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    address = (sweep.artifacts / "report.html").as_uri()
    page.goto(address)

    for heading in ("Question", "Setting", "Result", "Theory", "What was inherited", "Costs", "Repeat it"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    assert page.locator("img").get_attribute("alt").startswith("Test accuracy over alpha: with transfer from 0.")
    row = sweep.runs["downstream"][1].data.metrics
    cell = f"{row['test/gain']:+.4f} ± {row['test/gain_sem']:.4f} ({row['test/gain'] / row['test/gain_sem']:+.1f} s.e.)"
    assert page.get_by_role("cell", name=cell).first.is_visible()
    assert "train.py -m alpha=0.25,0.5,0.75" in page.locator("pre").last.inner_text()

    page.locator("summary").focus()
    page.keyboard.press("Enter")
    assert page.get_by_text("replicates: 2").is_visible()
    for media, width in (("screen", 360), ("print", 700)):
        page.emulate_media(media=media, color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(LOW_CONTRAST) == []
        assert page.evaluate(OUT_OF_REACH) == []
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    page.close()
