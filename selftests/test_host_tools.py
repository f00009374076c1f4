"""What the tools in dom0 say, as data: xl, xenstore, xen-livepatch and capabilities, on answers of real releases."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selftests.fakes import FakeDomain, FakeImage, FakeMachine
from xentests.errors import CommandFailed, UsageError
from xentests.host.capabilities import NAMES, TABLE, from_data
from xentests.host.command import Result
from xentests.host.facts import kconfig
from xentests.host.host import Host
from xentests.host.livepatch import LivepatchError, parse_list
from xentests.host.xenstore import parse_ls, unescape
from xentests.host.xl import XlError, parse_info
from xentests.host.xl import parse_list as parse_domains

INFO_420 = """\
host                   : dom0
release                : 6.12.117+deb13-amd64
version                : #1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1 (2026-11-12)
machine                : x86_64
nr_cpus                : 2
hw_caps                : 078bf3fd:80002001:20100800:00000005:00000000:00000000:00000000:00000000
virt_caps              : pv hvm hap gnttab-v1 gnttab-v2
total_memory           : 1023
free_memory            : 498
xen_major              : 4
xen_minor              : 20
xen_extra              : .5-pre
xen_version            : 4.20.5-pre
xen_caps               : xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64
xen_scheduler          : credit2
xen_changeset          :
xen_commandline        : console=com1 com1=115200,8n1 conswitch=a:x
cc_compile_date        : Tue Nov  3 20:11:50 UTC 2026
build_id               : 576c0736b3e38388c5afe9aaccc43a18d514e88e
"""

LIST = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0   512     2     r-----      30.6
a guest: with (odd) name 7                   1   128     1     -b----       1.0
(null)                                       3     0     1     --ps-d       4.1
crashed                                      4   128     1     ---sc-       9.9
"""

PAYLOADS = """\
 ID                                     | status     | metadata
----------------------------------------+------------+---------------
first                                   | APPLIED    | version=1;author=me
a name that is longer than forty characters are| CHECKED (22, Invalid argument)    |\x20
odd | name                              | CHECKED    |\x20
"""


@pytest.fixture
def domain(tmp_path: Path) -> FakeDomain:
    return FakeDomain(tmp_path)


@pytest.fixture
def host(domain: FakeDomain) -> Iterator[Host]:
    host = Host(domain, FakeImage())
    yield host
    host.close()


def answering(answers: dict[str, str | int]) -> Callable[[list[str]], tuple[int, bytes] | None]:
    """Programs by their command line: what they print, or the exit code with which they fail."""

    def answer(argv: list[str]) -> tuple[int, bytes] | None:
        said = answers.get(" ".join(argv), 1)
        return (0, said.encode()) if isinstance(said, str) else (said, b"")

    return answer


def test_xl_info() -> None:
    """Numbers are numbers, lists are lists, and a colon in a value stays in it."""
    info = parse_info(INFO_420)
    assert (info.xen_major, info.xen_minor, info.xen_extra, info.xen_version) == (4, 20, ".5-pre", "4.20.5-pre")
    assert info.virt_caps == ("pv", "hvm", "hap", "gnttab-v1", "gnttab-v2")
    assert (info.nr_cpus, info.total_memory, info.free_memory) == (2, 1023, 498)
    assert info.xen_commandline == "console=com1 com1=115200,8n1 conswitch=a:x"
    assert (info.xen_changeset, info.build_id[:8], info.kernel) == ("", "576c0736", "6.12.117+deb13-amd64")
    with pytest.raises(XlError, match="no number for nr_cpus: None"):
        _ = parse_info("free_memory : 1\n").nr_cpus


def test_xl_list() -> None:
    """Names with spaces, domains without a name, dying and crashed ones are told apart."""
    dom0, odd, dying, crashed = parse_domains(LIST)
    assert (dom0.name, dom0.domid, dom0.memory_mib, dom0.vcpus) == ("Domain-0", 0, 512, 2)
    assert odd.name == "a guest: with (odd) name 7"
    assert (dying.name, dying.dying, dying.paused, dying.crashed) == ("(null)", True, True, False)
    assert crashed.crashed
    with pytest.raises(XlError, match="no heading"):
        parse_domains("libxl: error: nothing works\n")
    with pytest.raises(XlError, match="not a domain: 'gibberish'"):
        parse_domains(LIST + "gibberish\n")


def test_debug_keys_return_what_xen_said(host: Host, domain: FakeDomain) -> None:
    """Only what came after the key was pressed is returned, also when it is what came before, and the ring is full."""
    ring = ["(XEN) Xen version 4.20\n(XEN) *** Serial input to DOM0\n"]

    def answer(argv: list[str]) -> tuple[int, bytes]:
        if argv[1] == "debug-keys":
            ring.append(f"(XEN) '{argv[2]}' pressed -> dumping run queues\n")
        return 0, "".join(ring).encode() if argv[1] == "dmesg" else b""

    domain.on_program = answer
    for press in range(30):
        assert host.xl.debug_keys("r") == "(XEN) 'r' pressed -> dumping run queues\n", press
    ring.insert(0, "(XEN) what the ring is about to forget\n" * 200)

    def forgetful(argv: list[str]) -> tuple[int, bytes]:
        code, output = answer(argv)
        return code, output[-6000:]

    domain.on_program = forgetful
    assert host.xl.debug_keys("q") == "(XEN) 'q' pressed -> dumping run queues\n"


@pytest.mark.parametrize(
    ("shown", "meant"),
    [
        (r"a\tb\nc\rd\\e", "a\tb\nc\rd\\e"),
        (r"\xc3\xbc\xe9\x9b\xaa", "ü雪"),
        (r"\000\007", "\0\a"),
        (r"\xff", "ÿ"),
        (r"\\x41", r"\x41"),
    ],
)
def test_xenstore_escapes(shown: str, meant: str) -> None:
    """What the clients escape is read back as it stands in the store."""
    assert unescape(shown) == meant


def test_xenstore_ls() -> None:
    """Values with quotes and equal signs, empty values and nodes without a readable value."""
    text = '/a = "1"\n/a/b = "x = "y""\n/a/c = ""\n/secret:\n\n/a/d = "two\\nlines"\n'
    assert parse_ls(text) == {"/a": "1", "/a/b": 'x = "y"', "/a/c": "", "/secret": "", "/a/d": "two\nlines"}


def test_xenstore_ls_of_nothing(host: Host, domain: FakeDomain) -> None:
    """No such node is an empty answer; a node that cannot be listed is a failure."""
    domain.on_program = answering({})
    assert host.xenstore.ls("/none") == {}
    domain.on_program = answering({"xenstore-exists /there": ""})
    with pytest.raises(CommandFailed, match="xenstore-ls -f /there"):
        host.xenstore.ls("/there")


def test_livepatch_list() -> None:
    """Long and odd names, states, errors of the last action, metadata."""
    first, long, odd = parse_list(PAYLOADS)
    assert (first.name, first.state, first.error, first.metadata) == ("first", "APPLIED", "", "version=1;author=me")
    assert (long.name[-8:], long.state, long.error) == ("ters are", "CHECKED", "EINVAL")
    assert (odd.name, odd.state) == ("odd | name", "CHECKED")
    assert parse_list("Nothing to list\n") == []


@pytest.mark.parametrize(
    ("code", "stderr", "errno", "state"),
    [
        (1, "Error 22: Invalid argument\n", "EINVAL", ""),
        (1, "Failed to get status of x.\nError 2: No such file or directory\n", "ENOENT", ""),
        (2, "Cannot execute apply.\nOperation already in progress.\n", "EAGAIN", ""),
        (1, "x is in the wrong state.\nCurrent state: APPLIED\nExpected state: CHECKED\n", "", "APPLIED"),
        (1, "ID must be no more than 128 characters.\n", "EINVAL", ""),
    ],
)
def test_livepatch_errors(code: int, stderr: str, errno: str, state: str) -> None:
    """A refusal carries the name of its errno, or the state that was in the way."""
    error = LivepatchError(Result(("xen-livepatch", "apply", "x"), code, b"", stderr.encode(), 0.1, "fake"))
    assert (error.errno, error.state) == (errno, state)
    assert stderr.splitlines()[0] in str(error)


def test_livepatch_is_asked_again_as_it_wishes(host: Host, domain: FakeDomain) -> None:
    """Exit code 2 means "try again", and is, within the patience; without patience it is the answer."""
    codes = [2, 2, 0]
    domain.on_program = lambda argv: (codes.pop(0), b"")
    host.livepatch.payload("x").apply(patience_s=30)
    codes[:] = [2, 0]
    with pytest.raises(LivepatchError) as caught:
        host.livepatch.payload("x").apply(patience_s=0)
    assert caught.value.errno == "EAGAIN"


def test_capabilities_are_documented() -> None:
    """Each has a name of its own, a meaning and a source."""
    assert len(NAMES) == len(TABLE)
    assert all(entry.meaning and entry.read_from for entry in TABLE)


CONFIG = "CONFIG_X86_64=y\nCONFIG_HYPFS=y\n# CONFIG_LIVEPATCH is not set\nCONFIG_SCHED_CREDIT2=y\nCONFIG_PV=y\n"


def test_capabilities(host: Host, domain: FakeDomain) -> None:
    """Present, not built, or not on this machine: each missing one says which and why."""
    domain.on_program = answering({"xl info": INFO_420, "xenhypfs cat /buildinfo/config": CONFIG, "xl help": ""})
    found = host.capabilities
    assert found["credit2"]
    assert found["hap"]
    assert found["svm"]
    assert found["amd64"]
    assert found["livepatch"].reason == "not built: CONFIG_LIVEPATCH is not set"
    assert found["rtds"].reason == "not built: CONFIG_SCHED_RTDS is not set"
    assert found["shadow"].reason == "not built: CONFIG_SHADOW_PAGING is not set"
    assert found["vmx"].reason == "not on this machine: the CPU has no VMX (xl info: hw_caps)"
    assert found["arm64"].kind == "not on this machine"
    assert [entry.name for entry in found.missing("pv", "rtds", "vmx")] == ["rtds", "vmx"]
    with pytest.raises(UsageError, match="unknown capability 'lievpatch'; there are: amd64"):
        _ = found["lievpatch"]


def test_capabilities_as_data(host: Host, domain: FakeDomain) -> None:
    """What was read can be kept and read back the same."""
    domain.on_program = answering({"xl info": INFO_420, "xenhypfs cat /buildinfo/config": CONFIG, "xl help": ""})
    assert from_data(host.capabilities.as_data()) == dict(host.capabilities)


def test_configuration_from_the_package(tmp_path: Path) -> None:
    """A hypervisor that shows no configuration is asked through its package; one without either says so."""
    package = tmp_path / "config"
    package.write_bytes(gzip.compress(b"CONFIG_SCHED_RTDS=y\n"))
    domain = FakeDomain(tmp_path, FakeMachine())
    domain.on_program = answering({"xl info": INFO_420})
    host = Host(domain, FakeImage(xen_config=package))
    assert host.capabilities["rtds"]
    host.close()
    host = Host(domain, FakeImage())
    assert host.capabilities["rtds"].reason.startswith("not built: CONFIG_SCHED_RTDS cannot be read")
    host.close()


def test_kconfig() -> None:
    """Options that are set, with their values; comments and options that are not set are left out."""
    data = b'# comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="text"\nCONFIG_D=12\n'
    assert kconfig(data) == kconfig(gzip.compress(data)) == {"CONFIG_A": "y", "CONFIG_C": "text", "CONFIG_D": "12"}


def test_inspect_asks_through_the_agent(host: Host, domain: FakeDomain) -> None:
    """testinfra's questions run in dom0, with its quoting, and a failure is a result."""
    assert host.inspect.check_output("printf %s %s", "%s", "a b'c") == "a b'c"
    assert host.inspect.run("exit 3").rc == 3
    assert host.inspect.file("/proc/self").exists
    assert "guest-exec" in domain.calls
