"""Cables between machines: what is at both ends' paths when they are joined, cut, mended, or cannot be."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from xentests.errors import LabError, UsageError
from xentests.lab.domain_xml import DomainFiles
from xentests.lab.link import Link
from xentests.lab.machine import Machine


@dataclass(frozen=True)
class FakeEnd:
    """A machine that is a datagram socket alone, bound as QEMU does it."""

    name: str
    machine: Machine
    files: DomainFiles
    receiver: socket.socket

    def send(self, frame: bytes) -> None:
        self.receiver.sendto(frame, str(self.files.peer))

    def receive(self) -> bytes:
        return self.receiver.recv(100)


Ends = dict[str, FakeEnd]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    """Machines a, b and c."""
    with ExitStack() as stack:
        made = {}
        for name in "abc":
            folder = tmp_path / name
            folder.mkdir()
            files = DomainFiles(disk=folder, console_log=folder, sockets=folder)
            receiver = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            receiver.bind(str(files.link))
            receiver.settimeout(5)
            made[name] = FakeEnd(name, Machine("amd64", link=True), files, receiver)
        yield made


def test_joined_ends_hear_each_other(ends: Ends) -> None:
    """A frame goes to the other end, both ways; within the context only."""
    with Link(ends["a"], ends["b"]) as link:
        assert link.joined
        ends["a"].send(b"from a")
        ends["b"].send(b"from b")
        assert (ends["a"].receive(), ends["b"].receive()) == (b"from b", b"from a")
    assert not link.joined
    assert "cut" in repr(link)


def test_cut_and_mended(ends: Ends) -> None:
    """A cut cable has nobody at its end; mended it is as before. Twice is as good as once."""
    with Link(ends["a"], ends["b"]) as link:
        for _ in range(2):
            link.cut()
        for name in "ab":
            with pytest.raises(FileNotFoundError):
                ends[name].send(b"lost")
        for _ in range(2):
            link.mend()
        ends["a"].send(b"again")
        assert ends["b"].receive() == b"again"


def test_half_a_cable_is_none(ends: Ends) -> None:
    """A cable that is out at one end is not joined, and joining puts it right."""
    with Link(ends["a"], ends["b"]) as link:
        ends["b"].files.peer.unlink()
        assert not link.joined
        link.mend()
        assert link.joined


def test_taken_end(ends: Ends) -> None:
    """A machine has one interface: a second cable is refused, and the first is left alone."""
    with Link(ends["a"], ends["b"]) as first:
        second = Link(ends["c"], ends["a"])
        with pytest.raises(LabError, match=r"a cannot be linked to c: .*/a/peer: File exists"):
            second.join()
        assert not ends["c"].files.peer.is_symlink()
        second.cut()
        assert first.joined


def test_machine_that_ended(ends: Ends) -> None:
    """A machine whose socket is gone cannot be joined; cutting the cable to it is no error."""
    with Link(ends["a"], ends["b"]) as link:
        ends["b"].files.link.unlink()
        ends["b"].files.peer.unlink()
        link.cut()
        with pytest.raises(LabError, match=r"b cannot be linked to a: it has no .*/b/link"):
            link.join()
        assert not ends["a"].files.peer.is_symlink()


def test_machine_without_an_interface(ends: Ends) -> None:
    """The error says what to ask for."""
    bare = FakeEnd("bare", Machine("amd64"), ends["b"].files, ends["b"].receiver)
    with pytest.raises(UsageError, match=r"bare has no network interface .* link=True"):
        Link(ends["a"], bare)
    with pytest.raises(UsageError, match="a cannot be linked to itself"):
        Link(ends["a"], ends["a"])
