"""The qualification report as text: links, escaping, sound markup, and what its plots and durations say. No browser."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from selftests.plugin_world import HOSTILE
from selftests.qualifications import qualification, row, telling, trend
from xentests.errors import LabError
from xentests.report.qualification import cells, model, plots
from xentests.report.qualification import page as report
from xentests.report.qualification.model import Row
from xentests.report.qualification.rules import Answer, Class, Effect
from xentests.report.verdict import Verdict


@pytest.fixture(scope="module")
def text() -> str:
    """The telling qualification's page."""
    return report.render(telling())


def test_every_link_within_leads_somewhere(text: str) -> None:
    """No id is given twice, each is there; a finding's tests lead to the rows meant, on their architecture."""
    ids = Counter(re.findall(r' id="([^"]*)"', text))
    assert max(ids.values()) == 1
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(ids)
    broken = next(at for at, each in enumerate(telling().rows) if each.verdict is Verdict.BROKEN)
    assert f'<a href="#t{broken}">suites/migration/test_same_level.py::test_there_and_back[pv] (arm64)</a>' in text


def test_a_finding_leads_to_the_architecture_it_names() -> None:
    """Of several rows of a test, all of one effect."""
    rows = [row(arch=arch, variant=variant) for arch, variant in (("amd64", ""), ("arm64", ""), ("arm64", "uefi"))]
    wanted = [rows[0].nodeid, f"{rows[0].nodeid} on arm64", f"{rows[0].nodeid} (arm64, uefi)", "no such test arm64"]
    text = report.render(qualification(rows, findings=[model.Finding("Look.", Effect.NONE, wanted)]))
    assert re.findall(r'<li><a href="#t(\d)">', text) == ["0", "1", "2"]
    assert "<li>no such test arm64</li>" in text


def test_odd_names_are_told_apart() -> None:
    """Suites and features that differ in what an id cannot hold, or are called like a part of the page."""
    names = ["", "é", "ü", "features", "Features", "main", "t0", "a b", "a-b"]
    rows = [
        row(f"suites/x/test_y.py::test_{at}", suite=suite, feature=feature, arch="")
        for at, (suite, feature) in enumerate(itertools.product(names, names))
    ]
    ids = re.findall(r' id="([^"]*)"', report.render(qualification(rows)))
    assert len(set(ids)) == len(ids)
    assert "" not in ids


def test_a_renamed_feature_leads_to_its_suite() -> None:
    """The baseline's cell of a name that is no more; the tests are not said to be missing."""
    before = model.BaselineRow(row().nodeid, "smoke", "old name", "amd64", "", Verdict.PASSED)
    text = report.render(qualification([row()], baseline_rows=[before]))
    assert '<a href="#suite-smoke" aria-label="old name on the baseline, amd64: passed 1/1">' in text
    assert "no such test" not in text


def test_a_cell_says_the_worst() -> None:
    """Of equal effects the one that matters more; what was not decided beside what was."""

    def said(*rows: Row) -> str:
        made = [msgspec.structs.replace(each, nodeid=f"suites/s/test_f.py::{at}") for at, each in enumerate(rows)]
        (suite,) = cells.suites(qualification(made), cells.Names())
        (cell,) = suite.features[0].cells.values()
        return f"{cell.level}: {cell.word} {cell.counts} {cell.more}".strip()

    passed = row()
    flaky = row(verdict=Verdict.FAILED, cls=Class.FLAKY, effect=Effect.ACCEPT)
    lost = row(verdict=Verdict.NOT_BUILT, cls=Class.LOST, effect=Effect.ACCEPT)
    broken = row(verdict=Verdict.BROKEN, cls=Class.BROKEN, effect=Effect.UNDECIDED)
    elsewhere = row(verdict=Verdict.NOT_HERE, cls=Class.NOT_HERE)
    assert said(passed, passed) == "ok: passed 2/2"
    assert said(passed, flaky, flaky) == "warn: flaky (2) 1/3"
    assert said(passed, flaky, lost) == "warn: no longer built 1/2 1 not built"
    assert said(passed, flaky, broken) == "ask: lab broken 1/2 1 broken"
    assert said(passed, elsewhere) == "ok: passed 1/1 1 not on this machine"
    assert said(elsewhere, elsewhere) == "none: not on this machine (2)"
    assert said(row(verdict=None, cls=Class.NOT_RUN, effect=Effect.UNDECIDED), passed) == "ask: not run 1/1 1 not run"


def test_links_to_files_are_relative(text: str) -> None:
    """Below the qualification's directory; none where there is nothing; nothing else is linked to."""
    links = set(re.findall(r'href="([^#"][^"]*)"', text))
    assert "./runs/20260131-225320-1a2b3c/suites.livepatch.test_lifecycle.1" in links
    assert {link for link in links if not link.startswith("./runs/")} == {"data:,"}
    assert "evidence</a>" not in report.render(qualification([row(run="r")]))
    assert report.href("javascript:alert(1)//x") == "./javascript%3Aalert%281%29//x"
    assert report.href("//elsewhere/\ud800 a") == "./elsewhere/%3F%20a"


@pytest.mark.parametrize("answer", Answer)
def test_each_answer_has_words_and_a_sign(answer: Answer) -> None:
    """The four signs differ in shape."""
    text = report.render(qualification(answer=answer))
    assert f"<h1><span>debian:trixie:</span> {answer}</h1>" in text
    signs = {
        re.search(r'<svg class="big".*?</svg>', report.render(qualification(answer=each)), re.S).group()  # type: ignore[union-attr]
        for each in Answer
    }
    assert len(signs) == len(Answer)


def test_every_text_is_escaped_and_cleaned() -> None:
    """Whatever field of the data a guest gets hold of."""
    hostile = row(
        HOSTILE, title=HOSTILE, why=HOSTILE, message=HOSTILE, arch=HOSTILE, variant=HOSTILE, suite=HOSTILE,
        feature=HOSTILE, run=HOSTILE, evidence=HOSTILE, baseline_run=HOSTILE, rate=HOSTILE, effect=Effect.FORBIDS,
        cls=Class.REGRESSION,
    )  # fmt: skip
    measured = msgspec.structs.replace(
        trend(HOSTILE, HOSTILE, [], [2.0], says=HOSTILE), points=[model.Point(1.0, HOSTILE, HOSTILE, 3.0)]
    )
    for made in (
        report.render(qualification([hostile], trends=[measured], id=HOSTILE, release=HOSTILE, baseline=HOSTILE)),
        report.render(telling()),
    ):
        assert not re.search("<(script|img)", made)
        assert not set("\x1b\0\u202e\ud800") & set(made)
        made.encode()


class _Nesting(HTMLParser):
    """Collects what a lenient browser would put right silently."""

    VOID = frozenset({"meta", "link", "path", "circle", "rect", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.wrong: list[str] = []
        self.bare: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "th" and "scope" not in dict(attrs):
            self.bare.append(f"th at {self.getpos()}")
        if self.stack and self.stack[-1] == "table" and tag == "thead":
            self.bare.append(f"table without a caption at {self.getpos()}")
        if tag not in self.VOID:
            self.stack.append("captioned" if tag == "caption" else tag)
            if tag == "caption":
                self.stack[-2] = "captioned table"

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.stack or tag not in self.stack.pop():
            self.wrong.append(f"</{tag}> at {self.getpos()}")


def test_markup_is_sound(text: str) -> None:
    """Elements are closed in order; tables have captions, their heads a scope; no heading is left out."""
    parser = _Nesting()
    parser.feed(text)
    assert (parser.wrong, parser.stack, parser.bare) == ([], [], [])
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert levels.count(1) == 1
    assert not re.search(r"https?://|url\(|@import|<script|<link(?! rel=\"icon\" href=\"data:,\")", text)


def test_even_when_all_fail_it_stays_small() -> None:
    """Each message is shown once."""
    rows = [
        row(f"suites/a/test_b.py::test_{at}", verdict=Verdict.FAILED, cls=Class.REGRESSION, effect=Effect.FORBIDS,
            why="fails", message=f"<{at}>" + "x\n" * 1000)
        for at in range(1500)
    ]  # fmt: skip
    text = report.render(qualification(rows))
    assert text.count("&lt;7&gt;") == 1
    rows = [row(verdict=Verdict.FAILED, cls=Class.REGRESSION, effect=Effect.FORBIDS, message="briefly")]
    assert report.render(qualification(rows)).count("briefly") == 1
    assert len(text.encode()) < 5e6


def test_a_page_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses leaves the old one as it was, says so, and nothing lies about."""
    path = tmp_path / "page.html"
    report.write(qualification(), path)
    before = path.read_bytes()

    def refuse(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(LabError, match=r"cannot write the report .*page\.html: No space left on device; free some"):
            report.write(telling(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(LabError, match="No such file or directory"):
        report.write(qualification(), tmp_path / "none" / "page.html")


def test_plots_of_odd_values() -> None:
    """One point, equal ones, enormous ones, and what is no number at all."""
    assert plots.sparkline(trend("t", "n", [], [1.0])) == ""
    assert plots.sparkline(trend("t", "n", [float("nan")], [])) == ""
    one = plots.sparkline(trend("t", "n", [5.0], []))
    assert (one.count("<circle"), one.count("<polyline"), one.count("<text")) == (1, 0, 1)
    for values in ([-1.7e308, 1.7e308], [0.0, 5e-324], [1e-9, 2e-9], [float("inf"), 1.0, 2.0]):
        drawn = plots.sparkline(trend("t", "n", values, []))
        assert "nan" not in drawn
        assert "inf" not in drawn
    two = plots.sparkline(trend("t", "n", [1.0, 2.0], [4.0, 6.0, 5.0]))
    assert '<text x="50" y="10">5</text>' in two
    assert "<title>baseline: median 5 of 3</title>" in two


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (-1, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (59.9, "1 min"), (61, "1 min 1 s"),
     (3599.9, "1 h 00 min"), (11_520, "3 h 12 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    """As people say them."""
    assert report.span(seconds) == text
