"""Why a host does not answer: tells a dead hypervisor from a dead dom0, and says so in one HostHang.

Asks in this order: does QEMU run, does a crash stand on the console, does Xen answer a debug key on the serial line.
When Xen answers, the keys that show what dom0 and the scheduler are doing are pressed, so that the log holds them.
"""

from __future__ import annotations

from xentests.errors import HostHang
from xentests.host.console import Console
from xentests.host.protocol import Domain

PROBE_KEYS = "h"
EVIDENCE_KEYS = "0rq"
"""dom0's registers, the run queues, the domains (xen/common/keyhandler.c)."""


class Dom0Hang(HostHang):
    """Xen answers its debug keys, dom0 does not answer its agent."""


class HypervisorHang(HostHang):
    """Neither dom0's agent nor Xen's debug keys get an answer."""


def diagnose(domain: Domain, console: Console, *, waited: str, doing: str) -> HostHang:
    """The HostHang to raise for a host whose agent was silent; raises HypervisorCrash itself if there was a crash.

    ``waited`` is for people ("20.0 s of 20.0 s"), ``doing`` the agent command that got no answer.
    """
    console.check()
    head = f"{domain.name}: no answer from the guest agent in dom0 for {waited} (asked: {doing})"
    where = f"The whole console: {console.log}"
    if not domain.is_running():
        return HostHang(
            f"{head}; its machine is not running but {domain.state()!r}. {where}. Look in the lab for who stopped it."
        )
    if console.xen_keys(PROBE_KEYS):
        console.xen_keys(EVIDENCE_KEYS)
        return Dom0Hang(
            f"{head}, but Xen answers its debug keys: dom0 hangs, or its agent has died. Last lines of the console, "
            f"with dom0's registers above them:\n{console.tail(30)}\n{where}. Look in it for dom0's last words and for "
            "what its vCPUs do ('0' pressed, 'q' pressed); `--xen-keep` keeps the host for a look."
        )
    if domain.machine.timing == "deterministic" and domain.machine.arch == "arm64":
        return HostHang(
            f"{head}. Whether Xen still runs could not be asked: QEMU does not pass on what is typed on the console of "
            f"an arm64 machine that it records (docs/decisions/08-two-timings.md). Last lines of the console:\n"
            f"{console.tail(30)}\n{where}. Look whether the lab was overloaded."
        )
    return HypervisorHang(
        f"{head}, and Xen does not answer its debug keys on the serial line: the hypervisor hangs, or this lab is "
        f"starved of CPU. Last lines of the console:\n{console.tail(30)}\n{where}. Look whether the lab was "
        "overloaded; if not, report it to the maintainers of the release; `--xen-keep` keeps the host for a look."
    )
