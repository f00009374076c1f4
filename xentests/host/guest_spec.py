"""What a guest is to be, as data, and how ``xl`` is told: domain configuration, disks and network interfaces.

Written down before anything runs; making guests is ``guests``' business. Sources: docs/man/xl.cfg.5,
docs/man/xl-disk-configuration.5, docs/man/xl-network-configuration.5 of Xen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from xentests.errors import UsageError

GUEST_FOLDER = "/usr/share/xentests/guest"
GUEST_KERNEL = f"{GUEST_FOLDER}/kernel"
GUEST_BZIMAGE = f"{GUEST_FOLDER}/bzimage"
GUEST_INITRD = f"{GUEST_FOLDER}/initrd"

Kind = Literal["", "pv", "pvh", "hvm", "shim"]
Action = Literal["destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart"]
Value = str | int | Sequence[str]

_TYPES: dict[str, str] = {"": "pv", "pv": "pv", "pvh": "pvh", "hvm": "hvm", "shim": "pvh"}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True)
class Disk:
    """One disk: ``target`` is a path in dom0, or what ``script`` makes of it; ``vdev`` what the guest calls it.

    ``backend`` is ``phy`` (dom0's kernel), ``qdisk`` (a QEMU) or empty: libxl's choice. ``direct`` passes
    ``direct-io-safe``. A CD-ROM's empty ``target`` is an empty drive.
    """

    target: str
    vdev: str = "xvda"
    format: Literal["raw", "qcow2"] = "raw"
    backend: Literal["", "phy", "qdisk"] = ""
    readonly: bool = False
    cdrom: bool = False
    script: str = ""
    direct: bool = False

    def __str__(self) -> str:
        # Stands last, where xl takes commas as they are (docs/man/xl-disk-configuration.5, "target").
        if any(character in self.target for character in "\n\"'"):
            raise UsageError(f"disk {self.target!r}: xl has no way to quote that")
        words = [
            f"format={self.format}",
            f"vdev={self.vdev}",
            f"access={'ro' if self.readonly or self.cdrom else 'rw'}",
        ]
        words += [f"backendtype={self.backend}"] if self.backend else []
        words += ["devtype=cdrom"] if self.cdrom else []
        words += ["direct-io-safe"] if self.direct else []
        words += [f"script={self.script}"] if self.script else []
        return ",".join([*words, f"target={self.target}"])


@dataclass(frozen=True)
class Nic:
    """One network interface. ``rate`` as xl takes it, such as ``8Mb/s@20ms``; ``script`` a path or a name."""

    mac: str = "00:16:3e:00:00:01"
    bridge: str = ""
    script: str = ""
    rate: str = ""
    ip: str = ""
    model: str = ""

    def __str__(self) -> str:
        if not _MAC.fullmatch(self.mac):
            raise UsageError(f"mac {self.mac!r}: six pairs of lower-case hex digits with colons between")
        named = {"bridge": self.bridge, "script": self.script, "rate": self.rate, "ip": self.ip, "model": self.model}
        return ",".join([f"mac={self.mac}", *(f"{name}={value}" for name, value in named.items() if value)])


@dataclass(frozen=True)
class GuestSpec:
    """What guest to make. ``kind`` is empty for the architecture's own: PV on x86-64, the only kind there is on arm64.

    ``pv``; ``pvh``; ``hvm`` (a device model; SeaBIOS, or ``firmware`` ``ovmf``: UEFI); ``shim`` (PV inside PVH). Memory
    in MiB. 0 and empty strings
    leave a value to xl. ``cpuid`` and ``sched`` are values of the options ``cpuid`` and (by name, such as ``cap``) the
    scheduler's. ``kernel_args`` are appended to the guest kernel's command line; ``options`` are further lines of the
    domain's configuration file, and win over what is made here.

    On x86-64 guests read the CPU's own time stamp counter, as they do by default where Xen finds that reliable, and
    their kernels do not search 256 buses for AMD's GART: they boot faster (docs/decisions/27-fewer-exits.md). On arm64
    their kernels set nothing aside for DMA: Debian's would keep 64 MiB (CONFIG_CMA_SIZE_MBYTES) from their own use, and
    of 128 MiB too little is left to connect a disk with.
    """

    name: str = "guest"
    kind: Kind = ""
    firmware: Literal["", "ovmf"] = ""
    memory_mib: int = 128
    maxmem_mib: int = 0
    vcpus: int = 1
    maxvcpus: int = 0
    cpus: str = ""
    cpuid: str = ""
    pool: str = ""
    sched: Mapping[str, int] = field(default_factory=dict)
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    usb_controllers: tuple[str, ...] = ()
    usb_devices: tuple[str, ...] = ()
    pci: tuple[str, ...] = ()
    on_poweroff: Action = "destroy"
    on_reboot: Action = "restart"
    on_crash: Action = "preserve"
    kernel_args: str = ""
    kernel: str = ""
    initrd: str = GUEST_INITRD
    options: Mapping[str, Value] = field(default_factory=dict)

    @property
    def in_hardware(self) -> bool:
        """Whether its vCPUs run in the CPU's guest mode on x86-64: such a guest is paused while its host is frozen."""
        return self.kind not in ("", "pv")

    def config(self, arch: str) -> str:
        """The domain's configuration for ``xl create``. UsageError for what the architecture or xl does not have."""
        if self.firmware and self.kind != "hvm":
            raise UsageError(f"guest {self.name}: firmware={self.firmware!r} is for HVM guests only")
        if arch == "arm64" and self.kind not in ("", "pvh"):
            raise UsageError(f"guest {self.name}: there are no {self.kind.upper()} guests on arm64")
        lines: dict[str, Value] = {
            "name": self.name,
            **({"type": _TYPES[self.kind], "tsc_mode": "native"} if arch == "amd64" else {}),
            **self._boot(arch),
            "memory": self.memory_mib,
            "vcpus": self.vcpus,
            **self._optional(),
        }
        lines.update(self.options)
        return "".join(f"{key} = {_value(key, value)}\n" for key, value in lines.items())

    def _boot(self, arch: str) -> dict[str, Value]:
        own = {"amd64": "pci=noearly", "arm64": "cma=0"}[arch]
        arguments = f"console=hvc0 {own} {self.kernel_args}".rstrip()
        # QEMU's own loader takes no vmlinux, for all others libxc would have to unpack a bzImage.
        kernel = self.kernel or (GUEST_BZIMAGE if self.kind == "hvm" else GUEST_KERNEL)
        lines: dict[str, Value] = {"kernel": kernel, "ramdisk": self.initrd, "extra": arguments}
        if self.kind == "hvm":
            lines |= {"vga": "none", **({"firmware": self.firmware} if self.firmware else {})}
        if self.kind == "shim":
            lines |= {"pvshim": 1}
        return lines

    def _optional(self) -> dict[str, Value]:
        lines: dict[str, Value] = {
            "maxmem": self.maxmem_mib,
            "maxvcpus": self.maxvcpus,
            "cpus": self.cpus,
            "cpuid": self.cpuid,
            "pool": self.pool,
            "disk": [str(disk) for disk in self.disks],
            "vif": [str(nic) for nic in self.nics],
            "usbctrl": self.usb_controllers,
            "usbdev": self.usb_devices,
            "pci": self.pci,
        }
        given = {key: value for key, value in lines.items() if value}
        return {
            **given,
            **self.sched,
            "on_poweroff": self.on_poweroff,
            "on_reboot": self.on_reboot,
            # A guest that crashes stays unless asked otherwise, so that what became of it can be seen.
            "on_crash": self.on_crash,
        }


def _value(key: str, value: Value) -> str:
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        return f"[ {', '.join(_value(key, item) for item in value)} ]"
    if "\n" in value or ('"' in value and "'" in value):
        raise UsageError(f"{key}: xl's configuration files have no way to quote {value!r}")
    return f"'{value}'" if '"' in value else f'"{value}"'
