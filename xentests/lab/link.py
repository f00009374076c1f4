"""A private network cable between two machines: pulled and plugged in again while both run.

Each machine made with ``link=True`` receives frames on a unix datagram socket of its own and sends them to a path at
which nothing is (``domain_xml``). Joining two of them is a symbolic link at each of these paths that leads to the
other's socket, since sendto() looks the path up for every frame. No root, no bridge, no port of the outer machine.

What the interfaces are called and which addresses they have is set inside the machines: ``xentests.host.pair``. As long
as one machine is paused, the QEMU of one that sends to it waits busily.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

from xentests.errors import LabError, UsageError
from xentests.lab.domain_xml import DomainFiles
from xentests.lab.machine import Machine


class Linkable(Protocol):
    """What a cable needs of a :class:`xentests.lab.domain.Domain`."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def machine(self) -> Machine:
        """What it was made from."""

    @property
    def files(self) -> DomainFiles:
        """Where its sockets are."""


class Link:
    """The cable between two machines, not plugged in yet. ``with Link(a, b) as link:`` has it joined within."""

    def __init__(self, a: Linkable, b: Linkable) -> None:
        for domain in (a, b):
            if not domain.machine.link:
                raise UsageError(f"{domain.name} has no network interface for a link: make it with link=True")
        if a is b:
            raise UsageError(f"{a.name} cannot be linked to itself")
        self._ends = ((a, b), (b, a))

    def __enter__(self) -> Link:
        self.join()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cut()

    def __repr__(self) -> str:
        (a, b), _ = self._ends
        return f"<link of {a.name} and {b.name}, {'joined' if self.joined else 'cut'}>"

    @property
    def joined(self) -> bool:
        """Whether frames go through, in both directions."""
        return all(_leads(near.files.peer, far.files.link) for near, far in self._ends)

    def join(self) -> None:
        """Plug it in; harmless when it is. LabError for a machine that has ended or is joined to another."""
        with contextlib.ExitStack() as undo:
            for near, far in self._ends:
                if _leads(near.files.peer, far.files.link):
                    continue
                if not far.files.link.is_socket():
                    raise LabError(f"{far.name} cannot be linked to {near.name}: it has no {far.files.link}; it ended?")
                try:
                    near.files.peer.symlink_to(far.files.link)
                except OSError as error:
                    raise LabError(
                        f"{near.name} cannot be linked to {far.name}: {near.files.peer}: {error.strerror}"
                    ) from error
                undo.callback(near.files.peer.unlink, missing_ok=True)
            undo.pop_all()

    def cut(self) -> None:
        """Pull it: frames are lost from now on, and neither machine is told. Harmless when it is cut."""
        for near, far in self._ends:
            if _leads(near.files.peer, far.files.link):
                near.files.peer.unlink(missing_ok=True)

    def mend(self) -> None:
        """Plug it in again."""
        self.join()


def _leads(path: Path, target: Path) -> bool:
    return path.is_symlink() and path.readlink() == target
