"""Machine and files -> libvirt domain XML (https://libvirt.org/formatdomain.html). Pure: touches no file, no libvirt.

Where libvirt has no element for what Xen as a guest needs (multiboot modules, guest-loader, RAM shared with a file,
instruction counting), QEMU's own options are passed through in the ``qemu:`` name space.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xentests.errors import UsageError
from xentests.lab.machine import GUEST_AGENT_PORT, GUEST_CONSOLE_PORTS, ICOUNT_SHIFT, PCI_NIC_SLOT, Machine, nic_mac

QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"
SHELL_PORT = "shell"
_TCG_CACHE_MIB = 128
# arm64: QEMU puts the device tree at RAM base + 128 MiB (0x48000000). The modules follow it closely: Xen needs what is
# left in large pieces for a dom0 that is mapped 1:1.
_ARM64_KERNEL_AT = 0x4A000000
_ARM64_INITRD_AT = 0x4E000000
ARM64_KERNEL_ROOM = _ARM64_INITRD_AT - _ARM64_KERNEL_AT
"""Bytes that an arm64 dom0 kernel may have; a larger one would be written over by the initrd."""

# A slot that libvirt, which does not know of this device, gives to none of its own.
_NIC = {
    "amd64": "virtio-net-pci,netdev=link,bus=pcie.0,addr=0x1e,romfile=",
    "arm64": "virtio-net-device,netdev=link",
}


@dataclass(frozen=True)
class BootFiles:
    """What QEMU loads: hypervisor, dom0 kernel, dom0 initrd."""

    hypervisor: Path
    kernel: Path
    initrd: Path


@dataclass(frozen=True)
class DomainFiles:
    """The files of one domain: its disk overlay, the serial line's log, and the directory of its sockets.

    USB sticks are files beside the disk. ``memory`` is the RAM file: shared while a template is made
    (``memory_shared``), private in a clone, None in a plain cold boot. ``incoming`` starts QEMU waiting for a
    template's device state.
    """

    disk: Path
    console_log: Path
    sockets: Path
    memory: Path | None = None
    memory_shared: bool = False
    incoming: bool = False

    def stick(self, number: int) -> Path:
        """The image of one USB stick."""
        return self.disk.with_name(stick_file(number))

    @property
    def link(self) -> Path:
        """The datagram socket on which the machine's network interface receives; QEMU makes it."""
        return self.sockets / "link"

    @property
    def peer(self) -> Path:
        """Where that interface sends to: nothing, until ``lab.link`` makes it lead to another machine's ``link``."""
        return self.sockets / "peer"

    def socket(self, name: str) -> Path:
        """The unix socket of one channel: the serial line ``console``, the dom0 ``shell`` or a virtio port."""
        return self.sockets / f"{name.removeprefix('org.xentests.')}.sock"


def stick_file(number: int) -> str:
    """The name of one USB stick's image."""
    return f"stick{number}.qcow2"


def domain_xml(
    *,
    name: str,
    machine: Machine,
    boot: BootFiles,
    files: DomainFiles,
    accelerator: str = "tcg",
    emulator: str = "",
    qemu: str = "",
) -> str:
    """The domain XML of one host, indented and ending in a newline.

    ``accelerator`` is ``tcg`` or ``kvm``; ``emulator`` the QEMU binary, libvirt's choice when empty; ``qemu`` its
    version, empty for one without faults. Raises :class:`UsageError` for a path that QEMU's options cannot carry.
    """
    kvm = accelerator == "kvm"
    root = ET.Element("domain", {"type": "kvm" if kvm else "qemu"})
    _text(root, "name", name)
    # libvirt has QEMU map all that it is told of, with space set aside for it: of a giant it is told next to nothing.
    _text(root, "memory", str(1 if machine.giant else machine.memory_mib), unit="MiB")
    _text(root, "vcpu", str(machine.cpus))
    os_ = ET.SubElement(root, "os")
    x86 = machine.arch == "amd64"
    _text(os_, "type", "hvm", arch="x86_64" if x86 else "aarch64", machine="q35" if x86 else "virt")
    _text(os_, "kernel", str(boot.hypervisor))
    if x86:
        _text(os_, "initrd", _modules(machine, boot))
    _text(os_, "cmdline", machine.xen_command_line)
    _features(root, machine, kvm=kvm)
    model = _cpu_model(machine, qemu)
    _cpu(root, machine, model, kvm=kvm)
    ET.SubElement(root, "clock", {"offset": "utc"})
    # A reset is a reboot of Xen; nothing but our own `quit` ends the machine.
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "preserve")):
        _text(root, event, action)
    _devices(root, machine, files, emulator)
    _qemu_options(root, machine, model, boot, files)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _modules(machine: Machine, boot: BootFiles) -> str:
    """QEMU's multiboot ``-initrd``: ``FILE ARGS,FILE``; a comma within is doubled, a blank in a path cannot be told."""
    for path in (boot.kernel, boot.initrd):
        if " " in str(path):
            raise UsageError(f"{path}: a path with blanks cannot be a boot module; set XENTESTS_CACHE to one without")
    return f"{_commas(boot.kernel)} {_commas(machine.dom0_command_line)},{_commas(boot.initrd)}"


def _commas(value: object) -> str:
    return str(value).replace(",", ",,")


def _features(root: ET.Element, machine: Machine, *, kvm: bool) -> None:
    features = ET.SubElement(root, "features")
    if machine.arch == "amd64":
        ET.SubElement(features, "acpi")
        ET.SubElement(features, "apic")
    if not kvm:
        # The default is 1 GiB of translated code for every machine.
        _text(ET.SubElement(features, "tcg"), "tb-cache", str(_TCG_CACHE_MIB), unit="MiB")


def _cpu_model(machine: Machine, qemu: str) -> str:
    """``machine.cpu_model`` without what this QEMU executes wrongly (docs/decisions/30-died-of-qemu.md).

    The IOMMU is left with it: Xen switches VT-d off on a CPU that has no CMPXCHG16B.
    """
    before_8 = re.match(r"[1-7]\.", qemu) is not None
    if machine.arch == "amd64" and before_8 and not machine.iommu and "cx16" not in machine.cpu_model:
        return f"{machine.cpu_model},-cx16"
    return machine.cpu_model


def _cpu(root: ET.Element, machine: Machine, cpu_model: str, *, kvm: bool) -> None:
    if kvm:
        ET.SubElement(root, "cpu", {"mode": "host-passthrough", "check": "none"})
        return
    model, *changes = cpu_model.split(",")
    if model == "max":  # no model to libvirt, but a mode
        cpu = ET.SubElement(root, "cpu", {"mode": "maximum", "check": "none"})
    else:
        cpu = ET.SubElement(root, "cpu", {"mode": "custom", "match": "exact", "check": "none"})
        _text(cpu, "model", model, fallback="forbid")
    # In sockets of their own CPUs look like threads to a PVH guest on 4.14, whose Linux then refuses to start them.
    cores = machine.cpus // (machine.sockets * machine.threads)
    topology = {"sockets": machine.sockets, "cores": cores, "threads": machine.threads}
    ET.SubElement(cpu, "topology", {name: str(number) for name, number in topology.items()})
    if machine.physical_bits:
        ET.SubElement(cpu, "maxphysaddr", {"mode": "emulate", "bits": str(machine.physical_bits)})
    for change in changes:
        if "=" in change:
            continue  # libvirt has no word for QEMU's vendor override: see _qemu_options
        policy = "require" if change.startswith("+") else "disable"
        ET.SubElement(cpu, "feature", {"policy": policy, "name": change[1:]})
    if machine.numa_nodes > 1:
        _numa(cpu, machine)


def _numa(cpu: ET.Element, machine: Machine) -> None:
    numa, nodes = ET.SubElement(cpu, "numa"), machine.numa_nodes
    for node in range(nodes):
        cpus = [str(number) for number in range(machine.cpus) if number * nodes // machine.cpus == node]
        memory = machine.memory_mib * (node + 1) // nodes - machine.memory_mib * node // nodes
        about = {"id": str(node), "cpus": ",".join(cpus), "memory": str(memory), "unit": "MiB"}
        ET.SubElement(numa, "cell", about)


def _devices(root: ET.Element, machine: Machine, files: DomainFiles, emulator: str) -> None:
    devices = ET.SubElement(root, "devices")
    if emulator:
        _text(devices, "emulator", emulator)
    mmio = machine.arch == "arm64"  # dom0 on arm64 gets virtio by MMIO: no PCI host bridge to hand over

    disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
    # Nothing on this disk outlives the machine, so flushes are dropped.
    ET.SubElement(disk, "driver", {"name": "qemu", "type": "qcow2", "cache": "unsafe"})
    ET.SubElement(disk, "source", {"file": str(files.disk)})
    ET.SubElement(disk, "target", {"dev": "vda", "bus": "virtio"})
    bus = ET.SubElement(devices, "controller", {"type": "virtio-serial", "index": "0"})
    if mmio:
        ET.SubElement(disk, "address", {"type": "virtio-mmio"})
        ET.SubElement(bus, "address", {"type": "virtio-mmio"})
    elif machine.usb_sticks:
        _usb(devices, machine, files)
    else:
        ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})

    serial = ET.SubElement(devices, "serial", {"type": "unix"})
    _listen(serial, files.socket("console"))
    ET.SubElement(serial, "log", {"file": str(files.console_log), "append": "on"})
    ET.SubElement(serial, "target", {"port": "0"})
    console = ET.SubElement(devices, "console", {"type": "unix"})
    _listen(console, files.socket("console"))
    ET.SubElement(console, "target", {"type": "serial", "port": "0"})
    shell = ET.SubElement(devices, "console", {"type": "unix"})
    _listen(shell, files.socket(SHELL_PORT))
    ET.SubElement(shell, "target", {"type": "virtio", "port": "1"})
    for port in (GUEST_AGENT_PORT, *GUEST_CONSOLE_PORTS):
        channel = ET.SubElement(devices, "channel", {"type": "unix"})
        _listen(channel, files.socket(port))
        ET.SubElement(channel, "target", {"type": "virtio", "name": port})
    ET.SubElement(devices, "memballoon", {"model": "none"})


def _usb(devices: ET.Element, machine: Machine, files: DomainFiles) -> None:
    # EHCI: a stick is then a USB 2.0 one, which is the most that PVUSB's protocol has.
    ET.SubElement(devices, "controller", {"type": "usb", "index": "0", "model": "ehci"})
    for number in range(machine.usb_sticks):
        stick = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
        ET.SubElement(stick, "driver", {"name": "qemu", "type": "qcow2", "cache": "unsafe"})
        ET.SubElement(stick, "source", {"file": str(files.stick(number))})
        ET.SubElement(stick, "target", {"dev": f"sd{chr(ord('a') + number)}", "bus": "usb"})
        _text(stick, "serial", f"stick{number}")
        ET.SubElement(stick, "address", {"type": "usb", "bus": "0", "port": str(number + 1)})


def _listen(parent: ET.Element, path: Path) -> None:
    ET.SubElement(parent, "source", {"mode": "bind", "path": _short(path)})


def _short(path: Path) -> str:
    if len(str(path)) > 107:
        raise UsageError(f"{path}: longer than the 107 bytes of a unix socket's path; set TMPDIR to a shorter one")
    return str(path)


def _qemu_options(root: ET.Element, machine: Machine, cpu_model: str, boot: BootFiles, files: DomainFiles) -> None:
    ET.register_namespace("qemu", QEMU_NS)
    line = ET.SubElement(root, f"{{{QEMU_NS}}}commandline")

    def option(*words: str) -> None:
        for word in words:
            ET.SubElement(line, f"{{{QEMU_NS}}}arg", {"value": word})

    if machine.arch == "arm64":
        # `virtualization=on` gives the CPUs EL2; guest-loader writes the modules and their device-tree nodes.
        option("-machine", f"virtualization=on,gic-version={machine.gic_version}")
        option("-device", _loader(_ARM64_KERNEL_AT, "kernel", boot.kernel, machine.dom0_command_line))
        option("-device", _loader(_ARM64_INITRD_AT, "initrd", boot.initrd))
    if "=" in cpu_model:
        option("-cpu", cpu_model)
    if machine.iommu:
        option("-device", f"{machine.iommu}-iommu")
    for number in range(machine.pci_nics):
        # On the root complex, where a device has no bridge above it that would have to go to the guest with it.
        option("-netdev", f"hubport,id=pcinet{number},hubid=1")
        slot, mac = PCI_NIC_SLOT + number, nic_mac(number)
        option("-device", f"e1000,netdev=pcinet{number},mac={mac},bus=pcie.0,addr={slot:#x}")
    if files.memory is not None:
        share = "on" if files.memory_shared else "off"
        option("-object", _memory(machine, files.memory, share), "-machine", "memory-backend=xentests.ram")
    elif machine.giant:
        # The kernel would not promise so much, and is not asked to: a page is there when it is first touched.
        size = f"size={machine.memory_mib}M,reserve=off"
        option("-m", f"{machine.memory_mib}M")
        option("-object", f"memory-backend-ram,id=xentests.ram,{size}", "-machine", "memory-backend=xentests.ram")
    if machine.timing == "deterministic":
        # A clone is recorded: QEMU's main loop then never looks at a CPU that is at work. A boot is not: its disk would
        # be slow (docs/decisions/08-two-timings.md). QEMU records one CPU only, and cannot freeze it.
        clone = files.incoming and not files.memory_shared
        record = ",rr=record,rrfile=/dev/null" if clone and machine.cpus == 1 else ""
        option("-icount", f"shift={ICOUNT_SHIFT},sleep=off{record}", "-rtc", "base=2026-01-01T00:00:00,clock=vm")
        # What the guest tells a device is then dealt with at that instruction, not when QEMU's main loop gets to it.
        for device in ("virtio-blk-pci", "virtio-serial-pci") if machine.arch == "amd64" else ("virtio-mmio",):
            option("-global", f"{device}.ioeventfd=off")
    if machine.pvh_dom0:
        # Devices of the machine then see the addresses of a guest, which only the IOMMU turns into the machine's.
        for device in ("virtio-blk-pci", "virtio-serial-pci"):
            option("-global", f"{device}.iommu_platform=on")
    if machine.link:
        option("-netdev", _dgram(files), "-device", _NIC[machine.arch])
    if files.incoming:
        option("-incoming", "defer")


def _dgram(files: DomainFiles) -> str:
    # A frame is a datagram (QEMU 7.2 and later); one that nobody can receive is lost, as on a cut cable.
    local, remote = _commas(_short(files.link)), _commas(_short(files.peer))
    return f"dgram,id=link,local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"


def _loader(address: int, kind: str, path: Path, arguments: str = "") -> str:
    words: Sequence[str] = [f"guest-loader,addr={address:#x}", f"{kind}={_commas(path)}"]
    return ",".join([*words, *([f"bootargs={_commas(arguments)}"] if arguments else [])])


def _memory(machine: Machine, path: Path, share: str) -> str:
    return f"memory-backend-file,id=xentests.ram,size={machine.memory_mib}M,mem-path={_commas(path)},share={share}"
