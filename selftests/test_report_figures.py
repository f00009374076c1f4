"""Figures of one run beside those of the run before: read from JUnit, of the same release, and refused where not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xentests.errors import UsageError
from xentests.report import figures
from xentests.report.figures import Figure
from xentests.report.run import Run

JUNIT = """<testsuites><testsuite>
<testcase classname="suites.migration.test_levels" name="test_up[pv]"><properties>
<property name="verdict.call" value="passed"/>{}</properties></testcase>
</testsuite></testsuites>"""


def made(root: Path, name: str, *, release: str = "debian:trixie", **measured: object) -> Run:
    run = Run(root / name)
    run.path.mkdir()
    run.write_manifest({"release": release, "arch": "amd64"})
    items = (f'<property name="figure.{key}" value="{value}"/>' for key, value in measured.items())
    run.junit.write_text(JUNIT.format("".join(items)))
    return run


OLDEST, OLDER, OTHER, NEWER, NEWEST = (f"2026010{day}-000000-00000{day}" for day in range(1, 6))


def test_beside_the_run_before(tmp_path: Path) -> None:
    """Not an other release's, a later run's, a killed one's, nor one that measured nothing of the kind."""
    made(tmp_path, OLDEST, downtime=9)
    before = made(tmp_path, OLDER, downtime=0.5, gone=1)
    made(tmp_path, OTHER, release="debian:bookworm", downtime=7)
    run = made(tmp_path, NEWER, downtime=0.4, fresh=3)
    made(tmp_path, NEWEST, downtime=8)
    made(tmp_path, "20260103-010000-00000a", peak=1)
    killed = made(tmp_path, "20260103-020000-00000b", downtime=6)
    killed.manifest.unlink()
    (tmp_path / "latest").symlink_to(NEWEST)
    assert figures.predecessor(run) == before
    test = "migration.test_levels.test_up[pv]"
    assert figures.compared(run, before) == [
        Figure(test, "downtime", 0.4, 0.5),
        Figure(test, "fresh", 3.0),
    ]
    assert [figure.change for figure in figures.compared(run, before)] == ["-20 %", ""]
    oldest = Run(tmp_path / OLDEST)
    assert figures.predecessor(oldest) is None
    assert figures.compared(oldest, None) == [Figure(test, "downtime", 9.0)]


def test_what_cannot_be_read_has_none(tmp_path: Path) -> None:
    """A run without JUnit, one cut off, and a value that is no number."""
    run = made(tmp_path, OLDER, downtime="soon")
    assert figures.measured(run) == {}
    run.junit.write_text("<testsuites><testcase")
    assert figures.measured(run) == {}
    run.junit.unlink()
    assert figures.measured(run) == {}
    assert figures.predecessor(run) is None


@pytest.mark.parametrize("manifest", [json.dumps({"release": "debian:bookworm", "arch": "amd64"}), "[]", "{"])
def test_another_releases_say_nothing(tmp_path: Path, manifest: str) -> None:
    """Asked for by name, such a comparison is the caller's error."""
    run, other = made(tmp_path, NEWER, downtime=1), made(tmp_path, OLDER, downtime=2)
    figures.require_same(run, other)
    other.manifest.write_text(manifest)
    with pytest.raises(UsageError, match=r"of release .*say nothing about each other"):
        figures.require_same(run, other)
