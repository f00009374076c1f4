"""``xentests compare`` and ``xentests flakes``: what they find in a history, and what they print of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from selftests.test_history import made
from xentests import cli_qualify
from xentests.cli import app
from xentests.report.history import archive, database
from xentests.report.records import Record
from xentests.report.verdict import Verdict

GOOD, BAD = Verdict.PASSED, Verdict.FAILED
TEST = "suites/a/test_b.py::test_"


def fill(where: Path, root: Path, release: str, *nights: dict[str, Verdict], boot_s: float) -> None:
    """A run a night, of tests by their names, each with a figure that is a little larger every night."""
    with database.opened(str(where)) as engine:
        for number, night in enumerate(nights):
            figures = {"boot [s]": boot_s + 0.01 * number}
            kept = (
                Record(TEST + test, verdict, 100.0 + number, 1.5, "", f"why {test}\nand more", "", figures)
                for test, verdict in night.items()
            )
            archive.add_run(engine, made(root, f"2026010{number}-000000-{release[7:13]}", *kept, release=release))


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """Five nights of two releases: one test regressed, one is fixed, one is of one side only, one is flaky."""
    where = tmp_path / "history.sqlite"
    old = {"same": GOOD, "worse": GOOD, "fixed": BAD, "gone[x]": GOOD}
    new = {"same": GOOD, "worse": BAD, "fixed": GOOD}
    fill(where, tmp_path / "old", "debian:bookworm", *([old] * 5), boot_s=4.0)
    flaky = [{**new, "shaky": BAD if night in (1, 3) else GOOD} for night in range(5)]
    fill(where, tmp_path / "new", "debian:trixie", *flaky, boot_s=6.0)
    return where


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are not folded, whatever the terminal."""
    monkeypatch.setattr(cli_qualify, "out", Console(highlight=False, width=160))


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def lines(text: str) -> list[str]:
    return [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]


def test_two_releases_beside_each_other(history: Path) -> None:
    """Verdicts that differ with both sides', what only one side has as a count, figures by the statistical test."""
    done = run("compare", "debian:bookworm", "debian:trixie", "--history", str(history))
    assert done.exit_code == 0
    said = lines(done.output)
    assert (
        "debian:bookworm and debian:trixie: 1 tests with equal verdicts, 2 with others; 1 only in debian:bookworm, "
        "1 only in debian:trixie" in said
    )
    assert f"{TEST}worse amd64 passed failed why worse" in said
    assert f"{TEST}fixed amd64 failed passed why fixed" in said
    assert not any("test_same amd64 passed" in line for line in said)
    assert "3 figures on both sides, 3 changed" in said
    assert any(line.startswith(f"{TEST}same amd64 boot [s] +49.8 %, medians of 5 and 5 values") for line in said)


def test_as_json(history: Path) -> None:
    done = run("compare", "debian:bookworm", "debian:trixie", "--history", str(history), "--json")
    found = json.loads(done.output)
    assert found["same"] == 1
    assert {each["nodeid"]: (each["first"], each["second"]) for each in found["differences"]} == {
        f"{TEST}worse": ("passed", "failed"),
        f"{TEST}fixed": ("failed", "passed"),
        f"{TEST}gone[x]": ("passed", None),
        f"{TEST}shaky": (None, "passed"),
    }


def test_a_run_against_its_release(history: Path, tmp_path: Path) -> None:
    """Any of the three names will do; a release beside itself differs in nothing."""
    (newest,) = (tmp_path / "new").glob("20260104*")
    assert "0 with others" in run("compare", newest.name, "debian:trixie", "--history", str(history)).output
    itself = run("compare", "debian:trixie", "debian:trixie", "--history", str(history))
    assert "4 figures on both sides, 0 changed" in itself.output


@pytest.mark.parametrize("words", [("compare", "debian:bookworm", "debian:sid"), ("flakes", "debian:sid")])
def test_a_name_that_the_history_has_not(history: Path, words: tuple[str, ...]) -> None:
    done = run(*words, "--history", str(history))
    assert done.exit_code != 0
    assert "debian:sid" in str(done.exception)
    assert "debian:bookworm, debian:trixie" in str(done.exception)


def test_what_is_flaky(history: Path) -> None:
    """Both verdicts on one revision, with the rate and its interval; what fails every night is not."""
    done = run("flakes", "--history", str(history))
    (row,) = (line for line in lines(done.output) if "test_" in line)
    assert row.startswith(f"{TEST}shaky debian:trixie amd64 2 of 5 ")
    (flake,) = json.loads(run("flakes", "debian:trixie", "--history", str(history), "--json").output)
    assert (flake["rate"]["failed"], flake["rate"]["runs"]) == (2, 5)
    assert 0 < flake["rate"]["low"] < 0.4 < flake["rate"]["high"] < 1
    assert run("flakes", "debian:bookworm", "--history", str(history)).output == (
        "no test has both passed and failed on one revision\n"
    )
