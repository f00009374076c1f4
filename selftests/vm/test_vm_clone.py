"""Clones are pristine, private and many; a damaged template is noticed; a machine that is too big is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xentests.errors import DomainGone, LabFull
from xentests.host.host import Host
from xentests.lab import keeper, template
from xentests.lab.lab import Lab
from xentests.lab.machine import Machine
from xentests.session import Options, Session, machine_of


@pytest.fixture
def clone(session: Session, runs: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[], Host]]:
    """Makes clones of the default host; they end with the test."""
    made: list[Host] = []

    def make() -> Host:
        name = f"{request.node.name}-{len(made)}"
        made.append(session.clone(session.template(), name=name, log_dir=runs / name, standby=False))
        return made[-1]

    yield make
    for host in made:
        session.end(host)


def test_clones_share_nothing_that_they_write(clone: Callable[[], Host]) -> None:
    """A file, memory and xenstore of one clone are not the other's, although both came from one template."""
    first, second = clone(), clone()
    first.succeed("sh", "-c", "echo mine > /root/on-disk; echo mine > /run/in-memory; xenstore-write /mine 1; sync")
    second.fail("ls", "/root/on-disk")
    second.fail("ls", "/run/in-memory")
    second.fail("xenstore-read", "/mine")
    assert clone().run("ls", "/root/on-disk").exit_code != 0


def test_clones_differ_where_identity_matters(clone: Callable[[], Host]) -> None:
    """Two clones of one template do not draw the same random numbers."""
    drawn = [host.succeed("sh", "-c", "cat /proc/sys/kernel/random/uuid").text for host in (clone(), clone())]
    assert drawn[0] != drawn[1]


def test_a_clone_knows_what_day_it_is(clone: Callable[[], Host]) -> None:
    """Its clock was set when it woke, however old its template is."""
    inside = float(clone().succeed("date", "+%s.%N").text)
    outside = float(subprocess.run(["date", "+%s.%N"], check=True, capture_output=True, text=True).stdout)
    assert abs(inside - outside) < 5


def test_the_console_log_of_a_clone_holds_its_templates_boot(clone: Callable[[], Host]) -> None:
    """From the first byte: the banner of Xen is in it although this machine never booted."""
    host = clone()
    log = host.domain.console_log.read_bytes()
    assert log.count(b"(XEN) Xen version") == 1
    assert b"xentests: dom0 ready" in log[: host.domain.console_start]


def test_a_qemu_killed_during_a_test_is_the_labs_fault(clone: Callable[[], Host]) -> None:
    """Not the product's: DomainGone, which says where to look."""
    host = clone()
    pid = machine_of(host).pid()
    assert pid is not None
    subprocess.run(["kill", "-9", str(pid)], check=True)
    with pytest.raises(DomainGone, match="out-of-memory killer"):
        host.succeed("sleep", "20")


def test_a_machine_that_does_not_fit_is_refused_with_the_figures(session: Session, runs: Path) -> None:
    """Admission is by memory, before a QEMU is started."""
    with pytest.raises(LabFull, match=r"no room for .* it needs \d{7,} MiB, and \d+ MiB can be promised"):
        session.boot(name="giant", log_dir=runs / "giant", machine=Machine("amd64", memory_mib=2 << 20))


def test_a_damaged_template_is_made_anew_once_and_this_is_said(session: Session, runs: Path) -> None:
    """One flipped byte of RAM in the store: the next run notices, says so, rebuilds, and its host works.

    The template is one that no other test uses: they run beside this one, and would miss it while it is made anew.
    """
    machine = Machine("amd64", dom0_args=("xentests=damaged",))
    original = session.template(machine).entry
    ram = original.file(template.RAM)
    with ram.open("r+b") as file:
        file.seek(8 << 20)
        byte = file.read(1)
        file.seek(8 << 20)
        file.write(bytes([byte[0] ^ 0x40]))
    code = (
        "import sys; from pathlib import Path; from xentests.lab.machine import Machine\n"
        "from xentests.session import Options, Session\n"
        "with Session(Options(run_dir=Path(sys.argv[1])), say=print) as session:\n"
        f"    template = session.template({machine!r})\n"
        "    host = session.clone(template, name='after', log_dir=Path(sys.argv[1]) / 'after')\n"
        "    print('answered', host.succeed('echo', 'yes').text)\n"
    )
    argv = [sys.executable, "-c", code, str(runs / "damaged")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout.count("was damaged and is made anew") == 1, done.stdout + done.stderr
    assert "answered yes" in done.stdout, done.stdout + done.stderr


def test_labs_one_after_another_in_one_process(session: Session, runs: Path) -> None:
    """libvirt's embedded driver has one root a process: a second lab must not stumble over it."""
    with Session(Options(run_dir=runs / "second")) as second:
        host = second.clone(second.template(), name="second", log_dir=runs / "second" / "host", standby=False)
        host.succeed("true")
    assert isinstance(session.lab, Lab)


@pytest.mark.parametrize("arch", ["arm64"])
def test_clones_of_arm64_keep_time(arch: str, runs: Path) -> None:
    """QEMU does not re-arm the EL2 timer on restore: a clone must sleep and wake on each of its CPUs all the same."""
    with Session(Options(run_dir=runs / arch, arch=arch)) as session:
        for number in range(3):
            name = f"arm{number}"
            host = session.clone(session.template(), name=name, log_dir=runs / name, standby=number < 2)
            for cpu in range(2):
                host.succeed("xl", "vcpu-pin", "0", "0", cpu)
                took = host.succeed("sleep", "0.3", timeout_s=10.0).duration_s
                assert took < 5
            session.end(host)


def test_a_machine_under_another_qemu(session: Session, runs: Path) -> None:
    """It runs that QEMU, from the store and with its own libraries; the keeper of a killed run would find it."""
    machine = session.machine.with_(qemu="debian:trixie")
    host = session.clone(session.template(machine), name="other", log_dir=runs / "other", standby=False)
    host.succeed("true")
    pid = machine_of(host).pid()
    assert pid in [found for found, _ in keeper.qemus(machine_of(host).libvirt_name)]
    mapped = Path(f"/proc/{pid}/maps").read_text().split()
    programs = {word for word in mapped if word.startswith("/") and (".so" in word or "/bin/" in word)}
    assert programs
    assert all(word.startswith(f"{session.store.root}/qemu/") for word in programs)
    assert session.lab.facts(machine)["QEMU"].startswith("10.")
    session.end(host)
