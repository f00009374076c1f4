"""What a release on a machine can do: one table of names, and how each is read from the running system.

Never guessed from a version. A missing capability says why: ``not built: CONFIG_LIVEPATCH is not set`` is the
release's doing, ``not on this machine: ...`` is the machine's. To add one, add a line to ``TABLE``: a reader gets
``Facts``, which asks the host each thing once, and returns None for "present" or a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from xentests.errors import UsageError
from xentests.host.facts import Facts, Missing, Reason
from xentests.host.guest_spec import Kind


@dataclass(frozen=True)
class Capability:
    """``present``, or a ``reason`` that begins with its ``kind`` (``not built`` or ``not on this machine``)."""

    name: str
    present: bool
    reason: str = ""
    kind: Missing = ""

    def __bool__(self) -> bool:
        return self.present


Reader = Callable[[Facts], Reason | None]


@dataclass(frozen=True)
class Definition:
    """One capability: its name, what having it means, what it is read from, and the reader."""

    name: str
    meaning: str
    read_from: str
    reader: Reader


def option(name: str) -> Reader:
    """A reader of one Kconfig option of the hypervisor."""
    return lambda facts: facts.option(name)


def both(*readers: Reader) -> Reader:
    """Present when all are; the first reason otherwise."""
    return lambda facts: next((reason for reader in readers if (reason := reader(facts))), None)


def either(*readers: Reader) -> Reader:
    """Present when one is; the first reason otherwise."""

    def read(facts: Facts) -> Reason | None:
        reasons = [reader(facts) for reader in readers]
        return None if None in reasons else reasons[0]

    return read


def _config(name: str, meaning: str, kconfig: str) -> Definition:
    return Definition(name, meaning, f"hypfs buildinfo/config: {kconfig}", option(kconfig))


_HAP: Reader = lambda facts: facts.virt_cap("hap", *_hvm_options(facts))  # noqa: E731
_SHADOW: Reader = lambda facts: facts.virt_cap("shadow", "CONFIG_SHADOW_PAGING")  # noqa: E731
_HVM: Reader = lambda facts: facts.virt_cap("hvm", *_hvm_options(facts))  # noqa: E731


def _hvm_options(facts: Facts) -> tuple[str, ...]:
    return ("CONFIG_HVM",) if facts.arch == "amd64" else ()


TABLE: tuple[Definition, ...] = (
    Definition("amd64", "the release is for x86-64", "the machine", lambda facts: facts.arch_is("amd64")),
    Definition("arm64", "the release is for 64-bit Arm", "the machine", lambda facts: facts.arch_is("arm64")),
    Definition(
        "pv",
        "PV guests run",
        "xl info: virt_caps",
        lambda facts: facts.virt_cap("pv", "CONFIG_PV"),
    ),
    Definition("hvm", "HVM containers: PVH, HVM, and every guest on arm64", "xl info: virt_caps", _HVM),
    Definition("hap", "hardware-assisted paging for guests", "xl info: virt_caps", _HAP),
    Definition("shadow", "shadow paging (PV log-dirty needs it, too)", "xl info: virt_caps", _SHADOW),
    Definition(
        "pvh", "PVH guests run", "xl info: virt_caps: hvm, and hap or shadow", both(_HVM, either(_HAP, _SHADOW))
    ),
    Definition(
        "hvm-guests",
        "HVM guests run, with a QEMU in dom0 as their device model",
        "xl info: virt_caps, as for pvh; dom0's files",
        both(lambda facts: facts.arch_is("amd64"), _HVM, either(_HAP, _SHADOW), lambda facts: facts.device_model()),
    ),
    Definition(
        "ovmf",
        "HVM guests can be started by UEFI (under QEMU 7.2 they end their host's QEMU: docs/decisions/19)",
        "dom0's files",
        lambda facts: facts.file("/usr/share/ovmf/OVMF.fd"),
    ),
    Definition(
        "qdisk",
        "QEMU serves disks of guests (qcow2, and whatever dom0's kernel cannot)",
        "dom0's files",
        lambda facts: facts.device_model(),
    ),
    Definition(
        "usb-devices",
        "QEMU hands USB devices of dom0 to guests",
        "the devices of dom0's QEMU",
        lambda facts: facts.qemu_device("usb-host", "--enable-libusb"),
    ),
    Definition(
        "pvusb-frontend",
        "the guests' kernel has the front end of PVUSB, or had it built with the image",
        "dom0's modules, which are the guests', too",
        lambda facts: facts.module("xen-hcd", "CONFIG_USB_XEN_HCD"),
    ),
    Definition(
        "pvusb-kernel-backend",
        "dom0's kernel is a back end of PVUSB (usbctrl type=pv)",
        "dom0's modules",
        lambda facts: facts.module("xen-usbback", "XEN_USB_BACKEND, which is in no mainline kernel"),
    ),
    Definition(
        "iscsi",
        "dom0 is an iSCSI initiator and a target",
        "dom0's programs and modules",
        both(
            lambda facts: facts.program("iscsiadm"),
            lambda facts: facts.module("iscsi_tcp", "CONFIG_ISCSI_TCP"),
            lambda facts: facts.module("iscsi_target_mod", "CONFIG_ISCSI_TARGET"),
        ),
    ),
    Definition(
        "drbd",
        "dom0 has DRBD, and the script that gives its resources to guests",
        "dom0's programs, modules and files",
        both(
            lambda facts: facts.program("drbdadm"),
            lambda facts: facts.module("drbd", "CONFIG_BLK_DEV_DRBD"),
            lambda facts: facts.file("/etc/xen/scripts/block-drbd"),
        ),
    ),
    Definition(
        "qemu-iscsi",
        "the QEMU of HVM guests is an iSCSI initiator itself",
        "what dom0's QEMU says to an iscsi:// address",
        lambda facts: facts.qemu_protocol("iscsi", "--enable-libiscsi"),
    ),
    Definition(
        "pci-backend",
        "dom0's kernel hands PCI devices to guests",
        "dom0's modules",
        lambda facts: facts.module("xen-pciback", "CONFIG_XEN_PCIDEV_BACKEND"),
    ),
    Definition(
        "pci-frontend",
        "PV guests' kernel has the front end for PCI devices",
        "dom0's modules, which are the guests', too",
        lambda facts: facts.module("xen-pcifront", "CONFIG_XEN_PCIDEV_FRONTEND"),
    ),
    Definition(
        "e1000",
        "dom0 and guests have the driver of the machine's PCI network cards",
        "dom0's modules, which are the guests', too",
        lambda facts: facts.module("e1000", "CONFIG_E1000"),
    ),
    Definition(
        "iommu",
        "devices' access to memory is confined, so that they can be given to guests; asked of a machine with an IOMMU",
        "xl info: virt_caps",
        either(lambda facts: facts.virt_cap("pv_directio"), lambda facts: facts.virt_cap("hvm_directio")),
    ),
    Definition("vmx", "the CPU has VMX", "xl info: hw_caps", lambda facts: facts.cpu_bit(1, 5, "VMX")),
    Definition("svm", "the CPU has SVM", "xl info: hw_caps", lambda facts: facts.cpu_bit(3, 2, "SVM")),
    Definition(
        "cpu-hotplug",
        "physical CPUs go offline and come back",
        "dom0's programs (xen-hptool is not built for Arm)",
        lambda facts: facts.program("xen-hptool"),
    ),
    Definition("vmtrace", "processor trace of guests", "xl info: virt_caps", lambda facts: facts.virt_cap("vmtrace")),
    Definition("vpmu", "performance counters of guests", "xl info: virt_caps", lambda facts: facts.virt_cap("vpmu")),
    Definition(
        "mem-access",
        "page permissions with events (xen-access)",
        "hypfs buildinfo/config: CONFIG_MEM_ACCESS; on x86 the CPU must have VMX",
        both(
            option("CONFIG_MEM_ACCESS"),
            lambda facts: facts.cpu_bit(1, 5, "VMX") if facts.arch == "amd64" else None,
        ),
    ),
    Definition(
        "psr",
        "cache and bandwidth monitoring and allocation",
        "xl psr-hwinfo",
        both(lambda facts: facts.xl_command("psr-hwinfo"), lambda facts: facts.answers("xl", "psr-hwinfo")),
    ),
    _config("hypfs", "the hypervisor file system", "CONFIG_HYPFS"),
    _config("livepatch", "live patching", "CONFIG_LIVEPATCH"),
    Definition(
        "livepatch-nodeps",
        "apply --nodeps",
        "xen-livepatch help",
        lambda facts: facts.livepatch_word("--nodeps"),
    ),
    Definition(
        "livepatch-force",
        "upload with --force",
        "xen-livepatch help",
        lambda facts: facts.livepatch_word("--force"),
    ),
    Definition(
        "livepatch-checked-alternatives",
        "alternatives of a payload are confined to the payload",
        "the words of that check in the hypervisor",
        both(option("CONFIG_LIVEPATCH"), lambda facts: facts.says("outside payload text")),
    ),
    _config("credit", "scheduler credit", "CONFIG_SCHED_CREDIT"),
    _config("credit2", "scheduler credit2", "CONFIG_SCHED_CREDIT2"),
    _config("rtds", "scheduler rtds", "CONFIG_SCHED_RTDS"),
    _config("null", "scheduler null", "CONFIG_SCHED_NULL"),
    _config("arinc653", "scheduler arinc653", "CONFIG_SCHED_ARINC653"),
    _config("xsm", "security modules", "CONFIG_XSM"),
    _config("flask", "the FLASK security module", "CONFIG_XSM_FLASK"),
    _config("silo", "the SILO security module", "CONFIG_XSM_SILO"),
    _config("argo", "the Argo interdomain channel", "CONFIG_ARGO"),
    _config("kexec", "a crash kernel can be loaded", "CONFIG_KEXEC"),
    Definition(
        "pv-shim",
        "PV guests inside PVH: the hypervisor built once more, as the shim (xl.cfg.5, pvshim)",
        "dom0's files",
        lambda facts: facts.file("/usr/lib/xen*/boot/xen-shim"),
    ),
    _config("mem-sharing", "memory sharing between guests", "CONFIG_MEM_SHARING"),
    _config("mem-paging", "paging of guest memory", "CONFIG_MEM_PAGING"),
    _config("tracebuffer", "xentrace", "CONFIG_TRACEBUFFER"),
    Definition(
        "save-restore",
        "guests can be saved, restored and migrated",
        "xl help",
        lambda facts: facts.xl_command("migrate"),
    ),
)

GUEST_KINDS: Mapping[Kind, str] = {"pv": "pv", "pvh": "pvh", "hvm": "hvm-guests"}
"""The kinds of guests that tests run on, each with the capability it takes; arm64's one kind counts as PVH."""

NAMES: frozenset[str] = frozenset(definition.name for definition in TABLE)


class Capabilities(Mapping[str, Capability]):
    """``host.capabilities``: by name; read when first asked for.

    ``known`` are answers read earlier from the same image on the same kind of machine (``as_data``): clones of one
    template need not be asked again.
    """

    def __init__(self, facts: Facts, known: Mapping[str, Capability] | None = None) -> None:
        self.facts = facts
        self._read = dict(known or {})

    def __getitem__(self, name: str) -> Capability:
        if name not in self._read:
            definition = next((entry for entry in TABLE if entry.name == name), None)
            if definition is None:
                raise UsageError(f"unknown capability {name!r}; there are: {', '.join(sorted(NAMES))}")
            reason = definition.reader(self.facts)
            self._read[name] = (
                Capability(name, True) if reason is None else Capability(name, False, str(reason), reason.kind)
            )
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return (definition.name for definition in TABLE)

    def __len__(self) -> int:
        return len(TABLE)

    def missing(self, *names: str) -> list[Capability]:
        """Those of ``names`` that are not there, each with its reason."""
        return [self[name] for name in names if not self[name]]

    def as_data(self) -> dict[str, dict[str, str]]:
        """Every capability as plain data for a manifest or a report: ``present`` or the reason, by name."""
        return {name: {"kind": self[name].kind or "present", "reason": self[name].reason} for name in self}


def from_data(data: Mapping[str, Mapping[str, str]]) -> dict[str, Capability]:
    """What ``as_data`` made, for ``known``."""
    kinds: dict[str, Missing] = {"not built": "not built", "not on this machine": "not on this machine"}
    return {
        name: Capability(name, entry["kind"] == "present", entry["reason"], kinds.get(entry["kind"], ""))
        for name, entry in data.items()
        if name in NAMES
    }
