"""Verdicts end to end: what each kind of ending is called in the terminal, in JUnit and in Allure, for each phase."""

from __future__ import annotations

import pytest

from selftests.plugin_runs import Finished, project, run
from xentests.errors import DomainGone, HypervisorCrash, LabError, ProductFailure
from xentests.pytest_plugin.verdicts import verdict_of
from xentests.report.verdict import Verdict, worst

TESTS = '''
    """Endings."""
    import threading

    import pytest

    from selftests.plugin_world import PANIC
    from xentests.errors import LabError, ProductFailure, UsageError


    def test_pass(fake_host):
        """A host answers.

        Whatever it is asked.
        """
        assert fake_host.succeed("true").exit_code == 0


    def test_assert(fake_host):
        assert 1 == 2


    def test_product(fake_host):
        raise ProductFailure("Xen is wrong")


    def test_lab():
        raise LabError("no room")


    def test_usage():
        raise UsageError("no such thing")


    def test_bug():
        {}["missing"]


    def test_crash_unseen(fake_host):
        """Xen crashes, and no assert notices."""
        fake_host.domain.say(PANIC)


    def test_crash_behind_a_lab_error(fake_host):
        fake_host.domain.say(PANIC)
        raise LabError("the agent is silent")


    def test_crash_behind_a_skip(fake_host):
        fake_host.domain.say(PANIC)
        pytest.skip("nothing to see")


    def test_crash_expected(fake_host):
        with fake_host.console.expect_crash("FATAL PAGE FAULT"):
            fake_host.domain.say(PANIC)


    def test_crash_expected_and_powered_off(fake_host):
        with fake_host.console.expect_crash("FATAL PAGE FAULT"):
            fake_host.domain.say(PANIC)
        fake_host.domain.gone = True


    def test_gone(fake_host):
        fake_host.domain.gone = True


    def test_gone_behind_an_assert(fake_host):
        fake_host.domain.gone = True
        assert 0


    def test_gone_after_a_crash(fake_host):
        fake_host.domain.say(PANIC)
        fake_host.domain.gone = True


    def test_closed_on_purpose(fake_host):
        fake_host.domain.close()
        fake_host.domain.gone = True


    @pytest.fixture
    def crashing(fake_host):
        yield fake_host
        fake_host.domain.say(PANIC)


    def test_crash_in_teardown(crashing):
        pass


    @pytest.fixture
    def tidying(fake_host):
        yield fake_host
        fake_host.succeed("true")


    def test_crash_met_by_its_fixture(tidying):
        tidying.domain.say(PANIC)
        tidying.succeed("true")


    def test_crash_unseen_met_by_its_fixture(tidying):
        tidying.domain.say(PANIC)


    def test_crash_just_after_the_end(fake_host):
        fake_host.domain.later(0.3, lambda: fake_host.domain.say(PANIC))
        fake_host.domain.on_call = lambda command: setattr(fake_host.domain, "silent", True)


    def test_not_built():
        pytest.skip("not built: CONFIG_LIVEPATCH is not set")


    def test_not_built_either():
        pytest.skip("not built: CONFIG_LIVEPATCH is not set")


    def test_not_here():
        pytest.skip("not on this machine: the CPU has no VMX")


    def test_skip():
        pytest.skip("not today")


    @pytest.fixture(scope="module")
    def once():
        raise ProductFailure("it does not boot")


    def test_setup(once):
        pass


    def test_setup_again(once):
        pass


    @pytest.fixture
    def lab():
        raise LabError("no disk")


    def test_setup_lab(lab):
        pass


    @pytest.fixture
    def leaves():
        yield
        raise ProductFailure("left behind")


    @pytest.fixture
    def breaks():
        yield
        raise LabError("cannot end it")


    def test_teardown(leaves):
        pass


    def test_teardown_lab(breaks):
        pass


    def test_teardown_both(breaks, leaves):
        pass


    def test_call_and_teardown(breaks):
        assert 0


    @pytest.mark.timeout(0.2)
    def test_timeout():
        threading.Event().wait(10)


    @pytest.mark.xfail(strict=True)
    def test_xpass():
        pass


    @pytest.mark.xfail(reason="known")
    def test_xfail():
        assert 0


    def test_subtests(subtests):
        with subtests.test("one"):
            assert 1 == 2
        with subtests.test("two"):
            pass


    @pytest.mark.parametrize("kind", ["pv", "pvh"])
    def test_kinds(kind):
        """A guest runs"""
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run over all of them."""
    return run(project(tmp_path_factory.mktemp("verdicts"), test_endings=TESTS))


FAILED, BROKEN, SKIPPED, PASSED = "failed", "broken", "skipped", "passed"
ENDINGS = {
    "test_pass": (PASSED, []),
    "test_assert": (FAILED, ["failure"]),
    "test_product": (FAILED, ["failure"]),
    "test_lab": (BROKEN, ["error"]),
    "test_usage": (BROKEN, ["error"]),
    "test_bug": (BROKEN, ["error"]),
    "test_crash_unseen": (FAILED, ["failure"]),
    "test_crash_behind_a_lab_error": (FAILED, ["failure"]),
    "test_crash_behind_a_skip": (FAILED, ["failure"]),
    "test_crash_expected": (PASSED, []),
    "test_crash_expected_and_powered_off": (PASSED, []),
    "test_crash_in_teardown": (FAILED, ["failure"]),
    "test_crash_met_by_its_fixture": (FAILED, ["failure"]),
    "test_crash_unseen_met_by_its_fixture": (FAILED, ["failure"]),
    "test_crash_just_after_the_end": (FAILED, ["failure"]),
    "test_gone": (BROKEN, ["error"]),
    "test_gone_behind_an_assert": (BROKEN, ["error"]),
    "test_gone_after_a_crash": (FAILED, ["failure"]),
    "test_closed_on_purpose": (PASSED, []),
    "test_not_built": (SKIPPED, ["skipped"]),
    "test_not_here": (SKIPPED, ["skipped"]),
    "test_skip": (SKIPPED, ["skipped"]),
    "test_setup": (FAILED, ["failure"]),
    "test_setup_again": (SKIPPED, ["skipped"]),
    "test_setup_lab": (BROKEN, ["error"]),
    "test_teardown": (FAILED, ["failure"]),
    "test_teardown_lab": (BROKEN, ["error"]),
    "test_teardown_both": (BROKEN, ["error"]),
    "test_call_and_teardown": (FAILED, ["failure", "error"]),
    "test_timeout": (BROKEN, ["error"]),
    "test_xpass": (FAILED, ["failure"]),
    "test_xfail": (SKIPPED, ["skipped"]),
    "test_subtests": (FAILED, ["failure", "failure"]),
    "test_kinds[pv]": (PASSED, []),
}


@pytest.mark.parametrize("test", ENDINGS)
def test_each_ending_has_one_verdict_everywhere(finished: Finished, test: str) -> None:
    """Allure's status and JUnit's tags say the same of a test."""
    status, tags = ENDINGS[test]
    assert finished.allure()[test]["status"] == status, finished.output
    assert [tag for tag, _, _ in finished.junit()[test]] == tags


def test_the_terminal_counts_findings_apart(finished: Finished) -> None:
    """Not built, not on this machine and blocked stand beside passed and failed, and the run is not green."""
    last = finished.output.strip().split("\n")[-1]
    assert finished.code == 1
    for count in ("2 not built", "1 not on this machine", "1 blocked"):
        assert count in last
    assert "BROKEN suites/area/test_endings.py::test_lab - xentests.errors.LabError: no room" in finished.output
    assert "FAILED suites/area/test_endings.py::test_setup - xentests.errors.ProductFailure" in finished.output


def test_what_is_not_built_is_listed_by_reason(finished: Finished) -> None:
    """Each reason once, with the tests that were not run for it; JUnit and Allure say it in their own ways."""
    section = finished.output.partition("= not built =")[2].partition("= not on")[0]
    assert (
        "not built: CONFIG_LIVEPATCH is not set (2 tests)\n    suites/area/test_endings.py::test_not_built\n" in section
    )
    assert finished.junit()["test_not_built"] == [
        ("skipped", "not built", "not built: CONFIG_LIVEPATCH is not set"),
    ]
    result = finished.allure()["test_not_built"]
    assert result["statusDetails"]["message"] == "not built: CONFIG_LIVEPATCH is not set"
    assert {"name": "verdict", "value": "not built"} in result["labels"]


def test_a_fixture_that_failed_once_blocks_the_others(finished: Finished) -> None:
    """The second test says what failed, where it was first seen, and is not a second failure."""
    (_, kind, message) = finished.junit()["test_setup_again"][0]
    assert kind == "blocked"
    assert "test_endings.py::test_setup: ProductFailure: it does not boot" in message


def test_a_crash_keeps_what_led_to_it(finished: Finished) -> None:
    """The error in which the test ended is shown above the crash, and none of our own frames are."""
    shown = finished.output.partition("_ test_crash_behind_a_lab_error _")[2].partition("\n____")[0]
    assert "LabError: the agent is silent" in shown
    assert "Panic on CPU 0" in shown
    assert "custody.py" not in shown
    assert "pluggy" not in shown


def test_a_bug_of_a_test_shows_its_frames(finished: Finished) -> None:
    """Errors that are not ours keep their whole traceback."""
    assert 'test_bug\n    {}["missing"]' in finished.output


def test_descriptions_come_from_docstrings(finished: Finished) -> None:
    """Title, description and areas of a test in Allure."""
    results = finished.allure()
    assert results["test_pass"]["name"] == "A host answers"
    assert results["test_pass"]["description"] == "A host answers.\n\nWhatever it is asked."
    assert results["test_kinds[pvh]"]["name"] == "A guest runs [pvh]"
    labels = {(label["name"], label["value"]) for label in results["test_pass"]["labels"]}
    assert {("epic", "Area"), ("feature", "Endings"), ("story", "Pass"), ("release", "debian:trixie")} <= labels


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, Verdict.PASSED),
        (AssertionError(), Verdict.FAILED),
        (ProductFailure("x"), Verdict.FAILED),
        (LabError("x"), Verdict.BROKEN),
        (KeyError("x"), Verdict.BROKEN),
        (pytest.fail.Exception("no"), Verdict.FAILED),
        (pytest.fail.Exception("Timeout (>5.0s) from pytest-timeout."), Verdict.BROKEN),
        (pytest.skip.Exception("not built: CONFIG_X is not set"), Verdict.NOT_BUILT),
        (pytest.skip.Exception("it is not built: so what"), Verdict.SKIPPED),
        (ExceptionGroup("two", [AssertionError(), ProductFailure("x")]), Verdict.FAILED),
        (ExceptionGroup("two", [AssertionError(), DomainGone("x")]), Verdict.BROKEN),
        (ExceptionGroup("two", [LabError("y"), HypervisorCrash("x")]), Verdict.FAILED),
    ],
    ids=repr,
)
def test_errors_are_judged_by_who_must_act(error: BaseException | None, verdict: Verdict) -> None:
    """Exception to verdict."""
    assert verdict_of(error) is verdict


def test_a_failure_outweighs_what_broke_after_it() -> None:
    """The verdict of a test from those of its phases."""
    assert worst([Verdict.PASSED, Verdict.FAILED, Verdict.BROKEN]) is Verdict.FAILED
    assert worst([Verdict.PASSED, Verdict.BROKEN]) is Verdict.BROKEN
    assert worst([]) is Verdict.PASSED
