"""The page in a real browser: headless Chromium, as Debian has it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import make_run

from mbrl.cli import main

TRAP = '</script><script>console.error("escaped")</script>'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    draws = np.random.default_rng(0)
    for algo, gain in (("mopo", 1.0), ("mobile", 0.5), ("edac", 0.8)):
        for task, top in (("hopper-medium-v2", 3000.0), ("walker2d-medium-v2", 4000.0), ("pendulum", -300.0)):
            curve = gain * top * (1 - np.exp(-np.arange(20) / 5))[:, None, None]
            returns = curve + 50 * draws.normal(size=(20, 2, 5))
            make_run(root / algo / task, returns, algo=algo, task=task, seeds=[0, 1])
    make_run(root / "trap", [1.0], algo=TRAP, status="failed", reason=TRAP, label=TRAP)
    make_run(root / "trapped", [1.0], algo=TRAP, label=TRAP)
    file = root / "report.html"
    assert main(["report", str(root), "--html", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        assert "MBRL_BROWSER" not in os.environ, "whoever runs the tests has promised a browser, and there is none"
        pytest.skip("no chromium and chromedriver on PATH (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(word)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to run as root with one
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what an earlier test left there
    browser.get(page.as_uri())
    return browser


def column(browser: Any, section: str, index: int) -> list[str]:
    rows = f"#{section} tbody tr > :nth-child({index + 1})"
    texts: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((cell) => cell.textContent)", rows
    )
    return texts


def click(browser: Any, section: str, index: int) -> None:
    browser.find_elements("css selector", f"#{section} thead button")[index].click()


def test_it_opens_without_errors_and_asks_nobody(opened: Any, page: Path) -> None:
    assert "Leaderboard" in opened.find_element("tag name", "main").text
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} <= {page.as_uri()}
    assert page.as_uri() in asked
    assert "<script>console" not in page.read_text(encoding="utf-8")


def test_a_click_sorts_numbers_and_another_turns_them_round(opened: Any) -> None:
    head = opened.find_elements("css selector", "#leaderboard thead th")
    at = [cell.text for cell in head].index("mopo")
    before = column(opened, "leaderboard", at)
    click(opened, "leaderboard", at)
    falling = column(opened, "leaderboard", at)
    assert head[at].get_attribute("aria-sort") == "descending"
    known = [float(text.split(" ")[0].replace(",", "")) for text in falling if text != "–"]
    assert known == sorted(known, reverse=True)
    assert falling[-1] == "–"  # what is missing is last
    click(opened, "leaderboard", at)
    rising = column(opened, "leaderboard", at)
    assert rising == [*reversed(falling[:-1]), "–"]
    assert sorted(rising) == sorted(before)


def test_a_click_sorts_words(opened: Any) -> None:
    click(opened, "leaderboard", 0)
    tasks = column(opened, "leaderboard", 0)
    assert tasks == sorted(tasks, key=str.lower)


def test_curves_are_drawn_and_answer_to_a_pointer(opened: Any) -> None:
    charts = opened.find_elements("css selector", '[data-chart="curve"]')
    assert [len(chart.find_elements("css selector", ".scatterlayer .trace")) for chart in charts] == [1, 6, 6, 6]
    (label,) = hover(opened, charts[1])
    assert "mopo: " in label
    assert " to " in label  # the band
    assert hover(opened, opened.find_element("css selector", '[data-chart="profile"]'))


def test_a_band_has_a_gap_where_an_evaluation_is_not_finite(browser: Any, tmp_path: Path) -> None:
    make_run(
        tmp_path / "a", [[1.0, 3.0], [2.0, 4.0], [np.nan, 5.0], [4.0, 6.0], [5.0, 7.0]], seeds=[0, 1], task="pendulum"
    )
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "report.html")]) == 0
    browser.get((tmp_path / "report.html").as_uri())
    read = "return document.querySelector('[data-chart=curve]').data.map((one) => [one.x, one.y])"
    first, second, line = browser.execute_script(read)
    assert first == [[100, 200, 200, 100], [3, 4, 2, 1]]
    assert second == [[400, 500, 500, 400], [6, 7, 5, 4]]
    assert line[1] == [2, 3, None, 5, 6]


def hover(browser: Any, chart: Any) -> list[str]:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_script('arguments[0].scrollIntoView({block: "center", behavior: "instant"})', chart)
    ActionChains(browser).move_to_element(chart).perform()
    found: list[str] = WebDriverWait(browser, 10).until(
        lambda _: [one.text for one in chart.find_elements("css selector", ".hoverlayer") if one.text]
    )
    return found


def test_a_method_can_be_hidden(opened: Any) -> None:
    chart = opened.find_elements("css selector", '[data-chart="curve"]')[1]
    opened.find_elements("css selector", "#curves .legend button")[1].click()
    assert len(chart.find_elements("css selector", ".scatterlayer .trace")) == 4
    pressed = [b.get_attribute("aria-pressed") for b in opened.find_elements("css selector", "#curves .legend button")]
    assert pressed.count("false") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_both_schemes(opened: Any, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    shown = opened.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map((c) => "
        "c.match(/\\d+/g).slice(0, 3).reduce((sum, v) => sum + Number(v) / 765, 0))"
    )
    ink, paper = shown
    assert (ink < 0.3 and paper > 0.9) if scheme == "light" else (ink > 0.8 and paper < 0.2)
    from selenium.webdriver.support.ui import WebDriverWait

    expected = "rgb(63, 71, 79)" if scheme == "light" else "rgb(195, 201, 207)"
    read = "return getComputedStyle(document.querySelector('.xtick text')).fill"
    WebDriverWait(opened, 10).until(lambda _: opened.execute_script(read) == expected)  # charts follow


def test_a_phone_needs_no_sideways_scrolling(opened: Any) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.refresh()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
