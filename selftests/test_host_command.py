"""Programs and files through the guest agent: binary safety, ends of every kind, deadlines, limits, silent agents."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selftests.fakes import FakeDomain, FakeImage, FakeMachine, elapsed
from xentests.errors import (
    CommandFailed,
    CommandTimeout,
    DomainGone,
    HostHang,
    HypervisorCrash,
    UsageError,
)
from xentests.host.agent import Agent
from xentests.host.hang import Dom0Hang, HypervisorHang
from xentests.host.host import Host

ALL_BYTES = bytes(range(256)) * 3


@pytest.fixture
def domain(tmp_path: Path) -> FakeDomain:
    return FakeDomain(tmp_path)


@pytest.fixture
def host(domain: FakeDomain) -> Iterator[Host]:
    host = Host(domain, FakeImage())
    yield host
    host.close()


def test_result_has_everything(host: Host) -> None:
    """Exit code, both outputs, duration and host are in the result."""
    result = host.run("sh", "-c", "printf out; printf err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr, result.host) == (3, b"out", b"err", "fake")
    assert 0 < result.duration_s < 10
    assert "`sh -c 'printf out; printf err >&2; exit 3'`: exit code 3" in str(result)


def test_bytes_pass_unchanged(host: Host) -> None:
    """Every byte value passes through input and output."""
    assert host.run("cat", input_data=ALL_BYTES).stdout == ALL_BYTES


def test_long_input(host: Host) -> None:
    """Input longer than one request holds passes, too; a command line that long is refused."""
    data = os.urandom(1 << 20)
    result = host.run("cat", input_data=data)
    assert result.stdout == data
    assert result.argv == ("cat",)
    with pytest.raises(UsageError, match="longer than 96 KiB"):
        host.run("echo", "x" * (96 << 10))


def test_words_stay_words(host: Host) -> None:
    """No shell sees an argument: spaces, quotes, newlines and globs arrive as they are."""
    words = ["a b", "'", '"', "$HOME", "*", "", "line\nbreak", "ünï", ";true", "-n"]
    result = host.run(sys.executable, "-c", "import sys; print('\\0'.join(sys.argv[1:]), end='')", *words)
    assert result.text.split("\0") == words


def test_numbers_and_paths_are_words(host: Host) -> None:
    """Numbers and paths can be given as they are."""
    assert host.run("printf", "%s %s", 7, Path("/x/y")).text == "7 /x/y"


def test_killed_by_signal(host: Host) -> None:
    """A signal is a negative exit code, and is named."""
    result = host.run("sh", "-c", "kill -SEGV $$")
    assert result.exit_code == -11
    assert "killed by SIGSEGV" in str(result)


def test_no_such_program(host: Host, tmp_path: Path) -> None:
    """A missing program is exit code 127, one that cannot run is 126, as in a shell."""
    assert host.run("no-such-program").exit_code == 127
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert host.run(plain).exit_code == 126


def test_succeed_says_what_failed(host: Host) -> None:
    """A failed command names itself, its exit code, its output and the host."""
    with pytest.raises(CommandFailed) as caught:
        host.succeed("sh", "-c", "echo hopeless >&2; exit 5")
    for part in ("fake", "hopeless", "exit code 5", "exit code 0 was wanted"):
        assert part in str(caught.value)


def test_fail_wants_a_failure(host: Host) -> None:
    """fail() refuses success, and a failure with another exit code than asked for."""
    assert host.fail("false").exit_code == 1
    assert host.fail("sh", "-c", "exit 4", exit_code=4).exit_code == 4
    with pytest.raises(CommandFailed, match="a failure was wanted"):
        host.fail("true")
    with pytest.raises(CommandFailed, match="exit code 2 was wanted"):
        host.fail("false", exit_code=2)


def test_deadline_kills_and_tells(host: Host, domain: FakeDomain) -> None:
    """At its deadline a program and its children are killed, and the error shows what it printed and the console."""
    domain.say("[    1.000000] something happened\n")
    script = "sleep 3141 & echo half-way; echo bad >&2; wait"
    with pytest.raises(CommandTimeout) as caught:
        host.run("sh", "-c", script, timeout_s=0.4)
    for part in ("fake", "half-way", "bad", "something happened", "sleep 3141", "of 0.4 s", "longer timeout_s"):
        assert part in str(caught.value)
    assert host.run("pgrep", "-f", "^sleep 3141").exit_code == 1
    assert host.run("true").exit_code == 0


def test_child_that_holds_the_output(host: Host) -> None:
    """A daemon that keeps its parent's output open is told from a program that does not end."""
    command = ("sh", "-c", "setsid sleep 4 & exit 0")
    with pytest.raises(CommandTimeout, match="something it started"):
        host.run(*command, timeout_s=0.3)


def test_too_much_output(host: Host, domain: FakeDomain) -> None:
    """Output beyond the limit is an error that says what to do, not a truncated result, and the agent lives on."""
    domain.serve_shell()
    with pytest.raises(UsageError, match=r"more than the 7 MiB.*pull"):
        host.run("head", "-c", str(8 << 20), "/dev/zero")
    assert len(host.run("head", "-c", str(7 << 20), "/dev/zero").stdout) == 7 << 20


def test_nul_in_a_word(host: Host) -> None:
    """A word with a NUL byte cannot be passed and is refused."""
    with pytest.raises(UsageError, match="NUL"):
        host.run("echo", "a\0b")
    with pytest.raises(UsageError, match="program"):
        host.run()


def test_hostile_output_is_cleaned_in_messages(host: Host) -> None:
    """Escape sequences of a program do not reach the terminal by way of an error."""
    with pytest.raises(CommandFailed) as caught:
        host.succeed("sh", "-c", r"printf '\033[31mred\033]0;title\007\000\n'; exit 1")
    assert "\x1b" not in str(caught.value)
    assert "red" in str(caught.value)


def test_wait_until_succeeds(host: Host, tmp_path: Path) -> None:
    """Tries until it works; the last answer is in the error."""
    flag = tmp_path / "flag"
    shutil.rmtree(flag, ignore_errors=True)
    domain = host.domain
    assert isinstance(domain, FakeDomain)
    domain.later(0.3, flag.touch)
    assert host.wait_until_succeeds("test", "-e", flag, timeout_s=10).exit_code == 0
    with pytest.raises(CommandTimeout, match=r"did not succeed within(?s:.*)no luck"):
        host.wait_until_succeeds("sh", "-c", "echo no luck; false", timeout_s=0.3)


def test_background_job(host: Host) -> None:
    """A job runs while others run, shows its output so far, takes signals and is killed with its children."""
    job = host.start("sh", "-c", "echo started; sleep 2718; echo never")
    assert b"started" in job.wait_for_output(b"started", 10)
    assert job.poll() is None
    assert host.run("true").exit_code == 0
    result = job.kill()
    assert result.exit_code == -9
    assert result.stdout == b"started\n"
    # The same signal ends its children, a moment later.
    host.wait_until_succeeds("sh", "-c", "! pgrep -f '^sleep 2718'", timeout_s=5)
    assert job.kill() is result


def test_background_job_ends_by_itself(host: Host) -> None:
    """The end of a job carries exit code and outputs; an overdue one is left running and said so."""
    assert host.start("sh", "-c", "echo x; exit 6").wait(10).exit_code == 6
    assert host.start("no-such-program").wait(10).exit_code == 127
    slow = host.start("sleep", "1618")
    with pytest.raises(CommandTimeout, match="background `sleep 1618`"):
        slow.wait(0.2)
    assert slow.poll() is None
    slow.kill()


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) + 17])
def test_files_there_and_back(host: Host, tmp_path: Path, size: int) -> None:
    """Files of any size and content pass both ways, also when the agent writes less than it was given."""
    data = os.urandom(size)
    target = tmp_path / "new" / "folder" / "file"
    host.write_file(str(target), data, mode=0o600)
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o777 == 0o600
    assert host.read_file(str(target)) == data
    host.pull(str(target), tmp_path / "back")
    host.push(tmp_path / "back", str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == data


def test_missing_file(host: Host) -> None:
    """A file that cannot be read or written says which and why."""
    with pytest.raises(CommandFailed, match=r"/no/such/file.*No such file"):
        host.read_file("/no/such/file")
    with pytest.raises(CommandFailed, match="/proc/none/x"):
        host.write_file("/proc/none/x", b"")


def test_agent_not_connected_yet(host: Host, domain: FakeDomain) -> None:
    """Just after a resume the agent is not there yet: asked again until it is."""
    domain.connected = False
    domain.later(0.2, lambda: setattr(domain, "connected", True))
    assert host.run("true").exit_code == 0


def quiet_agent(domain: FakeDomain, host: Host) -> Agent:
    domain.silent = True
    return Agent(domain, host.console)


def test_dom0_hang(host: Host, domain: FakeDomain) -> None:
    """A silent agent under a living Xen is a dom0 hang; the keys that show its state were pressed."""
    agent = quiet_agent(domain, host)
    with pytest.raises(Dom0Hang, match=r"Xen answers its debug keys(?s:.*)'q' pressed"):
        agent.call("guest-ping", silence_s=1.0)
    assert isinstance(domain, FakeDomain)
    assert domain.typed.endswith(b"q\x01\x01\x01")


def test_answer_to_something_earlier(host: Host, domain: FakeDomain) -> None:
    """An answer without what it must have was meant for another question: the host did not answer this one."""
    with pytest.raises(Dom0Hang, match=r"guest-ping; .* came, the answer to something earlier"):
        Agent(domain, host.console).call("guest-ping", wanted="pid")


def test_hypervisor_hang(host: Host, domain: FakeDomain) -> None:
    """A silent agent under a silent Xen is a hypervisor hang."""
    domain.xen_alive = False
    with pytest.raises(HypervisorHang, match="Xen does not answer its debug keys"):
        quiet_agent(domain, host).call("guest-ping", silence_s=1.0)


def test_a_console_that_takes_no_keys_proves_nothing(host: Host, domain: FakeDomain) -> None:
    """Nobody says that Xen hangs where QEMU keeps what is typed to itself."""
    domain.xen_alive, domain.machine = False, FakeMachine("arm64", timing="deterministic")
    with pytest.raises(HostHang, match="could not be asked") as caught:
        quiet_agent(domain, host).call("guest-ping", silence_s=1.0)
    assert not isinstance(caught.value, HypervisorHang)


def test_stopped_machine_is_no_hang_of_xen(host: Host, domain: FakeDomain) -> None:
    """A machine that somebody paused is told from one that hangs."""
    domain.running = False
    with pytest.raises(HostHang, match="not running but 'paused'"):
        quiet_agent(domain, host).call("guest-ping", silence_s=1.0)


def test_crash_ends_a_command_at_once(host: Host, domain: FakeDomain) -> None:
    """A panic while the agent is silent is reported as a crash, long before the silence has lasted long enough."""
    domain.silent = True
    domain.later(0.3, lambda: domain.say("(XEN) Panic on CPU 1:\n(XEN) oh dear\n"))
    with pytest.raises(HypervisorCrash, match="oh dear"):
        assert elapsed(lambda: host.run("true")) < 5


def test_machine_gone(host: Host, domain: FakeDomain) -> None:
    """The end of QEMU is the lab's error, not a hang."""
    domain.gone = True
    with pytest.raises(DomainGone):
        host.run("true")


def test_close_twice(host: Host) -> None:
    """Closing is harmless, also when nothing was opened, and twice."""
    host.close()
    host.run("true")
    host.close()
    host.close()
