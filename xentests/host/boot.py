"""From power-on to a dom0 that answers: waits for it, and says how far a boot came that did not.

A boot without even Xen's banner is the lab's fault until shown otherwise; one that stops after it is the product's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentests.deadline import Deadline
from xentests.errors import LabError, ProductFailure
from xentests.host.console import ConsoleTimeout

if TYPE_CHECKING:
    from xentests.host.host import Host

BOOT_S = 180.0
"""Seconds (scaled) for a whole boot; 4 to 15 on an idle lab."""

READY = r"xentests: dom0 ready"
_STAGES = (
    ("Xen's banner", r"\(XEN\).*Xen version \d"),
    ("dom0's kernel", r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? Linux version"),
)


class BootFailure(ProductFailure):
    """Xen printed its banner, and then dom0 did not come up."""


class NoBanner(LabError):
    """Not even Xen's banner came: image, QEMU or command line are wrong, unless Xen dies before its first word."""


def await_boot(host: Host, timeout_s: float = BOOT_S) -> None:
    """Wait until dom0 says that it is ready and its agent answers.

    Raises BootFailure or NoBanner with the stage that was reached, HypervisorCrash.
    """
    deadline = Deadline(timeout_s)
    reached = "nothing at all was printed"
    for stage, pattern in (*_STAGES, ("dom0's userland", READY)):
        try:
            host.console.wait_for(pattern, deadline.left_s)
        except ConsoleTimeout as error:
            kind = NoBanner if not host.console.banners_seen else BootFailure
            raise kind(
                f"{host.name}: {stage} did not come within {deadline} of power-on; {reached}. Last lines of the "
                f"console:\n{host.console.tail(25)}\nThe whole console: {host.console.log}"
            ) from error
        reached = f"{stage} came"
    host.ping()
