"""Runs: their directories, ``latest``, several at once, xdist workers, and Ctrl-C once and twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from selftests.plugin_runs import LIMIT_S, command, environment, project, run
from xentests.deadline import until
from xentests.errors import LabError

TESTS = '''
    """Some tests."""
    import os

    import pytest


    @pytest.mark.parametrize("number", range(6))
    def test_number(fake_host, number):
        assert number != 3


    def test_not_built():
        pytest.skip("not built: CONFIG_X is not set")
'''


def test_a_run_has_everything_in_its_directory(tmp_path: Path) -> None:
    """JUnit, Allure's results with their environment, categories and executor, the manifest, evidence; and latest."""
    done = run(project(tmp_path, test_some=TESTS), "--xen-release", "debian:bookworm", "--xen-arch", "arm64")
    assert (tmp_path / "artifacts" / "latest").readlink() == Path(done.run.name)
    results = done.run / "allure-results"
    properties = (results / "environment.properties").read_text()
    assert "release=debian:bookworm\n" in properties
    assert "arch=arm64\n" in properties
    assert json.loads((results / "executor.json").read_text())["buildName"] == done.run.name
    assert "Not built" in {group["name"] for group in json.loads((results / "categories.json").read_text())}
    assert json.loads((done.run / "run.json").read_text())["release"] == "debian:bookworm"
    assert f"artifacts: {done.run}" in done.output
    assert f"xentests report {done.run.name}" in done.output
    assert "xen release: debian:bookworm arm64" in done.output
    assert '<property name="release" value="debian:bookworm"' in (done.run / "junit.xml").read_text()


def test_history_tells_releases_apart(tmp_path: Path) -> None:
    """The same test on another release or architecture has another history; on the same it has the same."""
    ids = {}
    for name, arguments in {
        "a": ["--xen-release", "debian:trixie"],
        "b": ["--xen-release", "debian:trixie"],
        "c": ["--xen-release", "debian:bookworm"],
        "d": ["--xen-release", "debian:trixie", "--xen-arch", "arm64"],
    }.items():
        done = run(project(tmp_path / name, test_one="def test_one():\n    pass\n"), *arguments)
        ids[name] = done.allure()["test_one"]["historyId"]
    assert ids["a"] == ids["b"]
    assert len(set(ids.values())) == 3


def test_reports_asked_for_elsewhere_are_written_too(tmp_path: Path) -> None:
    """--junitxml and --alluredir of the caller's."""
    folder = project(tmp_path, test_one="def test_one():\n    pass\n")
    done = run(folder, "--junitxml", "mine.xml", "--alluredir", "mine")
    assert (done.run / "junit.xml").read_text() == (folder / "mine.xml").read_text()
    assert len(list((folder / "mine").glob("*-result.json"))) == 1
    assert done.allure()["test_one"]["status"] == "passed"


def test_workers_share_one_directory(tmp_path: Path) -> None:
    """With xdist there is one run, one JUnit file and one summary, whoever ran a test."""
    done = run(project(tmp_path, test_some=TESTS), "-n", "2")
    assert len(done.allure()) == 7
    assert len(done.junit()) == 7
    assert [status for status, _, _ in done.junit()["test_number[3]"]] == ["failure"]
    assert (done.evidence("test_number-3") / "console.log").is_file()
    assert "not built: CONFIG_X is not set (1 test)" in done.output
    assert "1 failed, 5 passed, 1 not built" in done.output


def test_a_worker_that_dies_breaks_its_test(tmp_path: Path) -> None:
    """It is broken, everywhere, and the others are not."""
    text = "import os\n\n\ndef test_dies():\n    os._exit(3)\n\n\ndef test_lives():\n    pass\n"
    done = run(project(tmp_path, test_dying=text), "-n", "1")
    assert "BROKEN suites/area/test_dying.py::test_dies" in done.output
    assert done.allure()["test_dies"]["status"] == "broken"
    assert "crashed while running" in done.allure()["test_dies"]["statusDetails"]["message"]
    assert [tag for tag, _, _ in done.junit()["test_dies"]] == ["error"]
    assert done.allure()["test_lives"]["status"] == "passed"


def test_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    """Four runs started together have four directories; latest is one of them."""
    folder = project(tmp_path, test_one="def test_one():\n    pass\n")
    running = [_start(folder) for _ in range(4)]
    outputs = [process.communicate(timeout=LIMIT_S)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    runs = [path for path in (folder / "artifacts").iterdir() if not path.is_symlink()]
    assert len(runs) == 4
    assert (folder / "artifacts" / "latest").resolve() in [path.resolve() for path in runs]
    for path in runs:
        assert len(list((path / "allure-results").glob("*-result.json"))) == 1


def test_somebodys_directory_called_latest_stays(tmp_path: Path) -> None:
    """It is not a link of ours: it is left alone."""
    folder = project(tmp_path, test_one="def test_one():\n    pass\n")
    (folder / "artifacts" / "latest").mkdir(parents=True)
    (folder / "artifacts" / "latest" / "mine").touch()
    assert run(folder).code == 0
    assert (folder / "artifacts" / "latest" / "mine").exists()


def test_an_interrupted_collection_error_is_kept(tmp_path: Path) -> None:
    """A module that cannot be imported makes a run that says so."""
    done = run(project(tmp_path, test_bad="import nothing_of_that_name\n"))
    assert done.code == pytest.ExitCode.INTERRUPTED
    assert "nothing_of_that_name" in (done.run / "junit.xml").read_text()


FULL = """
    import builtins
    import io

    import pytest


    @pytest.fixture(autouse=True, scope="session")
    def full():
        def refuse(path, *arguments, **keywords):
            if "allure-results" in str(path) or "junit" in str(path):
                raise OSError(28, "No space left on device", str(path))
            return opened(path, *arguments, **keywords)

        opened = builtins.open
        builtins.open = io.open = refuse


    def test_one():
        pass
"""


def test_a_full_disk_is_said_in_a_line(tmp_path: Path) -> None:
    """Not in a traceback of pytest's; and the run is not green."""
    done = run(project(tmp_path, test_one=FULL))
    assert done.code == pytest.ExitCode.INTERNAL_ERROR
    assert "xentests: the files of this run are incomplete: [Errno 28] No space left on device" in done.output
    assert "--xen-artifacts DIR" in done.output
    assert "Traceback" not in done.output
    assert "INTERNALERROR" not in done.output


WAITING = '''
    """A test that waits, on a host."""
    import pathlib
    import threading

    import pytest


    @pytest.fixture(scope="session")
    def slow_end(request):
        yield
        pathlib.Path("ending").touch()
        threading.Event().wait({wait})


    def test_waits(slow_end, bench):
        host = bench.host()
        pathlib.Path("hosts").write_text(str(host.domain.ended))
        threading.Event().wait(60)
'''


def _start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _await(path: Path) -> None:
    until(path.exists, what=f"{path}", deadline=60.0, error=LabError)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_hosts(tmp_path: Path, times: int) -> None:
    """Once, and again while the first is being obeyed: every host is closed, and pytest ends soon."""
    folder = project(tmp_path, test_waiting=WAITING.format(wait=0 if times == 1 else 60))
    process = _start(folder)
    _await(folder / "hosts")
    until((folder / "hosts").read_text, what="a host", deadline=30.0, error=LabError)
    process.send_signal(signal.SIGINT)
    if times == 2:
        _await(folder / "ending")
        process.send_signal(signal.SIGINT)
    start = time.monotonic()
    output = process.communicate(timeout=30)[0].decode()
    assert time.monotonic() - start < 10, output
    assert process.returncode != 0
    assert Path((folder / "hosts").read_text()).exists(), output


def test_ctrl_c_with_workers(tmp_path: Path) -> None:
    """xdist's controller passes it on; nothing of the run stays behind."""
    folder = project(tmp_path, test_waiting=WAITING.format(wait=0))
    process = _start(folder, "-n", "1")
    _await(folder / "hosts")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)

    def gone() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    until(gone, what="end of the workers", deadline=10.0, error=LabError)
