"""A run's directory, its names and files, without pytest; and what the report's small parts make of texts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from selftests.project import ROOT
from xentests.errors import LabError, UsageError
from xentests.report import allure_results, junit
from xentests.report.allure_results import subject_of
from xentests.report.run import Run, file_name, find_run, folder_name, new_run, point_latest, write_json
from xentests.text import display

HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@pytest.mark.parametrize(
    ("nodeid", "name"),
    [
        ("suites/smoke/test_boot.py::test_up", "suites.smoke.test_boot.test_up"),
        ("suites/smoke/test_boot.py::test_up[pv-2]", "suites.smoke.test_boot.test_up-pv-2"),
        ("suites/smoke/test_boot.py::TestIt::test_up", "suites.smoke.test_boot.TestIt.test_up"),
        ("suites/smoke/test_boot.py", "suites.smoke.test_boot"),
    ],
)
def test_plain_tests_have_plain_folders(nodeid: str, name: str) -> None:
    """A reader finds a test's folder by its name."""
    assert folder_name(nodeid) == name


AWKWARD = [
    "a.py::t[../../etc/passwd]",
    "../../a.py::t",
    "a.py::t[]",
    "a.py::t[ä ö]",
    "a.py::t[\ud800]",
    "a.py::t[\x1b[31m]",
    "a.py::t[" + "x" * 4000 + "]",
    "a.py::t[" + "x" * 4001 + "]",
    "-rf::t",
    "...",
    "",
    "a.py::t[a/b]",
    "a.py::t[a b]",
    "a.py::t[a_b]",
]


def test_awkward_tests_have_harmless_folders_of_their_own() -> None:
    """Whatever is in an id, the name is short, inside the run's directory, and nobody else's."""
    names = [folder_name(nodeid) for nodeid in AWKWARD]
    assert len(set(names)) == len(names)
    for name in names:
        assert HARMLESS.fullmatch(name), name


def test_a_file_name_is_harmless() -> None:
    """Names of hosts come from fixtures, not from guests, but still."""
    assert file_name("template debian:trixie") == "template_debian_trixie"
    assert file_name("../..") == "unnamed"


def test_runs_have_names_of_their_own(tmp_path: Path) -> None:
    """Also within one second."""
    runs = [new_run(tmp_path) for _ in range(20)]
    assert len({run.id for run in runs}) == 20
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", runs[0].id)


def test_latest_is_a_relative_link(tmp_path: Path) -> None:
    """The directory can be moved or archived with it."""
    for run in (new_run(tmp_path), new_run(tmp_path)):
        point_latest(run)
        assert (tmp_path / "latest").readlink() == Path(run.id)
    assert find_run(tmp_path).path == run.path.resolve()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_run_is_found_by_name_beginning_or_path(tmp_path: Path) -> None:
    """And if not, there is a list of what there is."""
    runs = [Run(tmp_path / name) for name in ("20260101-000000-aaaaaa", "20260102-000000-bbbbbb")]
    for run in runs:
        run.allure_results.mkdir(parents=True)
    assert find_run(tmp_path, runs[0].id).id == runs[0].id
    assert find_run(tmp_path, "20260102").id == runs[1].id
    assert find_run(tmp_path, str(runs[0].path)).id == runs[0].id
    with pytest.raises(UsageError, match=r"'2026': is not the name of one run.*bbbbbb, 20260101-000000-aaaaaa"):
        find_run(tmp_path, "2026")
    with pytest.raises(UsageError, match="'nothing': no such run"):
        find_run(tmp_path, "nothing")
    with pytest.raises(UsageError, match="none yet; a test run makes one"):
        find_run(tmp_path / "empty")


def test_facts_of_workers_are_put_together(tmp_path: Path) -> None:
    """Lists are joined; of other values the first worker's stands; a later word of one worker replaces its own."""
    run = new_run(tmp_path)
    run.add_facts("gw1", {"xen": "4.20", "kept": ["b"]})
    run.add_facts("gw0", {"xen": "?", "kept": ["a"]})
    run.add_facts("gw0", {"xen": "4.20"})
    assert run.facts() == {"xen": "4.20", "kept": ["a", "b"]}
    run.write_manifest({"exit_status": 0})
    assert json.loads(run.manifest.read_text()) == {"schema": 1, "run": run.id, "exit_status": 0, "facts": run.facts()}


def test_a_damaged_facts_file_is_no_obstacle(tmp_path: Path) -> None:
    """A worker was killed while it wrote, on a file system that does not rename atomically."""
    run = new_run(tmp_path)
    run.add_facts("gw0", {"xen": "4.20"})
    (run.path / "facts" / "gw1.json").write_text('{"xen": ')
    assert run.facts() == {"xen": "4.20"}


def test_a_full_disk_is_the_labs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing half-written."""

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(LabError, match="No space left on device; free some space"):
        write_json(tmp_path / "x.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_junit_file_is_said(tmp_path: Path) -> None:
    """pytest was killed while it wrote."""
    (tmp_path / "junit.xml").write_text("<testsuites><testsuite")
    with pytest.raises(LabError, match="left no readable JUnit file"):
        junit.settle(tmp_path / "junit.xml", {})


@pytest.mark.parametrize(
    ("nodeid", "docstring", "expected"),
    [
        ("suites/livepatch/test_revert.py::test_it_works", "It works.\n\nMore.", ("Livepatch", "Revert", "It works")),
        ("suites/livepatch/test_revert.py::test_it[x]", None, ("Livepatch", "Revert", "It [x]")),
        ("suites/a/b/test_c.py::TestD::test_e", "Two\nlines.", ("A / B", "C", "Two lines")),
        ("test_x.py::test_", "", ("Tests", "X", "Test_")),
        ("::test_y", None, ("Tests", "Tests", "Y")),
    ],
)
def test_areas_and_titles(nodeid: str, docstring: str | None, expected: tuple[str, str, str]) -> None:
    """From folder, module and docstring."""
    subject = subject_of(nodeid, docstring)
    assert (subject.epic, subject.feature, subject.title) == expected


def test_every_failure_falls_into_a_category() -> None:
    """The expressions say the same in Python as in Allure's Java and JavaScript; the first that matches counts."""

    def category(status: str, message: str) -> str:
        for group in allure_results.categories():
            if status in group["matchedStatuses"] and re.search(group.get("messageRegex", ""), message):
                return str(group["name"])
        return ""

    crash = "xentests.errors.HypervisorCrash: xen0: crash (xen-panic):\n(XEN) ..."
    assert category("failed", crash) == "Hypervisor or dom0 crash"
    assert category("failed", "AssertionError: said HypervisorCrash") == "Product failures"
    assert category("failed", "xentests.host.hang.Dom0Hang: xen0: ...") == "Host hangs"
    assert category("broken", "xentests.errors.DomainGone: xen0") == "Lab: a machine died or found no room"
    assert category("broken", "xentests.tools.ToolFailed: mke2fs") == "Lab: other"
    assert category("broken", "KeyError: 'x'") == "Test or harness is wrong"
    assert category("skipped", "not built: CONFIG_X is not set") == "Not built"
    assert category("skipped", "not on this machine: no VMX") == "Not on this machine"
    assert category("skipped", "blocked: failed before, in x") == "Blocked by an earlier failure"
    assert category("skipped", "Skipped: not today") == ""


def test_environment_properties_hold_any_value(tmp_path: Path) -> None:
    """One line a key, in ASCII, whatever a release calls itself."""
    run = new_run(tmp_path)
    allure_results.write_run_files(run, {"host cpu": "Größe=1\nx: \\ \u2028", "release": "debian:trixie"}, name="n")
    text = (run.allure_results / "environment.properties").read_bytes()
    assert text.isascii()
    assert text.split(b"\n") == [b"host_cpu=Gr\\u00f6\\u00dfe=1 x: \\\\", b"release=debian:trixie", b""]


def test_display_is_idempotent() -> None:
    """Reports are cleaned by more than one hand."""
    text = "\x1b[1m" + "x" * 50_000 + "\r\n" + "line\n" * 50_000
    once = display(text, limit=10_000)
    assert display(once, limit=10_000) == once
    assert len(once) < 10_200
    assert "49000 characters cut" in once


def test_who_works_on_a_run_is_waited_for(tmp_path: Path) -> None:
    """A process that holds a run, and is killed, holds it no more."""
    run = new_run(tmp_path)
    code = "import sys; from pathlib import Path; from xentests.report.run import Run; Run(Path(sys.argv[1])).hold();"
    argv = [sys.executable, "-c", f"{code} print('holds', flush=True); sys.stdin.read()", str(run.path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holds\n"
        waiting = threading.Thread(target=run.wait_until_left)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        holder.kill()
        waiting.join(10)
        assert not waiting.is_alive()
