"""What a release on a machine can do: one table of names, and how each is read from the running system.

Never guessed from a version. A missing capability says why: ``not built: CONFIG_LIVEPATCH is not set`` is the
release's doing, ``not on this machine: ...`` is the machine's. To add one, add a line to ``TABLE``: a reader gets
``Facts``, which asks the host each thing once, and returns None for "present" or a reason.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from xentests.errors import UsageError
from xentests.host.xl import XlInfo
from xentests.text import clean

if TYPE_CHECKING:
    from xentests.host.host import Host

Missing = Literal["", "not built", "not on this machine"]
_SET = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE)


def kconfig(data: bytes) -> dict[str, str]:
    """The options of a Kconfig ``.config`` (plain, or compressed by gzip) that are set, by name."""
    plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    return {name: value.strip('"') for name, value in _SET.findall(plain.decode("utf-8", "replace"))}


@dataclass(frozen=True)
class Reason:
    """Why something is missing: ``kind`` says who decided it, ``text`` what was seen."""

    kind: Missing
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Capability:
    """``present``, or a ``reason`` that begins with its ``kind`` (``not built`` or ``not on this machine``)."""

    name: str
    present: bool
    reason: str = ""
    kind: Missing = ""

    def __bool__(self) -> bool:
        return self.present


class Facts:
    """What readers may ask; each fact is read from the host once."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def arch(self) -> str:
        """``amd64`` or ``arm64``."""
        return self._host.domain.machine.arch

    @cached_property
    def info(self) -> XlInfo:
        """``xl info``."""
        return self._host.xl.info()

    @cached_property
    def config(self) -> Mapping[str, str] | None:
        """The hypervisor's Kconfig values, from hypfs, else from its package; None when neither has them.

        An option that is not set is not in here. Source: docs/misc/hypfs-paths.pandoc, /buildinfo/config.
        """
        result = self._host.run("xenhypfs", "cat", "/buildinfo/config")
        text = result.stdout
        if result.exit_code != 0 or not kconfig(text):
            package = self._host.image.xen_config
            if package is None:
                return None
            text = package.read_bytes()
        return kconfig(text)

    def option(self, name: str) -> Reason | None:
        """A reader's answer for a Kconfig option."""
        if self.config is None:
            return Reason("not built", f"{name} cannot be read: no hypfs /buildinfo/config and none in the package")
        if self.config.get(name, "n") in ("y", "m"):
            return None
        return Reason("not built", f"{name} is not set")

    def virt_cap(self, word: str, *options: str) -> Reason | None:
        """A reader's answer for a word of xl info's ``virt_caps``; ``options`` would explain its absence."""
        if word in self.info.virt_caps:
            return None
        if self.config is not None:
            for name in options:
                if reason := self.option(name):
                    return reason
        return Reason("not on this machine", f"xl info: virt_caps has no {word!r} ({' '.join(self.info.virt_caps)})")

    def cpu_bit(self, word: int, bit: int, name: str) -> Reason | None:
        """A reader's answer for a CPU feature: words and bits of xen/include/public/arch-x86/cpufeatureset.h."""
        words = self.info.raw.get("hw_caps", "").split(":")
        if self.arch == "amd64" and len(words) > word and int(words[word], 16) >> bit & 1:
            return None
        return Reason("not on this machine", f"the CPU has no {name} (xl info: hw_caps)")

    def arch_is(self, arch: str) -> Reason | None:
        """A reader's answer for an architecture."""
        return None if self.arch == arch else Reason("not on this machine", f"this is {self.arch}")

    @cached_property
    def livepatch_help(self) -> str:
        """What ``xen-livepatch help`` says; empty where the tool is missing."""
        result = self._host.run("xen-livepatch", "help")
        return clean(result.stdout + result.stderr) if result.exit_code == 0 else ""

    def livepatch_word(self, word: str) -> Reason | None:
        """A reader's answer for a flag of xen-livepatch."""
        if reason := self.option("CONFIG_LIVEPATCH"):
            return reason
        known = re.search(rf"(?<!\S){re.escape(word)}\b", self.livepatch_help)
        return None if known else Reason("not built", f"`xen-livepatch help` knows no {word}")

    def says(self, words: str) -> Reason | None:
        """A reader's answer for a message that the hypervisor can print, looked for in its own image."""
        if self._host.image.symbols is None:
            return Reason("not built", "no xen-syms to look into")
        if words.encode() in self._host.image.symbols.read_bytes():
            return None
        return Reason("not built", f"this hypervisor never says {words!r}")

    @cached_property
    def xl_commands(self) -> frozenset[str]:
        """The commands of ``xl help``."""
        return frozenset(re.findall(r"^ (\S+)", clean(self._host.run("xl", "help").stdout), re.MULTILINE))

    def xl_command(self, name: str) -> Reason | None:
        """A reader's answer for a command of xl."""
        return None if name in self.xl_commands else Reason("not built", f"xl has no command {name!r}")

    def program(self, path: str) -> Reason | None:
        """A reader's answer for a program in dom0."""
        found = self._host.run("sh", "-c", 'command -v "$1"', "which", path).exit_code == 0
        return None if found else Reason("not built", f"dom0 has no {path}")

    @cached_property
    def qemu(self) -> str:
        """The QEMU that libxl starts: Debian's for Xen, one of Xen's own build, the system's; "" if there is none."""
        places = (
            "/usr/libexec/xen-qemu-system-i386",
            "/usr/lib/xen*/bin/qemu-system-i386",
            "/usr/bin/qemu-system-i386",
        )
        return clean(self._host.run("sh", "-c", f"ls {' '.join(places)}").stdout).partition("\n")[0]

    def device_model(self) -> Reason | None:
        """A reader's answer for the QEMU that libxl starts."""
        return None if self.qemu else Reason("not built", "dom0 has no QEMU for guests")

    def qemu_device(self, name: str, option: str) -> Reason | None:
        """A reader's answer for a device of that QEMU, which it has when built with ``option``."""
        if reason := self.device_model():
            return reason
        known = self._host.run(self.qemu, "-device", f"{name},help").exit_code == 0
        return None if known else Reason("not built", f"QEMU has no device {name} ({option})")

    def module(self, name: str, option: str) -> Reason | None:
        """A reader's answer for a module of dom0's kernel, or one built for it with the image."""
        if self._host.run("modprobe", "-n", "-q", name).exit_code == 0:
            return None
        built = clean(self._host.run("cat", f"/usr/share/xentests/modules/{name}").stdout, limit=300).strip()
        return Reason("not built", f"{option}: {built or f'the kernel has no module {name}'}")

    def answers(self, *argv: str) -> Reason | None:
        """A reader's answer for a command that works only where the machine has something."""
        result = self._host.run(*argv)
        if result.exit_code == 0:
            return None
        said = clean(result.stderr or result.stdout, limit=200).strip().replace("\n", "; ")
        return Reason("not on this machine", f"`{' '.join(argv)}` fails: {said}")


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
    Definition("vmx", "the CPU has VMX", "xl info: hw_caps", lambda facts: facts.cpu_bit(1, 5, "VMX")),
    Definition("svm", "the CPU has SVM", "xl info: hw_caps", lambda facts: facts.cpu_bit(3, 2, "SVM")),
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
    _config("pv-shim", "PV guests inside PVH", "CONFIG_PV_SHIM"),
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
