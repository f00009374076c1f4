"""Using a guest's memory by physical frame: the program for it goes into the guest's initrd, and is run by its shell.

For x86-64 guests that boot the initrd of the image. What the program does is ``frames_program``'s business.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xentests.host.frames_program import FAILURES, Window, answer, program, request
from xentests.host.guest_spec import GUEST_INITRD
from xentests.image.cpio import Cpio

if TYPE_CHECKING:
    from xentests.host.guests import Guest
    from xentests.host.host import Host

INITRD = "/run/xentests/guest-frames"
"""In dom0, after ``install``: what ``GuestSpec.initrd`` is to be."""


@dataclass(frozen=True)
class Used:
    """What came of it: pages touched and wrong in all, and the windows with their figures."""

    pages: int
    wrong: int
    windows: tuple[Window, ...]


def install(host: Host) -> None:
    """Make ``INITRD`` in dom0: the guests' own, and the program behind it (Linux unpacks one archive after another)."""
    archive = Cpio()
    archive.file("bin/frames", program(), 0o755)
    host.write_file(f"{INITRD}.cpio", archive.data())
    host.succeed("sh", "-c", 'cat "$1" "$2.cpio" >"$2"', "join", GUEST_INITRD, INITRD)


def use(guest: Guest, windows: Sequence[Window], *, limit_mib: int = 768, timeout_s: float = 120.0) -> Used:
    """Write to and read from pages of all ``windows``, of which the guest must have free ones.

    At most ``limit_mib`` and seven eighths of the guest's free memory are touched. Raises GuestFailure when the program
    cannot run.
    """
    free_kib = int(guest.succeed("awk '/^MemFree/ { print $2 }' /proc/meminfo"))
    asked = base64.b64encode(request(windows, min(limit_mib << 8, free_kib // 4 * 7 // 8))).decode()
    text = guest.succeed(
        f"echo {asked} | base64 -d > /tmp/asked; frames < /tmp/asked > /tmp/used; echo $? $(base64 /tmp/used)",
        timeout_s,
    )
    code, _, encoded = text.partition(" ")
    try:
        pages, wrong, found = answer(base64.b64decode("".join(encoded.split())), len(windows))
    except (ValueError, binascii.Error) as error:
        why = FAILURES.get(int(code) if code.isdecimal() else 0, "see what it printed")
        raise guest.log.failure(f"using its memory by frame ended with {code}: {why} ({error})") from error
    return Used(pages, wrong, tuple(found))


def taken_at_boot(guest: Guest, first: int, count: int) -> int:
    """How many of ``count`` frames from ``first`` on the guest's kernel took for itself when it booted.

    /proc/kpageflags has a word a frame; KPF_RESERVED (32) is set and KPF_NOPAGE (20) is not.
    """
    text = guest.succeed(f"dd if=/proc/kpageflags bs=8 skip={first} count={count} 2>/dev/null | base64")
    data = base64.b64decode("".join(text.split()))
    return sum(1 for (flags,) in struct.iter_unpack("<Q", data) if flags >> 32 & 1 and not flags >> 20 & 1)
