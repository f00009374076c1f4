"""The program that wakes a clone: it is a program, does its calls in order, and says which failed."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from selftests.fakes import FakeDomain, FakeImage, FakeMachine
from xentests.errors import ProductFailure
from xentests.host import wake
from xentests.host.host import Host
from xentests.host.wake_program import HERE, SEED_BYTES, failed_calls, program, rearming, request
from xentests.lab import template

NO_CLOCK = 0x7FFF_FFF0
"""There is no such clock, so clock_settime() fails and the clock of this machine is left alone."""

_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}


@pytest.mark.parametrize(("arch", "machine"), [("amd64", "EM_X86_64"), ("arm64", "EM_AARCH64")])
def test_it_is_an_elf_program(tmp_path: Path, arch: str, machine: str) -> None:
    """One readable and executable segment that holds the entry point and ends with the device's name."""
    path = tmp_path / "program"
    path.write_bytes(program(arch))
    with path.open("rb") as file:
        elf = ELFFile(file)
        (segment,) = elf.iter_segments()
        assert (elf["e_machine"], elf["e_type"], segment["p_flags"]) == (machine, "ET_EXEC", 5)
        assert segment["p_vaddr"] < elf["e_entry"] < segment["p_vaddr"] + segment["p_filesz"]
        assert segment["p_filesz"] == path.stat().st_size < 600
        assert segment.data().endswith(b"/dev/urandom\0")
    visiting = program(arch, visit=(0, 1))
    assert b"/dev/xen/privcmd\0" in visiting
    assert len(visiting) < 1400
    assert len(rearming(arch)) < 400


def test_it_says_that_it_cannot_visit(tmp_path: Path) -> None:
    """Where there is no Xen, or no hypercall, the calls by which it moves from CPU to CPU fail, and it says so."""
    path, arch = tmp_path / "program", _ARCHES[platform.machine()]

    def failed(content: bytes) -> list[str]:
        path.write_bytes(content)
        path.chmod(0o755)
        return failed_calls(subprocess.run([path], input=b"", check=False).returncode)

    for privcmd, names in (("/no/such", {"open privcmd"}), ("/dev/null", {"SCHEDOP_pin_override", "SCHEDOP_poll"})):
        assert names <= set(failed(program(arch, visit=(0, 1), clock=NO_CLOCK, privcmd=privcmd)))
    assert "SCHEDOP_pin_override" not in failed(program(arch, visit=(HERE,), clock=NO_CLOCK, privcmd="/dev/null"))
    assert failed(rearming(arch, privcmd="/dev/null")) == ["SCHEDOP_poll"]


@pytest.mark.parametrize(
    ("device", "data", "failed"),
    [
        ("/dev/null", request(time.time(), b""), ["clock_settime", "RNDADDENTROPY", "RNDRESEEDCRNG"]),
        ("/no/such", b"", ["read", "clock_settime", "open", "RNDADDENTROPY", "RNDRESEEDCRNG"]),
    ],
    ids=["null", "nothing"],
)
def test_each_failed_call_has_its_bit(tmp_path: Path, device: str, data: bytes, failed: list[str]) -> None:
    """Run on this machine with a clock and a device that cannot work, it says which of its calls failed."""
    path = tmp_path / "program"
    path.write_bytes(program(_ARCHES[platform.machine()], clock=NO_CLOCK, device=device))
    path.chmod(0o755)
    done = subprocess.run([path], input=data, check=False)
    assert failed_calls(done.returncode) == failed


def test_request() -> None:
    """Time and seed are where the kernel's structures want them."""
    assert len(request(0.0, b"")) == 16 + 8 + SEED_BYTES
    assert request(3.5, b"ab")[:26] == bytes.fromhex("0300000000000000 0065cd1d00000000 00020000 40000000") + b"ab"


def test_a_failed_wake_says_what_failed(tmp_path: Path) -> None:
    """A clone whose clock cannot be set must not be handed out as if it could."""
    domain = FakeDomain(tmp_path)
    host = Host(domain, FakeImage())
    domain.on_program = lambda argv: (2, b"") if argv[0].startswith("/run/xentests/wake-") else None
    with pytest.raises(ProductFailure, match=r"fake: waking dom0 failed \(clock_settime\)"):
        host.wake()
    host.close()


@pytest.mark.parametrize(("xen_args", "visited"), [((), 2), (("sched=null",), 0)], ids=["credit2", "null"])
def test_which_cpus_are_visited(tmp_path: Path, xen_args: tuple[str, ...], visited: int) -> None:
    """Every CPU of an arm64 host; only that on which dom0 is where null would not let it come back from another."""
    domain = FakeDomain(tmp_path, FakeMachine("arm64", xen_args=xen_args))
    run: list[str] = []

    def ran(argv: list[str]) -> tuple[int, bytes] | None:
        if argv[0].startswith("/run/xentests/wake-"):
            run.append(argv[0])
            return 0, b""
        return None

    domain.on_program = ran
    host = Host(domain, FakeImage())
    wake.install(host)
    assert host.read_file(run[0]) == program("arm64", visit=range(visited) if visited else (HERE,))
    host.close()


def test_what_a_frozen_host_waits_for() -> None:
    """The lab writes over the word that dom0 looks at; only its beginning changes, and nothing else has it."""
    assert " ".join(wake.ASLEEP).encode() == template.ASLEEP
    assert len(template.AWAKE) == len(template.ASLEEP)
    assert template.AWAKE.split()[0] != template.ASLEEP.split()[0]
    assert template.AWAKE.split()[1] == template.ASLEEP.split()[1]


def test_deterministic_machines_are_left_alone(tmp_path: Path) -> None:
    """A deterministic machine is not touched after its resume: its clones must repeat each other."""
    domain = FakeDomain(tmp_path, FakeMachine(timing="deterministic"))
    Host(domain, FakeImage()).wake()
    assert domain.calls == []
