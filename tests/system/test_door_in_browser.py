"""The page of the door in a real Chromium: a video is dropped, scored and drawn; mistakes are said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from astrolabe_ray.data.sprites.captions import SpriteCaption
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.report.video import encode_mp4
from tests.local_door import KEYS, RED, TOKEN, local_door, post

pytestmark = [pytest.mark.system, pytest.mark.browser]


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    with local_door() as url:
        yield url


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "red.mp4"
    (clip,) = render_clips([SpriteCaption("small", "red", "circle", "moves left", "black")], seed=5)
    path.write_bytes(encode_mp4(clip, fps=8, comment=""))
    return path


@pytest.fixture
def browser(door: str) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    ) as driver:
        driver.set_window_size(1200, 900)
        driver.get(door)
        yield driver


def until(browser: webdriver.Chrome, expression: str) -> Any:
    """Its value as soon as it is true, 60 s at most: a busy machine decodes and scores slowly."""
    wait = WebDriverWait(browser, 60, poll_frequency=0.05)
    return wait.until(lambda b: b.execute_script(f"return {expression}"))


def enter_token(browser: webdriver.Chrome, token: str = TOKEN) -> None:
    browser.find_element(By.ID, "token").clear()
    browser.find_element(By.ID, "token").send_keys(token + "\t")


def test_a_video_is_scored_and_its_curves_stand_beside_it(
    browser: webdriver.Chrome, door: str, video: Path
) -> None:
    """What a reader looks for: the numbers, where in the video they come from, and nothing from elsewhere."""
    enter_token(browser)
    assert until(
        browser, "[...document.querySelectorAll('#rewards label span')].map(s => s.textContent)"
    ) == list(KEYS)
    assert not browser.find_element(By.ID, "result").is_displayed(), "an empty player"
    browser.find_element(By.ID, "file").send_keys(str(video))
    browser.find_element(By.ID, "prompt").send_keys(RED)
    browser.find_element(By.ID, "go").click()
    rows = until(
        browser,
        "(t => t.length ? t : null)([...document.querySelectorAll('#scores tr')]"
        ".map(r => [...r.cells].map(c => c.textContent)))",
    )
    wanted = post(door, video.read_bytes(), points=16).body
    assert {key: float(value) for key, value in rows} == pytest.approx(wanted["scores"], abs=1e-4)
    curves = browser.execute_script(
        "return [...document.querySelectorAll('.curve')].map(c => [c.points.length,"
        " c.getBoundingClientRect().width, getComputedStyle(c).stroke])"
    )
    assert [points for points, *_ in curves] == [len(wanted["curves"][key]) for key in KEYS] == [16, 16, 16]
    assert all(width > 200 for _, width, _ in curves) and len({stroke for *_, stroke in curves}) == 3
    assert until(browser, "document.querySelector('video').videoWidth") == 192
    first = "document.querySelector('.cursor').x1.baseVal.value"
    until(browser, f"{first} > 20")  # it follows the video
    wide, seen = browser.execute_script(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert wide == seen
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith((door, "blob:", "data:")) for url in urls)
    assert browser.get_log("browser") == []


def test_a_video_can_be_dropped(browser: webdriver.Chrome) -> None:
    """A box that says `drop here` and opens the file in the tab instead."""
    enter_token(browser)
    until(browser, "document.querySelectorAll('#rewards input').length === 3")
    browser.execute_script(
        "const data = new DataTransfer(); data.items.add(new File(['no video'], 'dropped.mp4'));"
        "document.getElementById('drop').dispatchEvent("
        "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))"
    )
    assert until(browser, "document.getElementById('name').textContent").startswith("dropped.mp4")
    browser.find_element(By.ID, "prompt").send_keys(RED)
    browser.find_element(By.ID, "go").click()
    until(browser, "document.getElementById('message').className === 'error'")
    assert "videos are mp4 files" in browser.find_element(By.ID, "message").text


def test_a_wrong_token_is_said_and_can_be_corrected(browser: webdriver.Chrome) -> None:
    """A page that does nothing, for no reason that anybody sees. Hostile texts stay texts."""
    enter_token(browser, "<img src=x onerror=alert(1)>")
    until(browser, "document.getElementById('message').className === 'error'")
    assert browser.find_element(By.ID, "message").text == "this is not the token of this door"
    enter_token(browser)
    until(browser, "document.querySelectorAll('#rewards input').length === 3")
    assert browser.find_element(By.ID, "message").text == ""


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_its_screen(browser: webdriver.Chrome, width: int) -> None:
    """A form that scrolls sideways on a phone."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide, seen = browser.execute_script(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert wide == seen <= width
