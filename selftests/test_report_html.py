"""The HTML report, made by the real Allure 3 and opened in a real browser: what a reader sees, and what cannot happen.

Needs what ``./bootstrap.sh selftests`` installs: npm's packages in this checkout, and Chromium.
"""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Request, expect

from selftests.plugin_runs import project, run
from xentests.errors import LabError, UsageError
from xentests.report import html
from xentests.report.figures import Figure
from xentests.report.run import Run, find_run, new_run

TESTS = '''
    """Revert."""
    import pytest

    from selftests.plugin_world import HOSTILE, PANIC
    from xentests.errors import LabError, ProductFailure


    def test_fails(fake_host):
        """A revert brings the old function back."""
        fake_host.domain.say("(XEN) the console says " + HOSTILE.encode("utf-8", "replace").decode() + "\\r\\n")
        print("the test printed " + HOSTILE)
        raise ProductFailure("the new function still runs: " + HOSTILE)


    def test_crashes(fake_host):
        """Xen survives."""
        fake_host.domain.say(PANIC)


    def test_breaks():
        """A lab has room."""
        raise LabError("no room <img src=x onerror=\\"document.title='pwned'\\">")


    def test_not_built():
        """RTDS schedules."""
        pytest.skip("not built: CONFIG_SCHED_RTDS is not set")


    @pytest.mark.parametrize("kind", ["pv", "pvh"])
    def test_passes(kind):
        """Guests run."""
'''

FIGURES = [Figure("migration.test_up[pv]", "downtime, s", 0.4, 0.5), Figure("migration.test_up[pv]", "<b>peak", 3.0)]

# As a browser that must reach nothing but the page; it runs as root in CI, hence without its sandbox.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run and its report, in a directory whose name a glob pattern would stumble over."""
    (ran,) = [run(project(tmp_path_factory.mktemp("report"), test_revert=TESTS)).run]
    found = find_run(Path(shutil.move(ran, tmp_path_factory.mktemp("artifacts [1]* ü"))).parent, ran.name)
    said: list[str] = []
    assert html.build(found, FIGURES, say=said.append) == found.report / "index.html"
    assert said == [f"making the report of {found.id}"]
    return found


class Reader:
    """A person with a browser: the page, and what they must never see happen."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", self._note_request)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)

    def open(self, title: str) -> None:
        """Open a test by its title in the tree."""
        self.page.get_by_text(title, exact=True).first.click()


@pytest.fixture
def reader(browser: Any, made: Run) -> Iterator[Reader]:
    """The report, opened from the disk."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(20_000)
    person = Reader(page)
    page.goto((made.report / "index.html").as_uri())
    yield person
    page.close()
    assert person.requests == [(made.report / "index.html").as_uri()], "the report asked for something outside"
    assert person.complaints == []


def test_the_tree_shows_areas_and_counts(reader: Reader) -> None:
    """Folder and module as areas; failed, broken, passed and skipped tests apart."""
    page = reader.page
    for text in ("Area", "Revert", "A revert brings the old function back", "Xen survives"):
        expect(page.get_by_text(text, exact=True).first).to_be_visible()
    body = page.locator("body")
    for count in (r"Failed\s*2", r"Broken\s*1", r"Passed\s*2", r"Skipped\s*1"):
        expect(body).to_contain_text(re.compile(count))
    assert page.title().startswith("debian:trixie amd64 · 2")


def test_figures_stand_beside_those_of_the_run_before(reader: Reader) -> None:
    """At the head of the report, by test and name."""
    expect(reader.page.get_by_text("migration.test_up[pv]: downtime, s")).to_be_visible()
    expect(reader.page.get_by_text("0.4 (before: 0.5, -20 %)")).to_be_visible()
    expect(reader.page.get_by_text("migration.test_up[pv]: <b>peak")).to_be_visible()


def test_a_failed_test_shows_its_message(reader: Reader) -> None:
    """The message in full, as text; the category; release and architecture."""
    reader.open("A revert brings the old function back")
    body = reader.page.locator("body")
    expect(body).to_contain_text("ProductFailure: the new function still runs: red")
    expect(body).to_contain_text("<script>document.title='pwned'</script>")
    expect(body).to_contain_text("Product failures")
    expect(body).to_contain_text("debian:trixie")


def test_its_console_can_be_read(reader: Reader, tmp_path: Path) -> None:
    """A click on the attachment shows what Xen said; hostile text is text."""
    reader.open("A revert brings the old function back")
    reader.page.get_by_text("xen0 call: console.log").first.click()
    console = reader.page.get_by_text("(XEN) the console says red").first
    expect(console).to_be_visible()
    expect(console).to_contain_text("onerror=")
    reader.page.get_by_text("stdout", exact=True).first.click()
    expect(reader.page.get_by_text("the test printed red").first).to_be_visible()
    reader.page.screenshot(path=tmp_path / "console.png")
    assert "pwned" not in reader.page.title()
    assert reader.page.locator("img[onerror]").count() == 0


def test_a_broken_test_is_not_a_failure(reader: Reader) -> None:
    """It has a category of its own."""
    reader.open("A lab has room")
    expect(reader.page.locator("body")).to_contain_text("Lab: other")


def test_what_is_not_built_says_so(reader: Reader) -> None:
    """The reason and the category; the test is found among the skipped ones."""
    reader.page.get_by_text("Skipped", exact=False).first.click()
    reader.open("RTDS schedules")
    body = reader.page.locator("body")
    expect(body).to_contain_text("not built: CONFIG_SCHED_RTDS is not set")
    expect(body).to_contain_text("Category: Not built")


def test_injected_script_would_not_run(reader: Reader) -> None:
    """Even if Allure were to let markup through: the page's policy stops scripts and handlers that are not its own."""
    title = reader.page.title()
    reader.page.evaluate(
        """() => {
            const place = document.createElement("div");
            place.innerHTML = "<svg onload=\\"document.title='pwned'\\"></svg>"
                + "<a href=\\"javascript:document.title='pwned'\\">x</a>";
            document.body.append(place);
            place.querySelector("a").click();
            const script = document.createElement("script");
            script.textContent = "document.title = 'pwned'";
            document.body.append(script);
            const frame = document.createElement("iframe");
            frame.srcdoc = "<script>parent.document.title = 'pwned'</script>";
            document.body.append(frame);
        }"""
    )
    reader.page.evaluate("() => new Promise(done => setTimeout(done, 300))")
    assert reader.page.title() == title
    assert len([text for text in reader.complaints if "Content Security Policy" in text]) == 4
    reader.complaints.clear()
    del reader.requests[1:]


def test_the_report_is_one_file_without_tracking(made: Run) -> None:
    """It names no other host but the namespace of SVG, and leaves nothing behind."""
    text = (made.report / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([a-z0-9.-]+)", text)) == {"www.w3.org"}
    assert "gtag" not in text.partition("allureReportData")[0][-4000:]
    assert not list(made.path.glob(".report*"))


def test_a_report_is_made_anew(made: Run) -> None:
    """A second time replaces the first."""
    stale = made.report / "stale"
    stale.touch()
    html.build(made)
    assert not stale.exists()


def test_a_large_run_gets_several_files(
    browser: Any, made: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What does not fit into one string of Node's; a web server shows it, and its scripts load each other."""
    monkeypatch.setattr(html, "_SINGLE_FILE_BYTES", 0)
    shutil.copytree(made.path, tmp_path / made.id)
    report = html.build(replace(made, path=tmp_path / made.id)).parent
    assert len(list(report.rglob("*"))) > 20

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=report)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        person = Reader(page)
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        person.open("A revert brings the old function back")
        page.get_by_text("xen0 call: console.log").first.click()
        expect(page.get_by_text("(XEN) the console says red").first).to_be_visible()
        page.close()
        server.shutdown()
    assert [text for text in person.complaints if "404" not in text] == []  # it looks for files that not all have


def test_without_allure_it_says_what_to_do(tmp_path: Path) -> None:
    """The command that installs it."""
    with pytest.raises(LabError, match=r"Allure 3 is not installed .*\./bootstrap\.sh report.*npm ci"):
        html.allure_command(tmp_path)


@pytest.mark.parametrize(
    ("node", "words"),
    [(None, "Node.js is not installed"), ("echo v18.2.0", r"is Node\.js v18\.2\.0; Allure 3 needs 20 or newer")],
)
def test_without_a_node_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str | None, words: str
) -> None:
    """None at all, or one that is too old."""
    script = tmp_path / "node_modules" / "allure" / "cli.js"
    script.parent.mkdir(parents=True)
    script.touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    if node is not None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "node").write_text(f"#!/bin/sh\n{node}\n")
        (tmp_path / "bin" / "node").chmod(0o755)
    with pytest.raises(LabError, match=words):
        html.allure_command(tmp_path)


def test_a_run_without_results_is_the_callers_error(tmp_path: Path) -> None:
    """Its tests never started."""
    with pytest.raises(UsageError, match="has no test results in allure-results"):
        html.build(new_run(tmp_path))


def test_when_allure_fails_its_words_are_shown(made: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its exit code is 0 even when it made nothing."""
    shutil.copytree(made.path, tmp_path / made.id)
    groups = [{"name": "bad", "matchedStatuses": ["failed"], "messageRegex": "("}]
    monkeypatch.setattr(html, "categories", lambda: groups)
    found = replace(made, path=tmp_path / made.id)
    before = found.report.stat().st_mtime_ns
    with pytest.raises(LabError, match=r"(?s)Allure made no report of .*Invalid regular expression"):
        html.build(found)
    assert found.report.stat().st_mtime_ns == before
