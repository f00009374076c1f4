"""Qualifications of a small project by the real runner: answers, files, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selftests.plugin_runs import environment
from selftests.project import ROOT
from selftests.qualify_world import World, world
from xentests.errors import LabError, UsageError
from xentests.qualify import plan
from xentests.report.qualification import model
from xentests.report.qualification.model import Qualification
from xentests.report.qualification.rules import Answer, Class
from xentests.report.verdict import Verdict

TESTS = 2 * 17
"""On both architectures."""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return world(tmp_path)


def classes(found: Qualification) -> dict[str, set[Class]]:
    by_name: dict[str, set[Class]] = {}
    for row in found.rows:
        by_name.setdefault(row.nodeid.partition("::")[2].partition("[")[0], set()).add(row.cls)
    return by_name


def test_a_release_and_the_next(small: World) -> None:
    """Qualified, and then another release against it, with one of each fault."""
    first = small.qualify("debian:bookworm")
    assert first.answer is Answer.CONDITIONAL
    assert classes(first) == {
        "test_passes": {Class.NEW},
        "test_fails": {Class.NEW},
        "test_breaks": {Class.NEW},
        "test_not_built": {Class.NEW},
        "test_known": {Class.KNOWN},
        "test_slow": {Class.NEW},
    }
    assert len(first.rows) == TESTS
    for sign in ("fail", "break", "slim"):
        (small.area / sign).touch()
    second = small.qualify("debian:trixie", "debian:bookworm")
    assert second.answer is Answer.NO
    assert second.answer.exit_code == 1
    assert classes(second) == {
        "test_passes": {Class.PASSED},
        "test_fails": {Class.REGRESSION},
        "test_breaks": {Class.BROKEN},
        "test_not_built": {Class.LOST},
        "test_known": {Class.KNOWN},
        "test_slow": {Class.PASSED},
    }
    said = small.said.getvalue()
    assert "failed: amd64 suites/area/test_it.py::test_fails: xentests.errors.ProductFailure: the sign says so" in said
    (regression,) = (finding for finding in second.findings if "the sign says so" in finding.text)
    assert "it passed on debian:bookworm" in regression.text
    assert len(regression.tests) == 2  # one an architecture
    (lost,) = (finding for finding in second.findings if "CONFIG_X" in finding.text)
    assert lost.text.startswith("Left out of this release, and in debian:bookworm: CONFIG_X is not set")
    (small.area / "fail").unlink()
    third = small.qualify("debian:trixie", "debian:bookworm")
    assert third.answer is Answer.CONDITIONAL
    assert classes(third)["test_fails"] == {Class.FLAKY}  # the same revision has both


def test_the_files(small: World) -> None:
    """All that a pipeline takes is there, and reads back."""
    qualification = small.begin()
    found = small.run(qualification)
    for name in ("index.html", "qualification.json", "junit.xml", "kcidb.json"):
        assert (qualification.path / name).stat().st_size > 500
    assert model.read(qualification.path / "qualification.json") == found
    assert found.trends
    assert found.tested[0].facts["xen.build-id"] == "abc"
    assert {job.name: job.tests for job in found.jobs} == {"area-amd64": 17, "area-arm64": 17}


def start(small: World) -> subprocess.Popen[bytes]:
    """``xentests qualify`` of the small project, in a process of its own; it prints the qualification's name."""
    code = (
        "import sys, pathlib; from rich.console import Console; from selftests.qualify_world import World;"
        "small = World(pathlib.Path(sys.argv[1])); q = small.begin(); print(q.plan.id, flush=True); small.run(q)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(small.folder)], stdout=subprocess.PIPE, cwd=ROOT)


def wait_for(qualification: plan.Qualification, process: subprocess.Popen[bytes], records: int) -> None:
    """Until that many tests have ended."""
    deadline = time.monotonic() + 60
    while sum(len(qualification.progress(job).records) for job in qualification.jobs) < records:
        assert time.monotonic() < deadline
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)


def comparable(found: Qualification) -> list[tuple[object, ...]]:
    return [(row.nodeid, row.arch, row.variant, row.verdict, row.cls, row.why, row.message) for row in found.rows]


def left_of(path: Path) -> list[int]:
    """Processes that have ``path`` in their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(path) in line:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Qualification:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        whole = world(folder)
        (whole.area / "fail").touch()
        return whole.qualify()


@pytest.mark.parametrize("attempt", range(5))
def test_killed_at_any_moment_and_resumed(small: World, undisturbed: Qualification, attempt: int) -> None:
    """Killed with SIGKILL, it leaves no pytest; resumed, the report is that of an undisturbed run."""
    (small.area / "fail").touch()
    process = start(small)
    assert process.stdout is not None
    name = process.stdout.readline().decode().strip()
    qualification = plan.find(small.folder / "artifacts", name)
    # Anywhere between its first and its last test, the same five moments in every run of this test.
    wait_for(qualification, process, random.Random(attempt).randrange(TESTS - 4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = sum(len(qualification.progress(job).records) for job in qualification.jobs)
    resumed = small.run(qualification)  # waits for the lock, hence for the killed one's tests
    assert comparable(resumed) == comparable(undisturbed)
    assert before < TESTS
    assert not left_of(qualification.path)
    # At most what was under way when it was killed has run twice: two workers, one or two tests each.
    ran = (small.area / "ran").read_text().splitlines()
    assert 24 <= len(ran) <= 24 + 4


def test_interrupted_by_its_user(small: World) -> None:
    """Ctrl-C ends the tests, too, and what they had done counts."""
    process = start(small)
    assert process.stdout is not None
    name = process.stdout.readline().decode().strip()
    qualification = plan.find(small.folder / "artifacts", name)
    wait_for(qualification, process, 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    process.stdout.close()
    assert not left_of(qualification.path)
    assert len(small.run(qualification).rows) == TESTS


def test_a_finished_one_is_judged_again_and_nothing_runs(small: World) -> None:
    """Resuming what is done runs no test: the report is made anew."""
    qualification = small.begin(arches=("amd64",))
    small.run(qualification)
    ran = (small.area / "ran").read_text()
    again = small.run(qualification)
    assert (small.area / "ran").read_text() == ran
    assert len(again.rows) == TESTS // 2


def test_a_suite_that_cannot_be_collected_leaves_it_open(small: World) -> None:
    """Nobody takes what did not run for what passed."""
    (small.area / "test_it.py").write_text("def test_x(:\n")
    found = small.qualify(arches=("amd64",))
    assert found.answer is Answer.UNDECIDED
    assert [bool(job.problem) for job in found.jobs] == [True]
    assert any("could not be collected: suites/area/test_it.py: " in reason for reason in found.reasons)


def test_a_profile_that_selects_nothing_leaves_it_open(small: World) -> None:
    """Keywords that match no test are a hole, not a pass."""
    profile = small.folder / "none.toml"
    profile.write_text('[[job]]\nsuite = "area"\nkeywords = "no_such_test"\n')
    found = small.qualify(arches=("amd64",), profile=str(profile))
    assert found.answer is Answer.UNDECIDED
    assert "no test was selected" in found.reasons[0]


def test_a_part_of_the_profile(small: World) -> None:
    """What options leave out is known to be left out; options that leave out nothing are none."""
    plan = small.begin(arches=("amd64",), suites=("area",)).plan
    assert plan.only == "--suite area --arch amd64"
    assert [(each.what, each.why) for each in plan.left_out] == [("area-arm64", "not asked for (--suite, --arch)")]
    assert not small.begin(arches=("amd64", "arm64")).plan.only


def test_a_test_that_kills_its_worker_is_broken_once(small: World) -> None:
    """A process that dies over a test does not come back to it, and the others run."""
    (small.area / "test_dies.py").write_text("import os\ndef test_dies():\n    os._exit(7)\n")
    found = small.qualify(arches=("amd64",))
    (row,) = (row for row in found.rows if row.nodeid.endswith("test_dies"))
    assert row.verdict is Verdict.BROKEN
    assert len(found.rows) == 18
    assert found.answer is Answer.UNDECIDED  # its module is hidden: nothing else of it was decided


def test_what_is_asked_for_wrongly(small: World, tmp_path: Path) -> None:
    """Said before anything runs, and nothing is left of it."""
    wrong: list[tuple[dict[str, object], str]] = [
        ({"against": "debian:bullseye"}, "the history is empty"),
        ({"profile": "weekly"}, "there are nightly, release, smoke"),
        ({"suites": ("smoke",)}, "not in this profile, which has area"),
        ({"arches": ("riscv",)}, "nothing to run"),
        ({"release": "debian:potato"}, "unknown release"),
        ({"quarantine": tmp_path / "none.toml"}, "No such file"),
    ]
    for changes, message in wrong:
        with pytest.raises(UsageError, match=message):
            small.begin(**changes)  # type: ignore[arg-type]
    assert not (small.folder / "artifacts").exists()
    small.qualify("debian:trixie", arches=("amd64",))
    with pytest.raises(UsageError, match="It has debian:trixie"):
        small.begin(against="debian:bullseye")


def test_a_damaged_history_loses_nothing(small: World) -> None:
    """It says what to do, and the runs are there to be judged when that is done."""
    qualification = small.begin(arches=("amd64",))
    history = Path(small.history)
    history.write_bytes(b"no database" * 1000)
    with pytest.raises(LabError, match=r"move .* aside"):
        small.run(qualification)
    history.unlink()
    assert len(small.run(qualification).rows) == 17


def test_a_report_that_cannot_be_written(small: World) -> None:
    """The runs stay, and resuming makes the report."""
    qualification = small.begin(arches=("amd64",))
    (qualification.path / "index.html").mkdir()
    with pytest.raises(LabError, match=r"index\.html"):
        small.run(qualification)
    (qualification.path / "index.html").rmdir()
    assert len(small.run(qualification).rows) == 17


def test_of_another_version(small: World) -> None:
    """A plan or a report of a layout that is not known is refused."""
    qualification = small.begin(arches=("amd64",))
    small.run(qualification)
    for name, read in (("plan.json", plan.load), ("qualification.json", model.read)):
        path = qualification.path / name
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "schema": 99}))
        with pytest.raises(UsageError, match="version 99"):
            read(path.parent if name == "plan.json" else path)


def test_quarantine(small: World, tmp_path: Path) -> None:
    """A failure in quarantine does not forbid; an expired entry leaves it open, and is said at once."""
    (small.area / "fail").touch()
    file = tmp_path / "quarantine.toml"
    entry = '[[test]]\nid = "suites/area/test_it.py::test_f*"\nowner = "jane"\nreason = "bug 1"\nuntil = {}\n'
    file.write_text(entry.format("2999-01-01"))
    small.qualify("debian:bookworm", quarantine=file)
    (small.area / "fail").touch()
    found = small.qualify("debian:trixie", quarantine=file, arches=("amd64",))
    assert classes(found)["test_fails"] == {Class.QUARANTINED}
    assert found.answer is Answer.CONDITIONAL
    file.write_text(entry.format("2020-01-01"))
    expired = small.qualify("debian:trixie", quarantine=file, arches=("amd64",))
    assert classes(expired)["test_fails"] == {Class.EXPIRED}
    assert expired.answer is Answer.UNDECIDED
    assert "quarantine expired on 2020-01-01" in small.said.getvalue()
