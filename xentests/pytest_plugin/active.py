"""The plugin once it is switched on: makes the run's directory, registers the hooks, and closes the books at the end.

The controller (or the only process) makes the directory and writes what a run has once; xdist workers are told where
it is and write results of their own into it.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from xentests.errors import UsageError, XentestsError
from xentests.pytest_plugin import phases, summary
from xentests.pytest_plugin.harness import KEY, MAIN, Harness
from xentests.pytest_plugin.needs import check_needs
from xentests.pytest_plugin.settings import Settings
from xentests.report import allure_results, records
from xentests.report.run import UNCOLLECTED, Run, new_run, point_latest
from xentests.report.verdict import Verdict
from xentests.text import clean

_LOOKS_ONLY = ("help", "markers", "showfixtures", "show_fixtures_per_test", "collectonly", "cacheshow")
_RUN = "xen_run"


def switch_on(config: pytest.Config, settings: Settings) -> None:
    """Register the hooks in ``config``. A run that only looks (``--collect-only``, ``--help``) makes no files."""
    if any(getattr(config.option, name, False) for name in _LOOKS_ONLY):
        config.pluginmanager.register(_Collection(settings), "xentests-collection")
        return
    workerinput: Mapping[str, Any] | None = getattr(config, "workerinput", None)
    try:
        if workerinput is None:
            harness = Harness(settings, new_run(settings.artifacts), MAIN)
        else:
            harness = Harness(settings, Run(Path(workerinput[_RUN])), str(workerinput["workerid"]))
    except UsageError as error:
        raise pytest.UsageError(clean(str(error))) from error
    config.stash[KEY] = harness
    harness.run.hold()
    copies = _redirect(config, harness.run)
    allure = config.pluginmanager.hasplugin("allure_pytest") or hasattr(config.option, "allure_report_dir")
    config.pluginmanager.register(_Collection(settings, harness), "xentests-collection")
    config.pluginmanager.register(phases.InnermostCleaner(), "xentests-cleaner")
    config.pluginmanager.register(phases.Phases(harness, allure=allure), "xentests-phases")
    if workerinput is None:
        config.pluginmanager.register(_Books(config, harness, allure=allure, copies=copies), "xentests-books")
        config.pluginmanager.register(_WorkerBooks(harness, allure=allure), "xentests-workers")
    if allure:
        cleaner = allure_results.start_cleaning()
        config.add_cleanup(lambda: allure_results.stop_cleaning(cleaner))
    config.pluginmanager.register(_End(harness), "xentests-end")
    config.add_cleanup(harness.close)


def _redirect(config: pytest.Config, run: Run) -> dict[Path, Path]:
    """Have Allure and JUnit write into the run's directory; returns where else they were asked to, to be copied."""
    copies: dict[Path, Path] = {}
    for option, path in (("allure_report_dir", run.allure_results), ("xmlpath", run.junit)):
        if hasattr(config.option, option):
            asked = getattr(config.option, option)
            if asked and not hasattr(config, "workerinput"):
                copies[path] = Path(asked).expanduser().absolute()
            setattr(config.option, option, str(path))
    return copies


class _End:
    """Ends what runs, in every process, once the last report has been made."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        plugins = session.config.pluginmanager
        reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
        if reporter is None or capture is None or session.config.get_verbosity() < 0:
            return

        def show(line: str) -> None:
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(f"xentests: {line}")

        self._harness.progress = show  # type: ignore[method-assign]

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        # After the runner's own hook, which tears down what an interrupt has left standing.
        try:
            yield
        finally:
            self._harness.close()
            if self._harness.custody.kept:
                with contextlib.suppress(XentestsError):  # a full disk; _Books says so
                    self._harness.learn({summary.KEPT: self._harness.custody.kept})


class _Collection:
    """Checks what tests ask for, leaves out those that are done already, and says which are to run."""

    def __init__(self, settings: Settings, harness: Harness | None = None) -> None:
        self._done = settings.done
        self._harness = harness
        self._uncollected: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        # xdist's controller collects nothing; each of its workers collects all.
        if self._harness is not None and session.items and self._harness.worker in (MAIN, "gw0"):
            with contextlib.suppress(XentestsError):  # a full disk; _Books says so
                records.write_selected(self._harness.run, (item.nodeid for item in session.items))

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if any(item.get_closest_marker("needs") for item in items):
            from xentests.host.capabilities import NAMES  # noqa: PLC0415 - the host layer, only when it is asked for

            check_needs(items, NAMES)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self._harness is not None:
            first = (clean(str(report.longrepr), limit=1000).strip().splitlines() or [""])[-1]
            self._uncollected.append(f"{report.nodeid}: {first}")
            with contextlib.suppress(XentestsError):  # a full disk; _Books says so
                self._harness.learn({UNCOLLECTED: self._uncollected})

    @pytest.hookimpl(specname="pytest_collection_modifyitems", trylast=True)
    def pytest_leave_out_done(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self._done:
            done = [item for item in items if records.plain_nodeid(item.nodeid) in self._done]
            if done:
                config.hook.pytest_deselected(items=done)
                items[:] = [item for item in items if records.plain_nodeid(item.nodeid) not in self._done]

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        return phases.teststatus(report)


class _Books:
    """What is written once a run: header, summary, and the files at its end."""

    def __init__(self, config: pytest.Config, harness: Harness, *, allure: bool, copies: Mapping[Path, Path]) -> None:
        self._config = config
        self._harness = harness
        self._allure = allure
        self._copies = copies
        self._began = False

    def pytest_report_header(self) -> list[str]:
        return summary.header(self._harness)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        self._began = True
        point_latest(self._harness.run)
        try:
            with contextlib.suppress(XentestsError):  # a full disk; said at the end
                self._harness.run.begin(summary.asked(self._harness, self._config))
            return (yield)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # No bug of anybody's, so no traceback: reports could not be written any more.
            pytest.exit(f"stopped: {error.strerror}", returncode=pytest.ExitCode.INTERNAL_ERROR)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
        # Outermost, hence after JUnit's own hook has written its file.
        try:
            yield
            if self._began:
                summary.finish(self._harness, session.config, exit_status=int(exitstatus), allure=self._allure)
                for source, target in self._copies.items():
                    if source.is_dir():
                        shutil.copytree(source, target, dirs_exist_ok=True)
                    elif source.is_file():
                        shutil.copy(source, target)
        except (XentestsError, OSError) as error:
            session.exitstatus = exitstatus or pytest.ExitCode.INTERNAL_ERROR
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(
                f"xentests: the files of this run are incomplete: {clean(str(error), limit=500)}; free some space, or "
                f"put them elsewhere: --xen-artifacts DIR. They are in {self._harness.run.path}",
                red=True,
            )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._began:
            summary.write_sections(terminalreporter, self._harness)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        if not self._began:  # a wrong argument, a file that is not there: nothing worth keeping
            shutil.rmtree(self._harness.run.path, ignore_errors=True)


class _WorkerBooks:
    """What the controller does for xdist's workers."""

    def __init__(self, harness: Harness, *, allure: bool) -> None:
        self._harness = harness
        self._allure = allure

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_RUN] = str(self._harness.run.path)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        setattr(report, phases.ATTRIBUTE, "broken")
        with contextlib.suppress(XentestsError):
            lost = records.Record(
                records.plain_nodeid(crashitem), Verdict.BROKEN, time.time(), 0.0, message=clean(str(report.longrepr))
            )
            records.append(self._harness.run, MAIN, lost)
        if self._allure:
            with contextlib.suppress(XentestsError):
                allure_results.write_lost_test(
                    self._harness.run, crashitem, clean(str(report.longrepr)), self._harness.labels
                )
