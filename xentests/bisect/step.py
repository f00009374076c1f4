"""One step of a search: runs the test on one commit once, as a pytest of its own, and says good, bad or skipped.

A commit is bad only where the test failed, that is, where the product is wrong by the harness's own rules. What does
not build, what broke in the lab and what was not run says nothing of the commit: skipped, as ``git bisect skip`` does.
"""

from __future__ import annotations

import enum
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xentests.bisect.tree import Commit, Worktree
from xentests.deadline import Deadline, time_scale
from xentests.errors import LabError, UsageError
from xentests.pytest_process import PytestProcess, said
from xentests.report import records
from xentests.report.html import ROOT
from xentests.report.records import Record
from xentests.report.run import RUN_NAME, Run
from xentests.report.verdict import Verdict
from xentests.text import clean

LIMIT_S = 600.0
"""Of one step: build, boot and test."""

_REASON_LIMIT = 200
_NO_BUILD = re.compile(r"([\w.]+\.)?BuildFailed\b")
_WRONG_CALL = re.compile(r"([\w.]+\.)?UsageError\b")
_NO_TEST = re.compile(r"^ERROR: (not found|file or directory not found): .*", re.MULTILINE)
_ERROR = re.compile(r"^(?:E {3}|ERROR: )(.*\S)", re.MULTILINE)
_UNEXPECTED_PASS = "[XPASS(strict)]"


class Result(enum.StrEnum):
    """What one run says of a commit."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skipped"


@dataclass(frozen=True)
class Outcome:
    """One run of the test on a commit.

    ``reason`` says in a line why it failed or was skipped. ``lasting``: another run would be skipped again, since the
    commit does not build or lacks what the test needs. ``where`` is the directory of the run's files.
    """

    result: Result
    reason: str = ""
    lasting: bool = False
    seconds: float = 0.0
    where: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked of each commit.

    ``test`` is a node id (of several parametrised tests, perhaps), a file or a folder of the checkout; any failure
    counts. ``kconfig`` are fragments and ``base`` is a Debian suite for the tools, as in a release's name; ``more`` are
    further arguments for pytest.
    """

    test: str
    arch: str = ""
    kconfig: tuple[Path, ...] = ()
    base: str = ""
    more: tuple[str, ...] = ()

    def argv(self, tree: Path) -> list[str]:
        """pytest's arguments for a tree."""
        options = [*(f"kconfig={path.expanduser().absolute()}" for path in self.kconfig)]
        options += [f"base={self.base}"] if self.base else []
        release = ",".join([f"source:{tree}", *options])
        arch = ["--xen-arch", self.arch] if self.arch else []
        return [self.test, "--xen-release", release, *arch, *self.more]

    def again(self, tree: Path, commit: Commit) -> str:
        """The commands that ask it of one commit by hand, for a shell."""
        return f"{shlex.join(['git', '-C', str(tree), 'checkout', commit.sha])} && {shlex.join(self.by_hand(tree))}"

    def by_hand(self, tree: Path) -> list[str]:
        """The command line for a tree as it is."""
        return ["pytest", *self.argv(tree)]


class PytestRunner:
    """Decides commits by pytest; the files of each run lie in a directory of its own below ``directory``."""

    def __init__(
        self,
        worktree: Worktree,
        question: Question,
        directory: Path,
        *,
        limit_s: float = LIMIT_S,
        root: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._worktree, self._question, self._directory = worktree, question, directory.absolute()
        self._limit_s, self._root, self._environment = limit_s, root, environment
        if "," in f"{worktree.path}{''.join(map(str, question.kconfig))}":
            raise UsageError(f"{worktree.path}: a path in a release's name cannot have a comma; choose another --dir")

    def decide(self, commit: Commit) -> Outcome:
        """Lay out ``commit`` and run the test. UsageError when there is no such test; LabError when nothing starts."""
        self._worktree.checkout(commit)
        folder = self._new_folder(commit)
        started = time.monotonic()
        code = self._run(folder)
        outcome = self._read(folder, code)
        seconds = round(time.monotonic() - started, 1)
        return Outcome(outcome.result, outcome.reason, outcome.lasting, seconds, folder.name)

    def _new_folder(self, commit: Commit) -> Path:
        number = 1 + sum(1 for path in self._directory.glob("[0-9]*-*") if path.is_dir())
        while True:
            folder = self._directory / f"{number:03d}-{commit.short}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                number += 1
                continue
            except OSError as error:
                raise LabError(f"cannot make {folder}: {error.strerror}; choose another --dir") from error
            return folder

    def _run(self, folder: Path) -> int | None:
        """pytest's exit status; None when it was ended after its time."""
        words = self._question.argv(self._worktree.path)
        options = ["-q", "--xen-artifacts", str(folder), "-p", "no:cacheprovider"]
        deadline = Deadline(self._limit_s)
        process = PytestProcess(
            [*words, *options], cwd=self._root, log=folder / "pytest.log", environment=self._environment
        )
        try:
            while not deadline.passed:
                code = process.wait(min(1.0, deadline.left_s))
                if code is not None:
                    return code
            return None
        finally:
            process.end()

    def _read(self, folder: Path, code: int | None) -> Outcome:
        log = clean((folder / "pytest.log").read_bytes())
        if code is None:
            limit = self._limit_s * time_scale()
            return Outcome(Result.SKIP, f"not done within {limit:.0f} s; it was ended")
        absent = _NO_TEST.search(log)
        if code == 5 or (code == 4 and absent):
            said = absent.group().removeprefix("ERROR: ") if absent else "pytest collected no test"
            raise UsageError(f"--test {self._question.test}: {said}; give a node id as pytest prints it")
        runs = [Run(path) for path in folder.iterdir() if RUN_NAME.fullmatch(path.name)]
        found = records.read(runs[0]) if len(runs) == 1 else []
        if code not in (0, 1):
            return Outcome(Result.SKIP, _why(code, log), lasting=code == 4)
        missing = set(records.selected(runs[0])) - {record.nodeid for record in found} if runs else set()
        return judge(found, missing=sorted(missing))


def judge(found: Sequence[Record], *, missing: Sequence[str] = ()) -> Outcome:
    """What the records of one run say of the commit; ``missing`` are tests that were to run and left none.

    One failure is enough. Where nothing failed everything must have passed, but for what this machine cannot run,
    which is so on every commit. A known defect (``xfail``) that shows is a failure, and one that does not is none: it
    may be what is searched.
    """
    said = [_of_record(record) for record in found]
    bad = [outcome for outcome in said if outcome.result is Result.BAD]
    if bad:
        return bad[0]
    undecided = [
        outcome
        for outcome, record in zip(said, found, strict=True)
        if outcome.result is Result.SKIP and record.verdict is not Verdict.NOT_HERE
    ]
    if undecided:
        return max(undecided, key=lambda outcome: outcome.lasting)
    if missing or not found:
        return Outcome(Result.SKIP, f"no record of {missing[0] if missing else 'any test'}")
    if all(outcome.result is Result.SKIP for outcome in said):
        return said[0]
    return Outcome(Result.GOOD)


def _of_record(record: Record) -> Outcome:
    reason = _line(record.message)
    if record.verdict is Verdict.PASSED or reason.startswith(_UNEXPECTED_PASS):
        return Outcome(Result.GOOD)
    if _NO_BUILD.match(reason):
        return Outcome(Result.SKIP, _line(record.message, after="first error:") or reason, lasting=True)
    if record.verdict in (Verdict.FAILED, Verdict.KNOWN):
        return Outcome(Result.BAD, reason)
    lasting = record.verdict in (Verdict.NOT_BUILT, Verdict.NOT_HERE, Verdict.SKIPPED)
    words = reason if reason.startswith(f"{record.verdict}: ") else f"{record.verdict}: {reason}"
    return Outcome(Result.SKIP, words, lasting=lasting or bool(_WRONG_CALL.match(reason)))


def _line(text: str, *, after: str = "") -> str:
    """The first line of ``text``, or of what follows ``after``, with that it does not build said in front."""
    if after:
        _, found, rest = text.partition(after)
        return f"does not build: {_line(rest)}" if found and rest.strip() else ""
    return next((line.strip() for line in text.split("\n") if line.strip()), "")[:_REASON_LIMIT]


def _why(code: int, log: str) -> str:
    error = _ERROR.search(log)
    why = f": {error.group(1)[:_REASON_LIMIT]}" if error else ""
    return f"pytest ended with {said(code)}{why}"
