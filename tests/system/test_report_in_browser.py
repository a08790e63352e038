"""The page in a real Chromium: it is seen, it plays, it asks nobody, it fits the screen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from astrolabe_ray.report.page import build_report
from tests.small_run import write_run

pytestmark = [pytest.mark.system, pytest.mark.browser]
SIZES = [(390, 844), (1400, 1000)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(write_run(tmp_path_factory.mktemp("logs")))


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_script_timeout(20)
        yield driver


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    """The browser with the page, at desktop size, its logs empty before it loads."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    resize(browser, *SIZES[1])
    browser.get(page.as_uri())
    return browser


def resize(browser: webdriver.Chrome, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(browser: webdriver.Chrome, scheme: str) -> None:
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)


def videos(browser: webdriver.Chrome, expression: str) -> list[Any]:
    """`expression` of each video `v` of the page."""
    return browser.execute_script(f"return [...document.querySelectorAll('video')].map(v => {expression})")


def until(browser: webdriver.Chrome, expression: str) -> None:
    """Wait until `expression` holds for every video `v`, 10 s at most."""
    wait = WebDriverWait(browser, 10, poll_frequency=0.05)
    wait.until(lambda b: all(videos(b, expression)), f"never for all videos: {expression}")


def test_nothing_is_requested_and_nothing_complains(opened: webdriver.Chrome) -> None:
    """A page that phones somewhere, or whose prompts run as scripts."""
    until(opened, "v.readyState >= 2")
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert sum(url.startswith("file:") for url in urls) == 1, "the page itself"
    assert {url.split(":")[0] for url in urls} <= {"file", "data"}
    assert opened.get_log("browser") == []


def test_every_video_plays(opened: webdriver.Chrome) -> None:
    """A codec or a file that no browser plays: a black box in the most important place."""
    until(opened, "v.readyState >= 2")
    assert videos(opened, "[v.videoWidth, v.videoHeight]") == [[192, 192]] * 4
    assert videos(opened, "v.duration") == pytest.approx([9 / 8] * 4, abs=0.01)
    videos(opened, "(v.pause(), v.currentTime = 0)")
    until(opened, "v.currentTime === 0 && !v.seeking")
    assert (
        opened.execute_async_script(
            "const done = arguments[0], vs = [...document.querySelectorAll('video')];"
            "Promise.all(vs.map(v => v.play())).then(() => done('plays'), error => done(String(error)))"
        )
        == "plays"
    )
    until(opened, "v.currentTime > 0.2")
    assert videos(opened, "v.error") == [None] * 4


def test_the_two_videos_of_a_pair_stay_together(opened: webdriver.Chrome) -> None:
    """Two moments side by side look like two policies."""
    until(opened, "v.readyState >= 2 && !v.paused")
    second = "document.querySelectorAll('.pair')[0].querySelectorAll('video')[1]"
    opened.execute_script(f"{second}.pause()")
    until(opened, "v.paused === (v.closest('.pair') === document.querySelector('.pair'))")
    opened.execute_script(f"{second}.currentTime = 0.75")
    first_two = "!document.querySelector('.pair').contains(v) || "
    until(opened, first_two + "v.currentTime === 0.75")
    opened.execute_script(f"{second}.play()")
    until(opened, "!v.paused")
    opened.execute_async_script("setTimeout(arguments[0], 3000)")  # more than two rounds
    times = videos(opened, "v.currentTime")
    apart = abs(times[0] - times[1])
    assert min(apart, 9 / 8 - apart) < 0.25


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("folded", [True, False])
def test_the_page_fits_its_screen(opened: webdriver.Chrome, width: int, height: int, folded: bool) -> None:
    """A table that makes the whole page scroll sideways on a phone."""
    resize(opened, width, height)
    opened.execute_script(
        "for (const d of document.querySelectorAll('details')) d.open = arguments[0]", not folded
    )
    wide, seen = opened.execute_script(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert wide == seen <= width
    boxes = opened.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, p, article, video, details')]"
        ".map(e => e.getBoundingClientRect()).map(r => [r.left, r.right, r.height])"
    )
    assert all(left >= 0 and right <= width for left, right, _ in boxes)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_curve_is_seen(opened: webdriver.Chrome, width: int, height: int) -> None:
    """Charts without a size, or curves in the colour of the ground."""
    resize(opened, width, height)
    charts = opened.execute_script(
        "return [...document.querySelectorAll('.charts article')].map(a => {"
        " const svg = a.querySelector('svg').getBoundingClientRect();"
        " return [svg.width, svg.height, [...a.querySelectorAll('.curve')].map("
        "  c => [c.points.length, c.getBoundingClientRect().width, getComputedStyle(c).stroke])] })"
    )
    assert [len(curves) for *_, curves in charts] == [2, 2, 2, 1, 1, 1, 1, 1, 0], "the last one has bars"
    for chart_width, chart_height, curves in charts:
        assert chart_width > 250 and chart_height > 130
        for points, curve_width, stroke in curves:
            assert points >= 3 and curve_width > 0.3 * chart_width
            assert stroke.startswith("rgb(") and stroke != "rgb(0, 0, 0)"
        assert len({stroke for *_, stroke in curves}) == len(curves), "two curves of one colour"


def test_videos_stand_side_by_side_and_high_on_the_page(opened: webdriver.Chrome) -> None:
    """A result that has to be scrolled for."""
    before, after = videos(opened, "[v.getBoundingClientRect().left, v.getBoundingClientRect().top]")[:2]
    assert before[0] < after[0] and before[1] == after[1] < 1000


def test_text_can_be_read_by_day_and_by_night(opened: webdriver.Chrome) -> None:
    """Dark text on a dark ground. A contrast of 4.5 is what WCAG asks for."""
    grounds = []
    for scheme in ("light", "dark"):
        prefer(opened, scheme)
        ground, *inks = opened.execute_script(
            "const rgb = (e, what) => getComputedStyle(e)[what].match(/\\d+/g).slice(0, 3).map(Number);"
            "const texts = ['h1', '.note', '.tiles span', 'td', 'summary'];"
            "return [rgb(document.body, 'backgroundColor'), "
            "...texts.map(s => rgb(document.querySelector(s), 'color'))]"
        )
        grounds.append(ground)
        assert all(contrast(ink, ground) >= 4.5 for ink in inks), scheme
    assert sum(grounds[0]) > 600 and sum(grounds[1]) < 150
    prefer(opened, "light")


def contrast(a: list[int], b: list[int]) -> float:
    """Contrast ratio of two sRGB colours (WCAG 2.1), 1 to 21."""

    def luminance(colour: list[int]) -> float:
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)
