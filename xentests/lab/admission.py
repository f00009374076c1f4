"""Admission by memory: a host starts only if it will fit, counted over all runs of this machine.

What a clone occupies grows while it runs, so free memory alone would let too many in. Every running QEMU has a
reservation; what it has not yet taken of it counts as taken. The kernel's own figure (MemAvailable) does the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from xentests.deadline import until
from xentests.errors import LabFull
from xentests.lab.keeper import qemus

_MARGIN_MIB = 384
_WAIT_S = 60.0


@dataclass(frozen=True)
class Room:
    """Memory as admission sees it, in MiB: what the kernel has, and what running hosts may still take of it."""

    available_mib: int
    promised_mib: int
    hosts: int

    @property
    def free_mib(self) -> int:
        """What a new host may count on."""
        return self.available_mib - self.promised_mib - _MARGIN_MIB


class Admission:
    """The reservations of one lab, kept in its run's root where other runs can read them."""

    def __init__(self, root: Path, *, number: int = 0, available_mib: Callable[[], int] | None = None) -> None:
        self._root = root
        self._file = root / f"reserved-{number}.json"
        self._reserved: dict[str, int] = {}
        self._available = available_mib or _available_mib
        # All there is, where that is known: of this machine.
        self._total_mib = math.inf if available_mib else psutil.virtual_memory().total >> 20

    def reserve(self, name: str, need_mib: int, *, wait_s: float = _WAIT_S) -> None:
        """Take ``need_mib`` for the host ``name``; waits while hosts that may end stand in the way.

        Raises :class:`LabFull` with the figures when it will never fit, or has not within ``wait_s``.
        """
        seen: list[Room] = []

        def try_once() -> bool:
            with self._locked():
                room = self.room()
                seen.append(room)
                if room.free_mib < need_mib:
                    if room.hosts == 0 or need_mib + _MARGIN_MIB > self._total_mib:
                        raise _full(name, need_mib, room)
                    return False
                self._reserved[name] = need_mib
                self._write()
                return True

        until(
            try_once,
            what=f"room for {name}",
            deadline=wait_s,
            error=lambda text: _full(name, need_mib, seen[-1], text),
            every_s=0.1,
        )

    def release(self, name: str) -> None:
        """Give back what ``name`` had."""
        if self._reserved.pop(name, None) is not None:
            with self._locked():
                self._write()

    def room(self) -> Room:
        """The room there is now, over all runs of this user."""
        promised = hosts = 0
        for file in self._root.parent.glob("*/reserved-*.json"):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                reserved: dict[str, int] = json.loads(file.read_text())
                taken = {name: _resident_mib(pid) for pid, name in _running(file.parent.name, reserved)}
                alive = file.parent == self._root
                for name, mib in reserved.items():
                    # A host of ours without a process yet is just being started; another run's is gone.
                    if name in taken or alive:
                        promised += max(0, mib - taken.get(name, 0))
                        hosts += 1
        return Room(available_mib=self._available(), promised_mib=promised, hosts=hosts)

    def _write(self) -> None:
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._reserved))
        temporary.rename(self._file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._root.parent / "admission.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _running(token: str, reserved: dict[str, int]) -> list[tuple[int, str]]:
    return [(pid, name) for pid, line in qemus(token) for name in reserved if f"guest={name},".encode() in line]


def _resident_mib(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss >> 20)
    return 0


def private_mib(pid: int) -> float:
    """MiB that only this process occupies: what a clone has written or made itself (``Private_Dirty``, proc(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _available_mib() -> int:
    return int(psutil.virtual_memory().available >> 20)


def _full(name: str, need_mib: int, room: Room, text: str = "") -> LabFull:
    waited = f" ({text})" if text else ""
    return LabFull(
        f"no room for {name}: it needs {need_mib} MiB, and {max(0, room.free_mib)} MiB can be promised: "
        f"{room.available_mib} MiB are available, {room.promised_mib} MiB of these are promised to {room.hosts} "
        f"running hosts, {_MARGIN_MIB} MiB stay free{waited}. "
        "Run fewer workers (-n), end other runs, or use a smaller machine"
    )
