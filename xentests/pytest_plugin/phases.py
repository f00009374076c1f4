"""What happens around each phase of a test: hosts are watched, evidence is taken, verdicts are given, reports cleaned.

Registered only in runs that use the plugin. Decides nothing by itself: custody says what befell a host, ``verdicts``
what an exception means, ``report`` writes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from xentests.errors import LabError, XentestsError
from xentests.host import emulator_faults
from xentests.pytest_plugin.account import Account
from xentests.pytest_plugin.cleaning import clean_report
from xentests.pytest_plugin.harness import Harness
from xentests.pytest_plugin.verdicts import verdict_of
from xentests.report import allure_results, figures, junit, records
from xentests.report.allure_results import Subject
from xentests.report.evidence import CONSOLE, GUEST_LOGS, Evidence
from xentests.report.run import file_name
from xentests.report.verdict import FINDINGS, Verdict, worst
from xentests.text import clean, tail

_CONSOLE_LINES = 20
_LOG_LIMIT = 4 << 20
_VERDICTS = pytest.StashKey[list[Verdict]]()
_ACCOUNT = pytest.StashKey[Account]()
ATTRIBUTE = "xen_verdict"
"""The attribute of a report that carries its phase's verdict, also from an xdist worker."""


class Phases:
    """Hooks around set-up, call and tear-down."""

    def __init__(self, harness: Harness, *, allure: bool) -> None:
        self._harness = harness
        self._allure = allure
        # By identity, and holding on to the errors: the identity of one that is gone may come again.
        self._raised: dict[int, tuple[BaseException, str]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """A test, from its first phase to its last report."""
        item.stash[_VERDICTS] = []
        item.stash[_ACCOUNT] = Account()
        self._harness.current, self._harness.coming = item, nextitem
        self._harness.custody.begin()
        self._harness.exhibits = []
        try:
            return (yield)
        finally:
            self._harness.current = None
            self._harness.custody.sweep()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, None, None]:
        """Set-up."""
        yield from self._watched()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, None, None]:
        """The test itself: it fails if its host crashed or hangs, whatever it asserted."""
        yield from self._watched(alive=True)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, None, None]:
        """Tear-down."""
        yield from self._watched(again=True)

    def _watched(self, *, alive: bool = False, again: bool = False) -> Generator[None, None, None]:
        """Check the hosts at the end of a phase.

        ``alive``: they must answer. ``again``: an error that this test has ended in already may pass.
        """
        try:
            try:
                yield
            except (KeyboardInterrupt, pytest.exit.Exception):
                raise
            except BaseException as error:
                self._block_if_known(error)
                self._harness.custody.check(error)
                raise
            self._harness.custody.check()
            if alive:
                self._harness.custody.check_alive()
        except BaseException as error:
            if again and id(error) in self._raised:
                return  # fixtures meet the crash that ended the test: one failure, not two
            self._raised[id(error)] = (error, self._nodeid())
            raise

    def _block_if_known(self, error: BaseException) -> None:
        """Skip, as blocked, for an error in which an earlier test ended: a fixture of both raises it again."""
        _, first = self._raised.get(id(error), (error, self._nodeid()))
        if first != self._nodeid() and not isinstance(error, pytest.skip.Exception):
            said = clean(str(error), limit=200).strip().split("\n")[0]
            pytest.skip(f"{Verdict.BLOCKED}: failed before, in {first}: {type(error).__name__}: {said}")

    def _nodeid(self) -> str:
        return self._harness.current.nodeid if self._harness.current else ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Evidence before the report is made, verdict after; outermost, so that what is made is final."""
        verdict = verdict_of(call.excinfo.value if call.excinfo else None)
        evidence = []
        if verdict in (Verdict.FAILED, Verdict.BROKEN):
            _hide_plumbing()
            evidence = self._evidence(item, call.when)
        emulator = _emulators_fault(evidence) if verdict is Verdict.FAILED else ""
        if emulator:
            verdict = Verdict.BROKEN
        report = yield
        if hasattr(report, "wasxfail") or report.passed:
            expected = Verdict.KNOWN if hasattr(report, "wasxfail") else Verdict.SKIPPED
            verdict = expected if report.skipped else Verdict.PASSED
        if report.failed and verdict not in (Verdict.FAILED, Verdict.BROKEN):
            verdict = Verdict.FAILED  # an unexpected pass that is strict
        if verdict not in (Verdict.PASSED, Verdict.SKIPPED, Verdict.KNOWN):
            setattr(report, ATTRIBUTE, str(verdict))
            _add_property(item, report, f"{junit.PROPERTY}{call.when}", str(verdict))
        if emulator:
            report.sections.append(("broken, not failed", emulator))
        if evidence:
            _add_property(item, report, f"evidence.{call.when}", str(evidence[0].folder.parent))
        for taken in evidence:
            report.sections.append((f"evidence of {taken.host}", _summary(taken)))
        clean_report(report)
        item.stash[_VERDICTS].append(verdict)
        item.stash[_ACCOUNT].add(report, verdict, began=call.start, note=emulator)
        if self._allure:
            self._tell_allure(item, report, evidence)
        if report.when == "call":
            self._show(item, failed=report.failed)
        if report.when == "teardown":
            self._keep_record(item)
        return report

    def _keep_record(self, item: pytest.Item) -> None:
        folder = self._harness.run.folder(item.nodeid)
        record = item.stash[_ACCOUNT].record(
            item, title=subject_of(item).title, evidence=folder.name if folder.is_dir() else ""
        )
        try:
            records.append(self._harness.run, self._harness.worker, record)
        except LabError as error:
            self._harness.say(str(error))

    def _evidence(self, item: pytest.Item, when: str) -> list[Evidence]:
        folder = self._harness.run.folder(item.nodeid) / str(when)
        try:
            return self._harness.custody.collect(folder)
        except pytest.fail.Exception:
            # pytest-timeout's signal, which may come at any moment, would end the whole session from in here.
            return []

    def _show(self, item: pytest.Item, *, failed: bool) -> None:
        """Keep the pictures that are wanted, beside the test's evidence and in the report."""
        folder = self._harness.run.folder(item.nodeid)
        for exhibit in self._harness.exhibits:
            if failed or exhibit.always:
                try:
                    picture = exhibit.draw()
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{file_name(exhibit.name)}.svg").write_text(picture, encoding="utf-8")
                except (XentestsError, OSError) as error:
                    self._harness.say(f"{item.nodeid}: no picture of {exhibit.name}: {error}")
                    continue
                if self._allure:
                    allure_results.attach_picture(exhibit.name, picture)

    def _tell_allure(self, item: pytest.Item, report: pytest.TestReport, evidence: list[Evidence]) -> None:
        subject = subject_of(item)
        if report.when == "setup":
            allure_results.describe(subject, self._harness.labels)
        for taken in evidence:
            allure_results.attach(taken, str(report.when))
        if report.when == "teardown":
            verdicts = item.stash[_VERDICTS]
            measured = {
                name.removeprefix(figures.PREFIX): str(value)
                for name, value in item.user_properties
                if name.startswith(figures.PREFIX)
            }
            allure_results.conclude(subject, worst(verdicts), measured)


class InnermostCleaner:
    """Cleans a report before any other plugin reads it: allure-pytest attaches captured output from it."""

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """The report of one phase."""
        report = yield
        clean_report(report)
        return report

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """The report of a module's collection."""
        report = yield
        clean_report(report)
        return report


def teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Category, letter and word for the terminal: verdicts instead of phases. None where pytest's own words do."""
    text = getattr(report, ATTRIBUTE, None)
    if text is None or hasattr(report, "context"):  # a subtest speaks for itself
        return None
    verdict = Verdict(text)
    if verdict in FINDINGS:
        return str(verdict), str(verdict)[0], (str(verdict).upper(), {"yellow": True})
    if verdict is Verdict.BROKEN:
        return "error", "E", ("BROKEN", {"red": True})
    return "failed", "F", ("FAILED", {"red": True})


def subject_of(item: pytest.Item) -> Subject:
    """What reports call this test."""
    function = getattr(item, "function", None)
    return allure_results.subject_of(item.nodeid, inspect.getdoc(function) if function else None)


def _hide_plumbing() -> None:
    """Have tracebacks begin at the test: our own frames say nothing of an error that we raise on purpose.

    pytest looks for the name in a frame's locals and globals. Any other error is a bug of ours, and shows all frames.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(("xentests.", "allure_commons.")):
            vars(module).setdefault("__tracebackhide__", lambda error: isinstance(error.value, XentestsError))


def _emulators_fault(evidence: list[Evidence]) -> str:
    """Why it was QEMU that killed a guest or dom0, if it was: read from their consoles."""
    for taken in evidence:
        for path in taken.files:
            if path.name not in (GUEST_LOGS, CONSOLE):
                continue
            if found := emulator_faults.find(taken.text(path, limit=_LOG_LIMIT)):
                return f"{taken.host}: {found}"
    return ""


def _add_property(item: pytest.Item, report: pytest.TestReport, name: str, value: str) -> None:
    """For this phase's report and for those that follow: JUnit takes the last one's."""
    item.user_properties.append((name, value))
    report.user_properties.append((name, value))


def _summary(evidence: Evidence) -> str:
    """What stands in the terminal: where the files are, what is missing, and the end of the console."""
    lines = [f"folder: {evidence.folder}"]
    reasons: dict[str, list[str]] = {}
    for name, reason in evidence.missing.items():
        reasons.setdefault(reason, []).append(name)
    lines += [f"missing: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    console = evidence.folder / CONSOLE
    if console.is_file():
        lines += [f"last lines of {CONSOLE}:", _end_of(console)]
    return "\n".join(lines)


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - (32 << 10)))
        return tail(file.read(), lines=_CONSOLE_LINES, limit=4000)
