"""``xl`` in dom0, typed: what it says, as data. Running guests is ``guests``' business.

Formats are those of tools/xl/xl_info.c and xl_list.c from 4.14 to 4.20.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xentests.deadline import until
from xentests.errors import ProductFailure
from xentests.text import clean, tail

if TYPE_CHECKING:
    from xentests.host.host import Host

_LISTED = re.compile(r"^(?P<name>.*?) +(?P<id>\d+) +(?P<mem>\d+) +(?P<vcpus>\d+) +(?P<state>\S{6}) +(?P<time>[\d.]+)$")


class XlError(ProductFailure):
    """``xl`` said something that does not have the documented form."""


@dataclass(frozen=True)
class XlInfo:
    """``xl info``. Sizes in MiB; ``raw`` has every line under xl's own name for it."""

    raw: Mapping[str, str] = field(repr=False)

    def _number(self, key: str) -> int:
        try:
            return int(self.raw[key])
        except (KeyError, ValueError) as error:
            raise XlError(f"`xl info`: no number for {key}: {self.raw.get(key)!r}") from error

    @property
    def xen_major(self) -> int:
        """Such as 4."""
        return self._number("xen_major")

    @property
    def xen_minor(self) -> int:
        """Such as 20."""
        return self._number("xen_minor")

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version, to be compared."""
        return self.xen_major, self.xen_minor

    @property
    def xen_extra(self) -> str:
        """What the build calls itself beyond major and minor, such as ``.2-pre``."""
        return self.raw.get("xen_extra", "")

    @property
    def xen_version(self) -> str:
        """``MAJOR.MINOR`` and the extra version in one word."""
        return self.raw.get("xen_version", "")

    @property
    def xen_changeset(self) -> str:
        """The commit the hypervisor was built from, as the build knew it."""
        return self.raw.get("xen_changeset", "")

    @property
    def xen_commandline(self) -> str:
        """What Xen was booted with."""
        return self.raw.get("xen_commandline", "")

    @property
    def xen_caps(self) -> tuple[str, ...]:
        """The guest ABIs, such as ``xen-3.0-x86_64``, ``hvm-3.0-x86_64``."""
        return tuple(self.raw.get("xen_caps", "").split())

    @property
    def virt_caps(self) -> tuple[str, ...]:
        """``pv``, ``hvm``, ``hap``, ``shadow``, ``gnttab-v2`` ...: more words in later releases."""
        return tuple(self.raw.get("virt_caps", "").split())

    @property
    def xen_scheduler(self) -> str:
        """The scheduler of Pool-0."""
        return self.raw.get("xen_scheduler", "")

    @property
    def build_id(self) -> str:
        """The GNU build-id of the running hypervisor, hex; empty when it was built without."""
        return self.raw.get("build_id", "")

    @property
    def cc_compiler(self) -> str:
        """The compiler the hypervisor was built with."""
        return self.raw.get("cc_compiler", "")

    @property
    def cc_compile_date(self) -> str:
        """When the hypervisor was built, as it says itself."""
        return self.raw.get("cc_compile_date", "")

    @property
    def nr_cpus(self) -> int:
        """Physical CPUs online."""
        return self._number("nr_cpus")

    @property
    def total_memory(self) -> int:
        """MiB of the machine."""
        return self._number("total_memory")

    @property
    def free_memory(self) -> int:
        """MiB not given to any domain."""
        return self._number("free_memory")

    @property
    def kernel(self) -> str:
        """dom0's kernel release."""
        return self.raw.get("release", "")


@dataclass(frozen=True)
class DomainInfo:
    """One line of ``xl list``. ``state`` is six letters of ``rbpscd`` or dashes; ``time_s`` is CPU time used."""

    name: str
    domid: int
    memory_mib: int
    vcpus: int
    state: str
    time_s: float

    @property
    def crashed(self) -> bool:
        """Shut down by a crash of its own."""
        return "c" in self.state

    @property
    def paused(self) -> bool:
        """Paused by the toolstack."""
        return "p" in self.state

    @property
    def dying(self) -> bool:
        """Destroyed, and something still holds on to it."""
        return "d" in self.state


def parse_info(text: str) -> XlInfo:
    """The output of ``xl info``."""
    pairs = (line.split(":", 1) for line in text.split("\n") if ":" in line)
    return XlInfo({key.strip(): value.strip() for key, value in pairs})


def parse_list(text: str) -> list[DomainInfo]:
    """The output of ``xl list``; unlike ``xl list -l`` it also shows domains that have lost their configuration."""
    lines = text.rstrip("\n").split("\n")
    if not lines[0].startswith("Name "):
        raise XlError(f"`xl list`: no heading in {tail(text)!r}")
    found = []
    for line in lines[1:]:
        match = _LISTED.match(line)
        if match is None:
            raise XlError(f"`xl list`: not a domain: {clean(line)!r}")
        found.append(
            DomainInfo(
                name=match["name"],
                domid=int(match["id"]),
                memory_mib=int(match["mem"]),
                vcpus=int(match["vcpus"]),
                state=match["state"],
                time_s=float(match["time"]),
            )
        )
    return found


class Xl:
    """``host.xl``."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def info(self) -> XlInfo:
        """``xl info``, asked anew each time."""
        return parse_info(self._host.succeed("xl", "info").text)

    def list(self) -> list[DomainInfo]:
        """Every domain, dom0 included, in xl's order."""
        return parse_list(self._host.succeed("xl", "list").text)

    def find(self, name: str) -> DomainInfo | None:
        """The domain of that name, or None."""
        return next((domain for domain in self.list() if domain.name == name), None)

    def configs(self) -> dict[str, dict[str, Any]]:
        """``xl list -l``: by name, each domain's configuration as libxl keeps it (``domid``, ``config``)."""
        text = self._host.succeed("xl", "list", "-l").text
        try:
            entries = json.loads(text)
            return {str(entry["config"]["c_info"]["name"]): entry for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise XlError(f"`xl list -l`: not the JSON it should be: {error!r} in {tail(text)}") from error

    def dmesg(self) -> str:
        """Xen's message ring (``xl dmesg``), cleaned."""
        return clean(self._host.succeed("xl", "dmesg").stdout)

    def debug_keys(self, keys: str) -> str:
        """Press Xen's debug keys from dom0, and return what Xen wrote on it (docs/man/xl.1, debug-keys).

        Xen handles a key some time after the call, so that its words are waited for until no more come.
        """
        text, before = "", self.dmesg()
        for key in keys:
            self._host.succeed("xl", "debug-keys", key)

        def said() -> bool:
            nonlocal text
            last, text = text, _since(before, self.dmesg())
            return text == last != ""

        until(said, what=f"{self._host.name}: Xen's answer to {keys!r}", deadline=20.0, error=XlError)
        return text


def _since(before: str, after: str) -> str:
    """What came into Xen's message ring between two readings of it. The ring forgets its oldest lines."""
    if after.startswith(before):
        return after[len(before) :]
    last = before[-4000:]
    at = after.find(last)
    return after[at + len(last) :] if at >= 0 else after
