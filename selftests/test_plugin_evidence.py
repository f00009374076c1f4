"""Evidence of each failed phase: what is kept where, what a dead host costs, and who owns which host."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from selftests.fakes import FakeImage, elapsed
from selftests.plugin_runs import Finished, project, run
from selftests.plugin_world import PANIC, HeldDomain
from xentests.errors import DomainGone, HypervisorCrash, LabError
from xentests.host.host import Host
from xentests.pytest_plugin.custody import Charge, Custody
from xentests.report.evidence import MISSING, collect, guarded, read_ends

TESTS = '''
    """Failures in each phase."""
    import pytest

    from xentests.errors import AgentUnresponsive, ProductFailure


    def test_call(fake_host):
        fake_host.domain.say("(XEN) words before the failure\\r\\n")
        assert 0


    @pytest.fixture
    def unready(bench):
        host = bench.host("template debian:x")
        host.domain.say("(XEN) as far as it came\\r\\n")
        raise ProductFailure("it did not become ready")


    def test_setup(unready):
        pass


    @pytest.fixture
    def leaving(fake_host):
        yield fake_host
        fake_host.domain.say("(XEN) words of the tear-down\\r\\n")
        raise ProductFailure("left behind")


    def test_teardown(leaving):
        pass


    def test_both(leaving):
        assert 0


    def test_two_hosts(bench):
        bench.host("one")
        bench.host("two").domain.gone = True


    def test_silent(fake_host):
        fake_host.domain.silent = True
        assert 0


    def test_passes(fake_host):
        pass


    @pytest.fixture(scope="module")
    def shared(request, tmp_path_factory):
        from selftests.plugin_world import Bench
        from xentests.pytest_plugin.harness import harness_of

        bench = Bench(harness_of(request.config), tmp_path_factory.mktemp("shared"))
        host = bench.host("shared")
        yield bench, host
        bench.harness.custody.release(bench.charges[0])
        print("released")


    def test_shared_first(shared):
        bench, host = shared
        bench.harness.custody.lend(bench.charges[0])
        assert not host.domain.closed


    def test_not_using_it(shared, fake_host):
        assert 0


    def test_shared_last(shared):
        bench, host = shared
        bench.harness.custody.lend(bench.charges[0])
        assert not host.domain.closed
        assert 0
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run over all of them, twice as wide: evidence belongs to tests, whoever runs them."""
    return run(project(tmp_path_factory.mktemp("evidence"), test_phases=TESTS))


def test_a_failed_call_leaves_everything(finished: Finished) -> None:
    """Console, Xen's and dom0's messages, toolstack logs and domain XML, in the test's own folder."""
    folder = finished.evidence("test_call")
    names = {path.name for path in folder.iterdir()}
    assert {
        "console.log",
        "domain.xml",
        "state.txt",
        "xl-dmesg.txt",
        "dom0-dmesg.txt",
        "xl-info.txt",
        "xl-list.txt",
        "xenstore.txt",
        "var-log-xen.txt",
    } <= names
    assert MISSING not in names
    assert "words before the failure" in (folder / "console.log").read_text()
    assert (folder / "xl-dmesg.txt").read_text() == "output of xl\n"


@pytest.mark.parametrize(
    ("test", "phase", "host", "words"),
    [
        ("test_setup", "setup", "template_debian_x", "as far as it came"),
        ("test_teardown", "teardown", "xen0", "words of the tear-down"),
        ("test_both", "call", "xen0", "dom0 ready"),
        ("test_both", "teardown", "xen0", "words of the tear-down"),
        ("test_two_hosts", "call", "one", "dom0 ready"),
        ("test_two_hosts", "call", "two", "dom0 ready"),
    ],
)
def test_each_phase_and_host_has_its_own(finished: Finished, test: str, phase: str, host: str, words: str) -> None:
    """Also of a host that never became ready, and after the fixtures are through."""
    assert words in (finished.evidence(test, phase, host) / "console.log").read_text()


def test_the_console_is_shown_and_attached(finished: Finished) -> None:
    """Its last lines stand in the terminal, all of it in Allure, the folder in JUnit."""
    shown = finished.output.partition("_ test_call _")[2].partition("\n____")[0]
    assert "words before the failure" in shown
    assert f"folder: {finished.evidence('test_call')}" in shown
    assert "words before the failure" in finished.attachment("test_call", "xen0 call: console.log")
    assert str(finished.evidence("test_call").parent) in (finished.run / "junit.xml").read_text()


def test_a_test_that_passes_leaves_no_evidence(finished: Finished) -> None:
    """Nor does a host that the failing test did not use."""
    assert not list(finished.run.glob("*test_passes*/call"))
    assert [path.name for path in finished.run.glob("*test_not_using_it/call/*")] == ["xen0"]
    assert [path.name for path in finished.run.glob("*test_shared_last/call/*")] == ["shared"]


def test_a_silent_host_has_its_debug_keys(finished: Finished) -> None:
    """Xen is asked on its serial line; what dom0 was not asked for says why, once."""
    folder = finished.evidence("test_silent")
    console = (folder / "console.log").read_text()
    assert "'0' pressed" in console
    assert "'q' pressed" in console
    assert "dom0's agent does not answer" in (folder / MISSING).read_text()
    shown = finished.output.partition("_ test_silent _")[2].partition("\n____")[0]
    assert shown.count("dom0's agent does not answer") == 1


def test_hosts_end_after_the_last_report(finished: Finished) -> None:
    """Every machine was closed, the shared one too."""
    ended = list(finished.folder.glob("**/ended"))
    assert ended == []  # nothing of the hosts is inside the project
    assert finished.code == 1


# -- collecting, by itself ----------------------------------------------------------------------------------------


@pytest.fixture
def domain(tmp_path: Path) -> HeldDomain:
    """A machine that runs."""
    made = HeldDomain(tmp_path, "xen0")
    made.say("(XEN) hello\r\n")
    return made


@pytest.fixture
def host(domain: HeldDomain) -> Iterator[Host]:
    """The host on it."""
    made = Host(domain, FakeImage())
    yield made
    made.close()


def test_a_dead_host_costs_seconds(domain: HeldDomain, host: Host, tmp_path: Path) -> None:
    """Neither dom0 nor Xen answers: its console and XML are had all the same, within some seconds."""
    domain.silent, domain.xen_alive = True, False
    taken: list[object] = []
    assert elapsed(lambda: taken.append(collect("xen0", domain, host, tmp_path / "e"))) < 8
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"state.txt", "domain.xml", "console.log", MISSING}
    missing = (tmp_path / "e" / MISSING).read_text()
    assert missing.startswith("debug keys: ")
    assert "xl-dmesg.txt: not asked for: dom0's agent does not answer (AgentUnresponsive" in missing


def test_a_gone_host_costs_nothing(domain: HeldDomain, host: Host, tmp_path: Path) -> None:
    """Its QEMU has ended: nobody is asked."""
    domain.gone = True
    assert elapsed(lambda: collect("xen0", domain, host, tmp_path / "e")) < 1
    assert "its QEMU is not running" in (tmp_path / "e" / MISSING).read_text()


def test_each_collector_stands_alone(domain: HeldDomain, host: Host, tmp_path: Path) -> None:
    """One fails, one has no such program, one is cut off: the others are there, and each says why it is not."""
    domain.programs["dmesg"] = lambda argv: (1, b"")
    del domain.programs["xen-livepatch"]
    domain.console_log.unlink()
    evidence = collect("xen0", domain, host, tmp_path / "e")
    assert set(evidence.missing) == {"console.log", "dom0-dmesg.txt", "livepatches.txt"}
    assert "exit code 1" in evidence.missing["dom0-dmesg.txt"]
    assert "FileNotFoundError" in evidence.missing["console.log"]
    assert (tmp_path / "e" / "xenstore.txt").exists()


def test_a_host_that_hangs_half_way_is_asked_no_more(domain: HeldDomain, host: Host, tmp_path: Path) -> None:
    """After one command fell silent, the rest are not tried, each for its own five seconds."""

    def fall_silent(argv: list[str]) -> tuple[int, bytes]:
        domain.silent = True
        return 0, b"late"

    domain.programs["dmesg"] = fall_silent
    evidence = collect("xen0", domain, host, tmp_path / "e")
    assert "xl-dmesg.txt" in {path.name for path in evidence.files}
    assert "not asked for: it did not answer `dmesg`" in evidence.missing["xenstore.txt"]


def test_a_full_disk_is_said(domain: HeldDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No collector raises because its file cannot be written."""

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    evidence = collect("xen0", domain, None, tmp_path / "e")
    assert evidence.files == []
    assert "No space left on device" in evidence.missing["console.log"]


def test_a_long_console_keeps_both_ends(tmp_path: Path) -> None:
    """And says how much lies between."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"first words")
        file.truncate(20 << 20)
        file.seek(0, 2)
        file.write(b"last words")
    data = read_ends(log)
    assert data.startswith(b"first words")
    assert data.endswith(b"last words")
    assert len(data) < 9 << 20
    assert b"bytes left out; the whole is in" in data


def test_a_guarded_call_is_left_behind() -> None:
    """A library call that never returns costs its limit and no more."""
    with pytest.raises(TimeoutError, match=r"no answer within 0\.[2-9] s of 0\.2 s"):
        guarded(threading.Event().wait, limit_s=0.2)


# -- custody, by itself -------------------------------------------------------------------------------------------


@pytest.fixture
def custody() -> Custody:
    """A test is under way, and has used nothing yet."""
    made = Custody()
    made.begin()
    return made


@pytest.fixture
def charge(custody: Custody, host: Host, domain: HeldDomain) -> Charge:
    """The host in custody, used by the test under way."""
    made = custody.adopt(domain)
    made.host = host
    return made


def test_a_crash_is_raised_once(custody: Custody, charge: Charge, domain: HeldDomain) -> None:
    """In the phase that saw it; the tear-down after it is not a second failure."""
    custody.check()
    domain.say(PANIC)
    with pytest.raises(HypervisorCrash):
        custody.check()
    custody.check()
    assert isinstance(charge.lost, HypervisorCrash)


def test_a_crash_between_two_tests_is_not_lost(custody: Custody, charge: Charge, domain: HeldDomain) -> None:
    """The next test to borrow the host fails by it."""
    custody.begin()
    domain.say(PANIC)
    custody.check()  # not this test's
    with pytest.raises(HypervisorCrash):
        custody.lend(charge)


def test_a_crash_is_seen_when_the_host_is_given_back(custody: Custody, charge: Charge, domain: HeldDomain) -> None:
    """Also by a test that did not use it: somebody must say it."""
    custody.begin()
    domain.say(PANIC)
    custody.release(charge)
    with pytest.raises(HypervisorCrash):
        custody.check()


def test_the_end_of_qemu_replaces_what_it_caused(custody: Custody, charge: Charge, domain: HeldDomain) -> None:
    """A test that failed because its machine died decides nothing."""
    domain.gone = True
    cause = AssertionError("nobody answered")
    with pytest.raises(DomainGone, match="nothing is decided about Xen") as raised:
        custody.check(cause)
    assert raised.value.__cause__ is cause
    assert charge.lost is raised.value


def test_kept_hosts_are_those_of_failed_tests(tmp_path: Path) -> None:
    """The others end; what keeping one says is passed on, also when it cannot be kept."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    good, bad, worse = (HeldDomain(folder, folder.name) for folder in folders)

    def keep(machine: object) -> str:
        if machine is worse:
            raise LabError("no")
        return "enter it so"

    custody = Custody(keep)
    for machine in (good, bad, worse):
        custody.begin()
        custody.adopt(machine)
        if machine is not good:
            custody.collect(tmp_path / "evidence")
    custody.end_all()
    assert (good.closed, bad.closed, worse.closed) == (True, False, False)
    assert custody.kept == ["enter it so", "c: could not be kept: no"]


def test_ending_goes_on_when_interrupted(tmp_path: Path) -> None:
    """A second Ctrl-C while one host is being ended does not spare the others."""
    custody = Custody()
    custody.begin()
    machines = []
    for name in "abc":
        (tmp_path / name).mkdir()
        machines.append(HeldDomain(tmp_path / name, name))
        custody.adopt(machines[-1])

    def interrupted() -> None:
        raise KeyboardInterrupt

    machines[1].close = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        custody.end_all()
    assert [machine.closed for machine in machines] == [True, False, True]


def test_the_manifest_and_facts_of_a_run(finished: Finished) -> None:
    """What was asked for, how it ended."""
    about = json.loads((finished.run / "run.json").read_text())
    assert about["release"] == "debian:trixie"
    assert about["verdicts"]["failed"] > 3
    assert about["exit_status"] == 1
