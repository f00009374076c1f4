"""What a host holds at one moment, and what too much later: domains, xenstore nodes, processes, devices, files.

One program in dom0 reads it all. Values and process ids are not compared: things that come and go by themselves (kernel
workers, this reader) are left out by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.host.xenstore import parse_ls
from xentests.host.xl import parse_info, parse_list

if TYPE_CHECKING:
    from xentests.host.host import Host

_MARK = "@@xentests-section@@"
_SCRIPT = f"""
section() {{ echo "{_MARK}$1"; }}
section xenstore; xenstore-ls -f /
section domains; xl list
section info; xl info
section processes; ps -e -o args=
section devices; ls /sys/bus/xen-backend/devices /sys/class/net /sys/block
section files; find /var/lib/xen /run/xen /run/xenstored -xdev 2>/dev/null
section end
"""
# The client that bridges a guest's console is the harness's own (guest_console), and there while somebody talks to it.
_PASSING = re.compile(
    r"^\[kworker/|^ps -e -o args=|^sh -c \s*section|^\[(?:ata|scsi|jbd2|ext4)|^xenconsole --interactive "
)

# Made with the first guest of a boot and kept on purpose.
KEPT = {
    "xenstore node /libxl": "where libxl keeps its domains",
    "xenstore node /vm": "where the toolstack keeps its domains, by UUID",
    "xenstore node /local/domain/0/backend": "where dom0's back ends keep their devices",
    "xenstore node /local/domain/0/device-model": "where device models of dom0 keep their state",
    "file /run/xen/domid-history": "libxl's list of domain ids that must not be used again soon",
}

FREE_MEMORY_SLACK_MIB = 2
"""Free memory may differ by this much: xl counts in whole MiB, and Xen's own heap grows by pages."""


class Leak(ProductFailure):
    """Something that was there after an action had not been there before it."""


@dataclass(frozen=True)
class Snapshot:
    """What a host holds. Compare with ``since``."""

    xenstore: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    processes: Counter[str] = field(default_factory=Counter)
    devices: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    free_memory_mib: int = 0

    def since(self, before: Snapshot) -> list[str]:
        """What is here and was not before, one line each; empty when nothing leaked."""
        found = [
            f"{kind} {name}"
            for kind, mine, theirs in (
                ("domain", self.domains, before.domains),
                ("xenstore node", self.xenstore, before.xenstore),
                ("device", self.devices, before.devices),
                ("file", self.files, before.files),
            )
            for name in _topmost(frozenset(name for name in mine - theirs if f"{kind} {name}" not in KEPT))
        ]
        found += [f"process {name} ({number})" for name, number in (self.processes - before.processes).items()]
        lost = before.free_memory_mib - self.free_memory_mib
        if lost > FREE_MEMORY_SLACK_MIB:
            found.append(f"{lost} MiB of Xen's free memory ({before.free_memory_mib} -> {self.free_memory_mib})")
        return found


def _topmost(paths: frozenset[str]) -> list[str]:
    """Without what lies below another of them: a leaked directory is one leak."""
    return sorted(path for path in paths if path.rpartition("/")[0] not in paths)


def parse_snapshot(text: str) -> Snapshot:
    """What the reading program printed."""
    sections = {}
    for part in text.split(_MARK)[1:]:
        name, _, content = part.partition("\n")
        sections[name] = content
    processes = [line.strip() for line in sections["processes"].split("\n")]
    folder, devices = "", set()
    for line in sections["devices"].split("\n"):
        if line.startswith("/"):
            folder = line.rstrip(":")
        elif line.strip():
            devices.add(f"{folder}/{line.strip()}")
    return Snapshot(
        xenstore=frozenset(parse_ls(sections["xenstore"])),
        domains=frozenset(f"{entry.name} (id {entry.domid})" for entry in parse_list(sections["domains"])),
        processes=Counter(line for line in processes if line and not _PASSING.search(line)),
        devices=frozenset(devices),
        files=frozenset(line for line in sections["files"].split("\n") if line),
        free_memory_mib=parse_info(sections["info"]).free_memory,
    )


class Leaks:
    """``host.leaks``."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def snapshot(self) -> Snapshot:
        """What the host holds now."""
        return parse_snapshot(self._host.succeed("sh", "-c", _SCRIPT).text)

    def check(self, before: Snapshot, *, settle_s: float = 10.0) -> None:
        """Raise Leak, naming each, if more is held than in ``before``. What needs a moment to go has ``settle_s``."""
        leaks: list[str] = []

        def clear() -> bool:
            nonlocal leaks
            leaks = self.snapshot().since(before)
            return not leaks

        error: Callable[[str], Leak] = lambda _: Leak(  # noqa: E731
            f"{self._host.name}: left behind, still after {settle_s:.0f} s:\n"
            + "\n".join(f"    {leak}" for leak in leaks)
        )
        until(clear, what="no leaks", deadline=settle_s, error=error, every_s=0.2)
