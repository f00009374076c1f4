"""What a running release is asked to find out what it can do; each fact once. What is made of it: ``capabilities``."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

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

    def file(self, pattern: str) -> Reason | None:
        """A reader's answer for a file in dom0 (a shell pattern)."""
        found = self._host.run("sh", "-c", f"ls {pattern}").exit_code == 0
        return None if found else Reason("not built", f"dom0 has no {pattern}")

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

    def qemu_protocol(self, name: str, option: str) -> Reason | None:
        """A reader's answer for a protocol of that QEMU's block layer, which it has when built with ``option``.

        An address that leads nowhere is opened: one that has no driver is refused before anything is tried.
        """
        if reason := self.device_model():
            return reason
        words = ("-machine", "none", "-display", "none", "-drive", f"if=none,format=raw,file={name}://127.0.0.1:1/x/0")
        said = clean(self._host.run(self.qemu, *words).stderr, limit=200).strip().replace("\n", "; ")
        if "connect" in said:
            return None
        return Reason("not built", f"QEMU's block driver for {name}:// ({option}): {said or 'it says nothing'}")

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
