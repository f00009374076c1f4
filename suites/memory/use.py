"""What tests of giant guests do and look at: pages by frame, and the size of a guest as everybody has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from xentests.host import frames
from xentests.host.frames_program import Window
from xentests.host.guests import Guest
from xentests.host.xl import parse_list

_BALLOON = "/sys/devices/system/xen_memory/xen_memory0"
BALLOON_S = 90.0


@dataclass(frozen=True)
class Sizes:
    """A guest's memory in MiB as each has it: Xen, its limit there, xl, xenstore, the guest's balloon.

    ``ends_mib`` is where the guest's own map of its memory ends.
    """

    xen_mib: int
    limit_mib: int
    listed_mib: int
    target_mib: int
    static_max_mib: int
    balloon_mib: int
    ends_mib: int


def sizes_of(guest: Guest) -> Sizes:
    """What they are now."""
    host, path = guest.host, f"/local/domain/{guest.domid}/memory"
    listed = parse_list(host.succeed("xl", "list", guest.name).text)[0]
    pages, limit = _pages(guest)
    last = guest.succeed("grep 'System RAM' /proc/iomem | tail -n 1").split(" ")[0].split("-")[1]
    return Sizes(
        xen_mib=pages >> 8,
        limit_mib=limit >> 8,
        listed_mib=listed.memory_mib,
        target_mib=int(host.xenstore.read(f"{path}/target")) >> 10,
        static_max_mib=int(host.xenstore.read(f"{path}/static-max")) >> 10,
        balloon_mib=int(guest.succeed(f"cat {_BALLOON}/info/current_kb")) >> 10,
        ends_mib=(int(last, 16) + 1) >> 20,
    )


def _pages(guest: Guest) -> tuple[int, int]:
    """Pages that Xen has given it, and how many it may have: the debug key q (xen/common/keyhandler.c)."""
    said = guest.host.xl.debug_keys("q")
    mine = said.partition(f"General information for domain {guest.domid}:")[2]
    found = re.search(r"nr_pages=(\d+).* max_pages=(\d+)", mine)
    assert found, f"Xen says nothing of domain {guest.domid} on the debug key q: {said}"
    return int(found[1]), int(found[2])


def use_all(guest: Guest, windows: Mapping[str, Window]) -> dict[str, Window]:
    """Use pages of each window; none may be empty and none may have lost what was written. Prints the figures."""
    used = frames.use(guest, list(windows.values()))
    found = dict(zip(windows, used.windows, strict=True))
    for name, part in found.items():
        print(
            f"{name}: frames {part.first:#x} to {part.last:#x}: {part.pages} pages from {part.lowest:#x} to "
            f"{part.highest:#x}, {part.wrong} wrong"
        )
    missing = [name for name, part in found.items() if part.pages < part.wanted]
    assert not missing, (
        f"guest {guest.name} has too few frames {' and '.join(missing)} for a guest of {guest.spec.memory_mib} MiB "
        f"(Linux caps itself at 512 GiB without xen_512gb_limit=0): {found}; its memory ends at "
        f"{sizes_of(guest).ends_mib} MiB"
    )
    assert used.wrong == 0, f"guest {guest.name}: {used.wrong} of {used.pages} pages lost what was written: {found}"
    return found


def balloon(guest: Guest, mib: int) -> None:
    """Set the guest's target, and wait until its balloon is there."""
    guest.succeed(f"echo 1 > {_BALLOON}/max_schedule_delay")
    guest.xl("mem-set", f"{mib}m")
    off = f"off=$(($(cat {_BALLOON}/info/current_kb) - {mib << 10})); [ ${{off#-}} -le 1024 ] && echo reached"
    guest.wait_for(off, "reached", BALLOON_S)
