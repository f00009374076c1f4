"""What Xen answers to HYPERVISOR_xen_version, asked through /sys/hypervisor by dom0's kernel or by a guest's.

The kernel asks Xen anew at every read, and reading a file needs no program in dom0: the quickest way to see whether
patched code runs. ``host.xl.info()`` tells the same and more, by a program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from xentests.host.guest_log import GuestFailure

if TYPE_CHECKING:
    from xentests.host.guests import Guest
    from xentests.host.host import Host

Member = Literal["version/extra", "version/minor", "version/major", "compilation/compiler", "properties/changeset"]
"""A file below /sys/hypervisor (Linux: Documentation/ABI/stable/sysfs-hypervisor-xen)."""


def dom0_sees(host: Host, member: Member = "version/extra") -> str:
    """What dom0's kernel is told now."""
    return host.read_file(f"/sys/hypervisor/{member}").decode("utf-8", "replace").rstrip("\n")


def guest_sees(guest: Guest, member: Member = "version/extra") -> str:
    """What a guest's kernel is told now, by the shell on its console. Raises GuestFailure."""
    answer = guest.console.run(f"cat /sys/hypervisor/{member}")
    if answer.exit_code != 0:
        raise GuestFailure(f"guest {guest.name}: `{answer.command}` failed: {answer.text}")
    return answer.text.strip()
