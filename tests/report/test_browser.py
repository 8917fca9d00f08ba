"""The report in a browser: it draws, asks the network for nothing, fits the screen, prints, and runs no answer."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agiledpo.report import RunRecord, write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(_BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

PROBE = (
    '</script><script>window.probed = 1</script><img src="https://example.invalid/x.png" onerror="window.probed = 2">'
)


@pytest.fixture
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=_BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def report(population_run, copied) -> Path:
    """Of a real run, whose answers try to run scripts."""
    place = copied(population_run)
    told = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    (place / "samples.jsonl").write_text(
        "".join(json.dumps({**line, "answer": PROBE, "chosen": PROBE}) + "\n" for line in told)
    )
    return write_report(RunRecord.load(place))


def test_in_a_browser(browser, report):
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', report.read_text())[1])
    for width, scheme in ((1280, "light"), (400, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)

        # Everything that is folded away opens, and is drawn.
        for fold in page.query_selector_all("details:not([open]) > summary"):
            fold.click()
        page.wait_for_function(
            "() => [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg.main-svg'))"
        )
        traces = page.evaluate(
            "() => Object.fromEntries([...document.querySelectorAll('.plot')].map(plot => "
            "[plot.id, [plot.data.length, plot.querySelectorAll('.scatterlayer .trace').length]]))"
        )
        assert set(traces) == set(figures)
        for key, figure in figures.items():
            drawn = sum(any(y is not None for y in trace["y"]) for trace in figure["data"])
            assert traces[key][0] == len(figure["data"])
            assert traces[key][1] >= drawn, key
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert said == []
        assert asked == [report.as_uri()]
        assert page.evaluate("window.probed") is None
        assert page.inner_text("#answers").count(PROBE) >= 4

        # Zooming into one chart moves all to the same rows.
        page.evaluate("() => Plotly.relayout('loss', {'xaxis.range': [8, 20]})")
        page.wait_for_function("() => document.getElementById('grad-norm').layout.xaxis.range[1] === 20")

        if width == 1280:
            assert page.pdf().count(b"/Type /Page\n") >= 3
        context.close()
