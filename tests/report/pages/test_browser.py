"""The report and the dashboard in a real browser: Debian's chromium, driven by selenium."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from invented import Invented

from evomerge.report.pages import dashboard as room
from evomerge.report.pages.dashboard import Content, dashboard, listen
from evomerge.report.pages.report import write_report

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no browser: apt-get install chromium chromium-driver",
    ),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
)
PATIENCE = 60.0


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    """The browser, as wide as a desk and in light colours."""
    seen(browser, "light", 1200)
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """A run of an archive with parents, failures and trials pruned at a rung."""
    run = Invented(tmp_path_factory.mktemp("varied"), optimizer="m2n2", budget=12).references()
    for place, level in enumerate([0.3, 0.5, 0.4, 0.7, 0.6, 0.8]):
        state = {"members": list(range(place)), "coverage": place / 8, "entropy": 0.4}
        parents = (place - 2, place - 1) if place > 1 else ()
        run.add(run.recipe(), level, state=state, parents=parents)
    run.add(run.recipe(), 0.5, pruned=10, parents=(1, 2))
    return run.search([0], {0: "CUDA out of memory"})


def seen(browser, scheme, width):
    """How the page is looked at."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def until(browser, condition, *arguments):
    """What a JavaScript expression gives once it is truthy."""
    end = time.monotonic() + PATIENCE
    while True:
        found = browser.execute_script(f"return {condition}", *arguments)
        if found or time.monotonic() > end:
            assert found, condition
            return found
        time.sleep(0.1)


def drawn(browser):
    """The figures, once plotly has drawn them all."""
    ready = "f => f.querySelector('.main-svg') && f._fullLayout"
    figures = "[...document.querySelectorAll('.figure')]"
    until(browser, f"{figures}.length > 5 && {figures}.every({ready})")
    return browser.execute_script(f"return {figures}.map(f => f.id)")


def overflow(browser):
    """By how many pixels the page is wider than the window."""
    return browser.execute_script("return document.documentElement.scrollWidth - innerWidth")


def click(browser, selector, text=None):
    """Click what a CSS selector, and the text it has, name."""
    found = browser.find_elements("css selector", selector)
    [one] = [e for e in found if text is None or text in e.text]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", one)
    one.click()


def shows(browser, figure, name):
    """Whether a trace of a figure is on show."""
    found = "document.getElementById(arguments[0])._fullData.find(t => t.name == arguments[1])"
    return browser.execute_script(f"return {found}.visible === true", figure, name)


def toggle(browser, figure, name):
    """Click a trace's name in a figure's legend, and wait until it is gone or back."""
    before = shows(browser, figure, name)
    place = f"document.getElementById('{figure}')"
    browser.execute_script(f"{place}.scrollIntoView({{block: 'center'}})")
    entries = browser.find_elements("css selector", f"#{figure} .legend .traces")
    [entry] = [e for e in entries if e.text == name]
    entry.find_element("css selector", ".legendtoggle").click()
    trace = f"{place}._fullData.find(t => t.name == arguments[0])"
    until(browser, f"({trace}.visible === true) != arguments[1]", name, before)


def test_the_report_is_drawn_offline_in_both_schemes_and_on_a_phone(page, varied, tmp_path):
    write_report(varied.study, tmp_path / "report.html")
    page.get((tmp_path / "report.html").as_uri())
    figures = drawn(page)
    assert {"figure-lineage", "figure-items", "figure-failures", "figure-busy"} <= set(figures)
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    ink = "document.querySelector('#figure-progress .xtick text').style.fill"
    light = page.execute_script(f"return {ink}")
    seen(page, "dark", 390)
    until(page, f"{ink} != arguments[0]", light)
    drawn(page)
    assert overflow(page) <= 0
    widest = "Math.max(...[...document.querySelectorAll('.main-svg')].map(s => s.clientWidth))"
    until(page, f"{widest} <= innerWidth")


def test_clicking_through_the_report(page, varied, tmp_path):
    write_report(varied.study, tmp_path / "report.html")
    page.get((tmp_path / "report.html").as_uri())
    drawn(page)
    toggle(page, "figure-progress", "trial")
    assert not shows(page, "figure-progress", "trial")
    toggle(page, "figure-progress", "trial")
    click(page, "#recipe-text summary")
    assert page.find_element("css selector", "#recipe-text pre").is_displayed()
    hovered = page.find_element("css selector", "#figure-failures .point path")
    from selenium.webdriver import ActionChains

    ActionChains(page).scroll_to_element(hovered).move_to_element(hovered).perform()
    said = "document.querySelector('#figure-failures .hoverlayer text')?.textContent"
    assert until(page, said) == "CUDA out of memory: 1"


@contextmanager
def served(folder):
    """The dashboard's address, while it is served by this process."""
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(dashboard(Content(folder), ["127.0.0.1"]), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def test_the_dashboard_follows_the_campaign_and_keeps_what_was_clicked(page, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "SECONDS", 0.2)
    monkeypatch.setattr(room, "SHARE", 1e9)
    run = Invented(tmp_path / "run", budget=10).references()
    with served(run.folder) as url:
        page.get(url)
        until(page, "document.body.innerText.includes('No trial has succeeded yet')")
        run.search([0.3, 0.6])
        figure = "document.getElementById('figure-progress')"
        points = f"{figure}?.data?.find(t => t.name == 'trial').x.length"
        until(page, f"{points} == 2")  # the page does not change any more under the clicks
        drawn(page)
        asked = "performance.getEntriesByType('resource').map(e => new URL(e.name).origin)"
        assert set(page.execute_script(f"return {asked}")) == {url.rstrip("/")}
        toggle(page, "figure-progress", "trial")
        click(page, "#recipe-text summary")
        page.execute_script(f"{figure}.kept = 'this very one'")
        run.search([0.5, 0], {1: "worker died"})
        until(page, "!!document.getElementById('figure-failures')?._fullLayout")
        assert "1 trial failed" in page.find_element("css selector", "main").text
        assert not shows(page, "figure-progress", "trial"), "what was hidden stays hidden"
        assert page.find_element("css selector", "#recipe-text pre").is_displayed()
        assert page.execute_script(f"return {figure}.kept") == "this very one"
        assert page.execute_script(f"return {points}") == 3
        assert "s ago" in until(page, "document.querySelector('time[data-ago]').textContent")
    until(page, "!document.getElementById('lost').hidden")
    assert "Not up to date" in page.find_element("id", "lost").text
    lost = [entry["message"] for entry in page.get_log("browser")]
    assert all("/content" in message for message in lost), "only that nobody answers"
