"""One step: what records mean for a commit, and real pytests on a tiny project: wrong tests, time limits, leftovers."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from selftests.plugin_runs import environment, project
from selftests.test_bisect_tree import Repository
from xentests.bisect.step import Outcome, PytestRunner, Question, Result, judge
from xentests.bisect.tree import Commit, Tree, Worktree
from xentests.errors import UsageError
from xentests.report.records import Record
from xentests.report.verdict import Verdict

NO_BUILD = (
    "xentests.errors.BuildFailed: source:/x amd64: does not build (make build, with gcc); the first error:\n"
    "common/code.c:3:1: error: expected ';'\nThe whole output: /y"
)


def record(verdict: Verdict, message: str = "", test: str = "test_a") -> Record:
    return Record(f"suites/test_x.py::{test}", verdict, 1.0, 1.0, message=message)


@pytest.mark.parametrize(
    ("records", "result", "reason", "lasting"),
    [
        ([record(Verdict.PASSED)], Result.GOOD, "", False),
        ([record(Verdict.FAILED, "AssertionError: 1\nassert 1 == 2")], Result.BAD, "AssertionError: 1", False),
        ([record(Verdict.KNOWN, "Xen 4.14 says so")], Result.BAD, "Xen 4.14 says so", False),
        ([record(Verdict.FAILED, "[XPASS(strict)] mended")], Result.GOOD, "", False),
        ([record(Verdict.BROKEN, "LabError: no")], Result.SKIP, "broken: LabError: no", False),
        ([record(Verdict.BROKEN, "xentests.errors.UsageError: n")], Result.SKIP, "broken: xentests.errors.", True),
        ([record(Verdict.FAILED, NO_BUILD)], Result.SKIP, "does not build: common/code.c:3:1: error: expected", True),
        ([record(Verdict.NOT_BUILT, "not built: CONFIG_X")], Result.SKIP, "not built: CONFIG_X", True),
        ([record(Verdict.NOT_HERE, "not on this machine: VMX")], Result.SKIP, "not on this machine: VMX", True),
        ([record(Verdict.BLOCKED, "blocked: before")], Result.SKIP, "blocked: before", False),
        ([record(Verdict.PASSED), record(Verdict.FAILED, "x", "test_b")], Result.BAD, "x", False),
        ([record(Verdict.FAILED, "x"), record(Verdict.BROKEN, "y", "test_b")], Result.BAD, "x", False),
        ([record(Verdict.PASSED), record(Verdict.BROKEN, "y", "test_b")], Result.SKIP, "broken: y", False),
        ([record(Verdict.PASSED), record(Verdict.NOT_HERE, "y", "test_b")], Result.GOOD, "", False),
        ([record(Verdict.FAILED, NO_BUILD), record(Verdict.BLOCKED, "y", "b")], Result.SKIP, "does not build", True),
        ([], Result.SKIP, "no record of any test", False),
    ],
)
def test_what_records_say_of_a_commit(records: list[Record], result: Result, reason: str, lasting: bool) -> None:
    """A failure is bad, a pass good; builds that fail and labs that break decide nothing."""
    outcome = judge(records)
    assert (outcome.result, outcome.lasting) == (result, lasting)
    assert outcome.reason.startswith(reason)
    assert "\n" not in outcome.reason


def test_a_test_that_left_no_record() -> None:
    """One of two died with its process: nothing is decided, unless the other failed."""
    assert judge([record(Verdict.PASSED)], missing=["b"]) == Outcome(Result.SKIP, "no record of b")
    assert judge([record(Verdict.FAILED, "x")], missing=["b"]).result is Result.BAD


TESTS = '''
    """Asks the tree under test, as if it had been built."""
    from pathlib import Path

    import pytest

    from xentests.errors import BuildFailed, LabError


    @pytest.fixture
    def said(pytestconfig):
        text = (pytestconfig.getoption("xen_release").removeprefix("source:").split(",")[0])
        return (Path(text) / "xen/code.c").read_text()


    def test_code(said):
        if said == "broken":
            raise LabError("no memory")
        if said == "syntax":
            raise BuildFailed("x: does not build; the first error:\\n  code.c:1: error: bad\\nThe whole output: y")
        if said == "lacks":
            pytest.skip("not built: CONFIG_X is not set")
        assert said == "good"


    @pytest.mark.parametrize("kind", ["pv", "hvm"])
    def test_kinds(said, kind):
        assert said == "good" or kind == "pv"


    def test_waits():
        import threading

        Path("waiting").touch()
        threading.Event().wait(60)
'''
MAKEFILE = "XEN_VERSION = 4\nXEN_SUBVERSION = 17\nXEN_EXTRAVERSION = .0\n"


class World:
    """A tiny project with tests, and a tiny Xen with a commit for each thing that can be."""

    def __init__(self, folder: Path) -> None:
        self.project = project(folder / "project", test_some=TESTS)
        self.repository = Repository(folder / "xen")
        self.repository.commit("makefile", "xen/Makefile", MAKEFILE)
        self.commits = {word: Commit(self.repository.commit(word)) for word in ("good", "bad", "syntax", "broken")}
        self.folder = folder

    def runner(
        self, worktree: Worktree, test: str, *, limit_s: float = 60.0, more: tuple[str, ...] = ()
    ) -> PytestRunner:
        return PytestRunner(
            worktree,
            Question(test, more=more),
            self.folder / "runs",
            limit_s=limit_s,
            root=self.project,
            environment=environment(self.folder),
        )

    def decide(self, word: str, test: str = "suites/area/test_some.py::test_code", *, limit_s: float = 60.0) -> Outcome:
        with Tree(self.repository.path).worktree(self.folder / "laid-out") as worktree:
            return self.runner(worktree, test, limit_s=limit_s).decide(self.commits[word])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_real_pytest_decides(world: World) -> None:
    """Good, bad, skipped for good and for once; each run in a directory of its own, with pytest's output."""
    outcomes = {word: world.decide(word) for word in world.commits}
    assert {word: str(outcome.result) for word, outcome in outcomes.items()} == {
        "good": "good",
        "bad": "bad",
        "syntax": "skipped",
        "broken": "skipped",
    }
    assert outcomes["bad"].reason.startswith("AssertionError: assert 'bad' == 'good'")
    assert (outcomes["syntax"].reason, outcomes["syntax"].lasting) == ("does not build: code.c:1: error: bad", True)
    assert (outcomes["broken"].reason, outcomes["broken"].lasting) == (
        "broken: xentests.errors.LabError: no memory",
        False,
    )
    folders = sorted(path.name for path in (world.folder / "runs").iterdir())
    assert folders == [f"{number:03d}-{world.commits[word].short}" for number, word in enumerate(world.commits, 1)]
    assert [outcome.where for outcome in outcomes.values()] == folders
    assert "test_code" in (world.folder / "runs" / folders[1] / "pytest.log").read_text()


def test_one_of_several_parametrised_tests_is_enough(world: World) -> None:
    """A test id without parameters means all of them."""
    outcome = world.decide("bad", "suites/area/test_some.py::test_kinds")
    assert outcome.result is Result.BAD
    assert world.decide("bad", "suites/area/test_some.py::test_kinds[pv]").result is Result.GOOD


SOME = "suites/area/test_some.py"


@pytest.mark.parametrize(
    "test", [f"{SOME}::test_nothing", "suites/area/test_none.py", "conftest.py", f"{SOME}::test_code[x]"]
)
def test_a_test_that_is_not_there(world: World, test: str) -> None:
    """Is the caller's mistake, whatever the commit."""
    with pytest.raises(UsageError, match=r"--test \S+: .*give a node id"):
        world.decide("good", test)


def test_a_release_that_is_refused_is_skipped(world: World) -> None:
    """A wrong call of pytest's says why, and will not do better another time."""
    with Tree(world.repository.path).worktree(world.folder / "laid-out") as worktree:
        runner = world.runner(worktree, "suites/area/test_some.py::test_code", more=("--xen-qemu", "none"))
        outcome = runner.decide(world.commits["good"])
    assert (outcome.result, outcome.lasting) == (Result.SKIP, True)
    assert outcome.reason.startswith("pytest ended with 4 (wrong call): ")
    assert "unknown QEMU 'none'" in outcome.reason


def test_a_step_ends_after_its_time(world: World) -> None:
    """The pytest is gone, and nothing is said of the commit."""
    began = time.monotonic()
    outcome = world.decide("good", "suites/area/test_some.py::test_waits", limit_s=8.0)
    assert time.monotonic() - began < 40
    assert (world.project / "waiting").exists()
    assert (outcome.result, outcome.lasting) == (Result.SKIP, False)
    assert "not done within 8 s" in outcome.reason
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(world.folder) in command]


def test_a_commas_path_is_refused(tmp_path: Path) -> None:
    """A release's name could not be read."""
    with pytest.raises(UsageError, match="comma"):
        PytestRunner(Worktree(tmp_path / "a,b"), Question("x"), tmp_path)


def test_the_command_lines(tmp_path: Path) -> None:
    """What pytest is called with, and how a person would."""
    question = Question("suites/a.py::test_b[c d]", "arm64", (tmp_path / "x.config",), "bookworm", ("-x",))
    assert question.argv(Path("/tree")) == [
        "suites/a.py::test_b[c d]",
        "--xen-release",
        f"source:/tree,kconfig={tmp_path}/x.config,base=bookworm",
        "--xen-arch",
        "arm64",
        "-x",
    ]
    shown = question.again(Path("/xen tree"), Commit("0123"))
    assert shown.startswith("git -C '/xen tree' checkout 0123 && pytest 'suites/a.py::test_b[c d]' --xen-release ")


def test_pytest_dies(world: World) -> None:
    """Killed by somebody: skipped, and by what is said."""
    (world.project / "suites/area/test_dies.py").write_text(
        "import os, signal\n\n\ndef test_dies():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    outcome = world.decide("good", "suites/area/test_dies.py")
    assert (outcome.result, outcome.reason) == (Result.SKIP, "pytest ended with signal SIGKILL")
