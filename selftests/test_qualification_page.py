"""The qualification report in a real browser: what a release manager sees on a desk and on a phone, and what cannot be.

Needs Chromium, which ``./bootstrap.sh selftests`` installs.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from selftests.qualifications import large, qualification, telling
from xentests.report.qualification import page as report
from xentests.report.qualification.rules import Answer

WIDTHS = [1280, 360]
REVERT = "suites/livepatch/test_lifecycle.py::test_revert"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The telling qualification's page."""
    path = tmp_path_factory.mktemp("qualification") / "qualification.html"
    report.write(telling(), path)
    return path


@pytest.fixture
def person(request: pytest.FixtureRequest, browser: Any, written: Path) -> Iterator[Page]:
    """A reader of the page, as wide as asked; nothing but the file is ever requested, nothing is complained of."""
    asked: list[str] = []
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": getattr(request, "param", 1280), "height": 900})
    page.set_default_timeout(10_000)
    page.on("request", lambda it: asked.append(it.url))
    page.on("console", lambda it: complaints.append(it.text))
    page.on("pageerror", lambda it: complaints.append(str(it)))
    page.goto(written.as_uri())
    yield page
    page.close()
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} == {written.as_uri()}
    assert complaints == []


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")


@pytest.mark.parametrize("person", WIDTHS, indirect=True)
def test_it_fits(person: Page, tmp_path: Path) -> None:
    """The answer is seen first; nothing is wider than the window, open or closed; a picture shows something."""
    for opened in (False, True):
        if opened:
            open_all(person)
        assert person.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert person.evaluate("document.body.scrollWidth <= innerWidth")
        picture = tmp_path / f"{opened}.png"
        person.screenshot(path=picture, full_page=True)
        width, height = struct.unpack(">II", picture.read_bytes()[16:24])
        assert width == person.evaluate("innerWidth")
        assert height > 2500
        assert picture.stat().st_size > 100_000  # an empty page of that size has a few thousand
    heading = person.get_by_role("heading", level=1)
    expect(heading).to_have_text("debian:trixie: must not ship")
    expect(heading).to_be_in_viewport()
    expect(person.locator(".answer svg")).to_be_in_viewport()


@pytest.mark.parametrize("person", WIDTHS, indirect=True)
def test_a_cell_leads_to_its_tests(person: Page) -> None:
    """It says the worst and the counts; a click opens the suite and shows the rows."""
    cell = person.get_by_role("link", name="Lifecycle, amd64: regression 1/2")
    expect(cell).to_contain_text("✕regression 1/2")
    group = person.locator("#livepatch-lifecycle-amd64")
    expect(group).not_to_be_visible()
    cell.click()
    expect(group).to_be_in_viewport()
    first = group.locator("xpath=following-sibling::tr[1]")
    expect(first).to_be_in_viewport()
    expect(first).to_contain_text(REVERT)
    expect(person.get_by_role("link", name="Remus on the baseline, amd64: passed 1/1")).to_be_visible()


@pytest.mark.parametrize("person", WIDTHS, indirect=True)
def test_by_keyboard(person: Page) -> None:
    """Tab comes to a skip link first, then to a fold of tests, visibly; Enter opens it."""
    person.keyboard.press("Tab")
    expect(person.get_by_text("Skip to the answer")).to_be_in_viewport()
    for _ in range(60):
        person.keyboard.press("Tab")
        if person.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    assert person.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert not person.evaluate("document.activeElement.parentElement.open")
    person.keyboard.press("Enter")
    assert person.evaluate("document.activeElement.parentElement.open")
    expect(person.get_by_role("link", name=f"{REVERT} amd64")).to_be_visible()


def test_everything_is_said(person: Page) -> None:
    """A word of each section."""
    open_all(person)
    body = person.locator("body")
    for text in (
        "1 regression: reverting a live patch on amd64",
        "3 h 12 min",
        "23 passed",
        "RTDS is no longer built (CONFIG_SCHED_RTDS)",
        "xen_extra is still 'PATCHED'",
        "2 of 7 failed (8 to 64 % at 95 % confidence)",
        "+60.5 %, medians of 4 and 3 values",
        "not built: CONFIG_SCHED_RTDS is not set",
        "it was to be run, and the run ended before it",
        "the release was not asked this",
        "6.12.48+deb13-arm64",
        "this machine has no IOMMU",
        "stopped after 30 min: its host hung",
        "LabError: no room for 2 hosts",
    ):
        expect(body).to_contain_text(text)
    strip = person.locator("#regressions ~ article").get_by_role("img")
    expect(strip).to_have_text("PPPPPFF")
    expect(strip).to_have_attribute("title", "oldest first: 5 passed, 2 failed")


def test_an_empty_one_says_that(browser: Any, tmp_path: Path) -> None:
    """Nothing was run, and every section says so."""
    path = tmp_path / "empty.html"
    report.write(qualification([], answer=Answer.UNDECIDED, baseline="", started=0.0, ended=0.0), path)
    page = browser.new_page()
    page.goto(path.as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("debian:trixie: not decided")
    for text in ("no test forbids", "nothing needs to be said", "no test measured", "no host of it", "Nothing was run"):
        expect(page.locator("body")).to_contain_text(text)
    page.close()


def test_hostile_text_is_text(person: Page) -> None:
    """Markup is shown, not run; no escapes; even what would get in could do nothing."""
    open_all(person)
    title = person.title()
    assert person.locator("img, script, iframe, [onerror]").count() == 0
    shown = "red  nul\ufffd bell\ufffd ]]> <script>document.title='pwned'</script><img src=x onerror="
    assert shown in person.locator("article pre").inner_text()
    assert "\x1b" not in person.content()
    assert person.locator("svg b").count() == 0
    assert "pwned" not in title
    assert person.title() == title


def test_injected_script_would_not_run(browser: Any, written: Path) -> None:
    """The page's policy knows no script, no handler, no frame and no foreign style."""
    page = browser.new_page()
    page.goto(written.as_uri())
    blocked: list[str] = []
    page.on("console", lambda it: blocked.append(it.text))
    title = page.title()
    page.evaluate(
        """() => {
            const place = document.createElement("div");
            place.innerHTML = "<svg onload=\\"document.title='pwned'\\"></svg><b style='color: red'>x</b>"
                + "<img src='https://example.org/x.png'>";
            document.body.append(place);
            const script = document.createElement("script");
            script.textContent = "document.title = 'pwned'";
            document.body.append(script);
            return new Promise(done => setTimeout(done, 300));
        }"""
    )
    assert page.title() == title
    assert len([text for text in blocked if "Content Security Policy" in text]) == 4
    page.close()


def test_on_paper(person: Page) -> None:
    """Black on white whatever the screen; closed folds are printed; nothing is wider than the sheet."""
    person.emulate_media(media="print", color_scheme="dark")
    person.set_viewport_size({"width": 720, "height": 1000})
    test = person.get_by_text("suites/scheduler/test_shares.py::test_weights[credit2]").first
    expect(test).to_be_visible()
    box = test.bounding_box()
    assert box is not None
    assert box["height"] > 8
    assert person.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert person.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(0, 0, 0)"
    expect(person.locator("nav")).not_to_be_visible()
    assert person.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert person.pdf(format="A4").startswith(b"%PDF")


_CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const light = colour => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part =>
            part / 255 <= 0.03928 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const under = node => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (colour !== "rgba(0, 0, 0, 0)") return colour;
        }
        return "white";
    };
    const poor = new Set();
    for (const node of document.querySelectorAll("body *")) {
        if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
        const svg = node.namespaceURI.endsWith("svg");
        const pair = [light(getComputedStyle(node)[svg ? "fill" : "color"]), light(under(node))].sort((a, b) => b - a);
        if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5 && node.tagName !== "title")
            poor.add(node.outerHTML.slice(0, 90));
    }
    return [...poor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(person: Page, scheme: Any) -> None:
    """At least 4.5 to 1 for every text (WCAG AA), by day and by night; the two differ."""
    person.emulate_media(color_scheme=scheme)
    open_all(person)
    assert person.evaluate(_CONTRAST) == []
    assert (person.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
        scheme == "light"
    )


def test_ten_thousand_executions_are_quick_and_small(browser: Any, tmp_path: Path) -> None:
    """Under two seconds of CPU, under 5 MB, and a browser opens it."""
    made = large()
    assert sum(len(each.history) for each in made.rows) >= 10_000
    report.render(qualification())  # reads the template
    began = time.process_time()
    path = tmp_path / "large.html"
    report.write(made, path)
    assert time.process_time() - began < 2.0
    assert path.stat().st_size < 5e6
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto(path.as_uri())
    expect(page.locator("#tests ~ details")).to_have_count(8)
    assert page.locator("tr[id^=t]").count() == 1500
    assert page.locator("svg.plot").count() == 600
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
