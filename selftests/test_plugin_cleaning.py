"""Guest text is hostile: nothing of it reaches the terminal, JUnit or Allure but as harmless characters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from selftests.plugin_runs import Finished, project, run
from selftests.plugin_world import HOSTILE

TESTS = """
    import logging
    import sys

    import pytest

    from selftests.plugin_world import HOSTILE
    from xentests.errors import LabError, ProductFailure

    BIG = HOSTILE + "x" * 10_000_000 + "the end"


    def test_message():
        raise ProductFailure(BIG)


    def test_assert():
        said = HOSTILE * 3
        assert said == "fine", said


    def test_cause():
        try:
            raise LabError(HOSTILE)
        except LabError as error:
            raise ProductFailure("said: " + HOSTILE) from error


    def test_output():
        print(BIG)
        sys.stderr.write(HOSTILE)
        logging.getLogger("guest").warning(HOSTILE)
        assert 0


    def test_skip():
        pytest.skip("not built: " + HOSTILE)


    def test_xfail():
        pytest.xfail(HOSTILE)


    @pytest.fixture
    def broken():
        raise LabError(HOSTILE)


    def test_setup(broken):
        pass


    def test_property(record_property):
        record_property("guest", HOSTILE)


    def test_console(fake_host):
        fake_host.domain.say(BIG.encode("utf-8", "surrogatepass"))
        fake_host.domain.programs["xl"] = lambda argv: (0, BIG.encode("utf-8", "surrogatepass"))
        assert 0
"""
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
_SIZE = 1 << 20


@pytest.fixture(scope="module", params=["alone", "workers"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run over all of them, in one process and with xdist."""
    workers = ["-n", "2"] if request.param == "workers" else []
    return run(project(tmp_path_factory.mktemp("hostile"), test_hostile=TESTS), "--showlocals", *workers)


def test_every_test_came_to_its_own_end(finished: Finished) -> None:
    """Nothing that a guest says disturbs the run."""
    last = finished.output.strip().split("\n")[-1]
    assert "INTERNALERROR" not in finished.output
    for count in ("5 failed", "1 passed", "1 xfailed", "1 error", "1 not built"):
        assert count in last


def test_the_terminal_gets_no_control_characters(finished: Finished) -> None:
    """No escape sequence, no control character but newline and tab, no direction override; and not ten megabytes."""
    assert not _FORBIDDEN.search(finished.output)
    assert len(finished.output) < _SIZE
    assert "characters cut" in finished.output
    assert "the end" in finished.output


def test_the_junit_file_is_well_formed_and_clean(finished: Finished) -> None:
    """It parses, holds every test, and none of the forbidden characters."""
    text = (finished.run / "junit.xml").read_text(encoding="utf-8")
    assert not _FORBIDDEN.search(text)
    assert "#x1B" not in text
    assert len(text) < _SIZE
    assert len(list(ElementTree.fromstring(text.encode()).iter("testcase"))) == 9
    assert "]]> <script>" in finished.junit()["test_message"][0][2]


def test_allure_files_are_clean(finished: Finished) -> None:
    """Results, fixtures and attachments."""
    files = list((finished.run / "allure-results").iterdir())
    assert len(files) > 12
    for file in files:
        text = file.read_bytes().decode("utf-8")
        assert len(text) < _SIZE
        for said in _strings(json.loads(text)) if file.suffix == ".json" else [text]:
            assert not _FORBIDDEN.search(said), file


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from _strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value)


def test_attachments_keep_both_ends(finished: Finished) -> None:
    """What was cut is said; the first and the last words are there."""
    console = finished.attachment("test_console", "console.log")
    assert console.startswith("(XEN) Xen version")
    assert "<script>document.title='pwned'</script>" in console
    assert console.rstrip().endswith("the end")
    assert "characters cut" in console


def test_raw_bytes_are_kept_on_disk(finished: Finished) -> None:
    """Evidence files hold what the guest really said."""
    raw = (finished.evidence("test_console") / "console.log").read_bytes()
    assert HOSTILE.encode("utf-8", "surrogatepass") in raw


def test_a_clean_text_stays_as_it_is(tmp_path: Path) -> None:
    """Markup is no control character: viewers show it as text."""
    done = run(project(tmp_path, test_one='def test_one():\n    assert 0, "<b> & ]]> \\u00fc"\n'))
    assert done.junit()["test_one"][0][2].startswith("AssertionError: <b> & ]]> ü")
