"""What a host runs on: the emulated machine, as data. How libvirt is told of it is ``domain_xml``'s business."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from xentests.errors import UsageError
from xentests.release.arch import Arch
from xentests.release.spec import SYSTEM_QEMU, parse_qemu

Timing = Literal["fast", "deterministic"]
Iommu = Literal["", "intel"]

GUEST_AGENT_PORT = "org.qemu.guest_agent.0"
"""The virtio-serial port on which qemu-ga listens in dom0."""

USB_STICK_MIB = 16
"""Size of each emulated USB stick, in MiB; blank when a machine is booted."""

PCI_NIC_SLOT = 0x10
"""Where the first emulated NIC is on PCI's bus 0. libvirt fills that bus from its low slots; four in a row have four
interrupt pins of the chip set."""

GUEST_CONSOLE_PORTS = tuple(f"org.xentests.console.{number}" for number in range(4))
"""virtio-serial ports free for guests' consoles, bridged to ``xl console`` in dom0."""

ICOUNT_SHIFT = 3
"""An instruction of a deterministic machine takes 2^3 ns of its time: QEMU's ``-icount shift=``."""

_CPU = re.compile(r"[A-Za-z0-9_.-]+(,(vendor=[A-Za-z]+|[+-][a-z0-9_.-]+))*")

# qemu64 with SVM and nested paging is the one model on which PV, PVH and HVM guests all run under TCG, on every QEMU
# from 7.2 on. cortex-a57 has EL2 and the v8.0 timers that Xen expects.
_CPU_MODELS: dict[str, str] = {"amd64": "qemu64,+svm,+npt", "arm64": "cortex-a57"}

# QEMU gives CPUs their turns anew whenever its main loop interrupts one, and when it does depends on the outer host:
# with two CPUs the digits of clones differ by milliseconds, with one they are the same. (QEMU 7.2 on arm64 does not
# even boot Xen with instruction counting and two CPUs.)
_CPUS: dict[Timing, int] = {"fast": 2, "deterministic": 1}


def nic_mac(number: int) -> str:
    """The address of an emulated NIC, in the range that QEMU's makers use for machines."""
    return f"52:54:00:00:01:{number:02x}"


@dataclass(frozen=True)
class Machine:
    """One emulated machine and the command lines it is booted with.

    ``cpu_model`` is a QEMU model with features, as on QEMU's ``-cpu``. ``timing`` is ``fast``, or ``deterministic``:
    instructions are counted, idle time is skipped and CPUs take turns, so that what is measured inside depends on the
    instructions alone. ``cpus`` is 2, or 1 where timing is deterministic, unless given; ``dom0_vcpus`` how many of them
    dom0 has, 0 for all. They are in so many ``sockets``, and ``threads`` of them share a core (x86-64 only; Xen sees
    threads of a CPU model of Intel's). ``xen_args`` and ``dom0_args`` are appended to the defaults (Xen lets the last
    one win).
    ``usb_sticks`` sticks (x86-64 only) are plugged into an EHCI controller, which is there only with them; the stick
    ``N`` has the serial number ``stickN``. ``link`` gives it a network interface whose cable is ``lab.link``'s.
    ``pci_nics`` cards (x86-64 only; Intel 82540EM) are on one Ethernet that nothing else is on, the first in PCI's slot
    ``PCI_NIC_SLOT``; their addresses are those of ``nic_mac``. ``iommu`` (x86-64 only) is an IOMMU of that vendor:
    Intel's, which Xen uses with any CPU (QEMU's of AMD's takes the PCI slot of libvirt's root ports).
    ``qemu`` is the QEMU that it runs under (``lab.emulator``), ``system`` or ``debian:SUITE``.
    ``resident_mib`` makes it a giant: most of ``memory_mib`` is never touched, nothing is set aside for it, and this is
    what the lab expects it to occupy; admission reserves that, and the lab ends a machine that grows beyond it.
    ``numa_nodes`` (x86-64 only) share memory and CPUs evenly. Neither kind is ever frozen: see ``frozen``.
    """

    arch: Arch
    cpus: int = 0
    memory_mib: int = 1024
    dom0_memory_mib: int = 512
    dom0_vcpus: int = 1
    cpu_model: str = ""
    timing: Timing = "fast"
    gic_version: int = 3
    sockets: int = 1
    threads: int = 1
    xen_args: tuple[str, ...] = ()
    dom0_args: tuple[str, ...] = ()
    usb_sticks: int = 0
    link: bool = False
    pci_nics: int = 0
    iommu: Iommu = ""
    qemu: str = dataclasses.field(default=SYSTEM_QEMU, repr=False)  # keys of templates have all its bytes
    resident_mib: int | None = None
    numa_nodes: int = dataclasses.field(default=1, repr=False)  # such a machine has no template, so no key

    def __post_init__(self) -> None:
        if self.timing not in ("fast", "deterministic"):
            raise UsageError(f"timing={self.timing!r}: fast or deterministic")
        parse_qemu(self.qemu)
        if not self.cpu_model:
            object.__setattr__(self, "cpu_model", _CPU_MODELS[self.arch])
        if not _CPU.fullmatch(self.cpu_model):
            raise UsageError(f"cpu_model {self.cpu_model!r}: write MODEL[,+feature|,-feature|,vendor=NAME]...")
        if self.cpus == 0:
            object.__setattr__(self, "cpus", _CPUS[self.timing])
        if not 1 <= self.cpus <= 64:
            raise UsageError(f"cpus={self.cpus}: a machine has 1 to 64 CPUs")
        if self.cpus % (self.sockets * self.threads) or (self.threads > 1 and self.arch != "amd64"):
            raise UsageError(f"cpus={self.cpus} are not {self.sockets} sockets of cores of {self.threads} threads each")
        if not 0 <= self.dom0_vcpus <= self.cpus:
            raise UsageError(f"dom0_vcpus={self.dom0_vcpus}: 1 to {self.cpus}, or 0 for all CPUs")
        if self.dom0_memory_mib + 128 > self.memory_mib:
            raise UsageError(
                f"memory_mib={self.memory_mib} leaves no room for Xen beside a dom0 of {self.dom0_memory_mib} MiB"
            )

        self._check_devices()
        self._check_numa()

    def _check_devices(self) -> None:
        if not 0 <= self.usb_sticks <= 4:
            raise UsageError(f"usb_sticks={self.usb_sticks}: the controller has 4 ports")
        if self.usb_sticks and self.arch != "amd64":
            raise UsageError(f"usb_sticks={self.usb_sticks}: dom0 on {self.arch} has no PCI, so no USB controller")
        if not 0 <= self.pci_nics <= 4:
            raise UsageError(f"pci_nics={self.pci_nics}: 4 is the most that have interrupts of their own")
        if self.iommu not in ("", "intel"):
            raise UsageError(f"iommu={self.iommu!r}: intel, or none")
        if (self.pci_nics or self.iommu) and self.arch != "amd64":
            raise UsageError(f"pci_nics, iommu: dom0 on {self.arch} has no PCI")

    def _check_numa(self) -> None:
        if not 1 <= self.numa_nodes <= self.cpus:
            raise UsageError(f"numa_nodes={self.numa_nodes}: 1 to {self.cpus}, each with a CPU of its own")
        if self.numa_nodes > 1 and (self.arch != "amd64" or self.giant):
            raise UsageError(f"numa_nodes={self.numa_nodes}: on x86-64 only, with memory that is all there")

    @property
    def giant(self) -> bool:
        """Whether it has more memory than is ever to be used of it."""
        return self.resident_mib is not None

    @property
    def frozen(self) -> bool:
        """Whether hosts on it are cloned; giants and NUMA machines are booted (docs/decisions/21-giant-machines.md).

        So is one whose dom0 runs in the CPU's guest mode, in which QEMU 7.2 cannot load a frozen state.
        """
        return not self.giant and self.numa_nodes == 1 and not self.pvh_dom0

    @property
    def pvh_dom0(self) -> bool:
        """Whether dom0 is a PVH guest (docs/misc/xen-command-line.pandoc, "dom0"), which takes an ``iommu``."""
        return "dom0=pvh" in self.xen_args

    @property
    def physical_bits(self) -> int:
        """Width of physical addresses, 0 for the CPU model's own 40: one more than the memory's, which has holes."""
        bits = (self.memory_mib << 20).bit_length() + 1
        return bits if bits > 40 else 0

    @property
    def reserved_mib(self) -> int:
        """What this machine may come to occupy in the lab, in MiB: its memory, QEMU's own, and TCG's code cache."""
        return (self.memory_mib if self.resident_mib is None else self.resident_mib) + 224

    def with_(self, **changes: object) -> Machine:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @property
    def xen_command_line(self) -> str:
        """Xen's command line (docs/misc/xen-command-line.pandoc).

        ``noreboot`` keeps a crashed Xen where it is, so that its last words and registers can be read.
        """
        console = {
            "amd64": ["console=com1", "com1=115200,8n1"],
            "arm64": ["console=dtuart", "dtuart=/pl011@9000000"],
        }[self.arch]
        size = f"{self.dom0_memory_mib}M"
        words = [
            *console,
            f"dom0_mem={size},max:{size}" if self.arch == "amd64" else f"dom0_mem={size}",
            *([f"dom0_max_vcpus={self.dom0_vcpus}"] if self.dom0_vcpus else []),
            "loglvl=all",
            "guest_loglvl=all",
            "conring_size=256k",
            "bootscrub=0",
            "noreboot",
            # VT-d beside AMD's nested paging: Xen takes the one's tables for the other's, as an Intel CPU could share.
            *(["iommu=no-sharept"] if self.iommu == "intel" else []),
        ]
        return " ".join([*words, *self.xen_args])

    @property
    def dom0_command_line(self) -> str:
        """The dom0 kernel's command line."""
        words = ["console=hvc0", "root=LABEL=dom0root", "rdinit=/init", "panic=0", "oops=panic"]
        return " ".join([*words, *self.dom0_args])
