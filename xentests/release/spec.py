"""Names of releases: ``debian:trixie``, ``debs:DIR``, ``debs:DIR@bookworm``; and of QEMUs. Fetches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xentests.errors import UsageError
from xentests.release.arch import ARCHES, Arch, is_arch
from xentests.release.overlay import Overlay, read_overlay

Kind = Literal["debian", "debs"]


@dataclass(frozen=True)
class Suite:
    """A Debian release that ships Xen: the Xen version is part of its package names.

    ``ended``: Debian's support is over, and its security archive may announce packages that it no longer holds.
    """

    name: str
    xen: str
    ended: bool = False


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (Suite("trixie", "4.20"), Suite("bookworm", "4.17"), Suite("bullseye", "4.14", ended=True))
}
DEFAULT_RELEASE = "debian:trixie"
SYSTEM_QEMU = "system"
"""The name of the outer system's QEMU, which hosts run under unless another is asked for."""


@dataclass(frozen=True)
class ReleaseSpec:
    """One Xen to test. ``base`` is the Debian suite the rest of dom0 comes from; ``str()`` parses back to the same."""

    kind: Kind
    name: str
    arch: Arch
    base: str
    xen: str
    overlay: Overlay | None = None

    def __str__(self) -> str:
        return f"debs:{self.name}@{self.base}" if self.kind == "debs" else f"{self.kind}:{self.name}"


def parse_release(text: str, arch: str) -> ReleaseSpec:
    """The release that ``text`` names. For ``debs:DIR`` the directory is read.

    Raises UsageError that lists what there is.
    """
    if not is_arch(arch):
        raise UsageError(f"unknown architecture {arch!r}: choose one of {', '.join(ARCHES)}")
    kind, colon, name = text.partition(":")
    if kind == "debian" and name in SUITES:
        return ReleaseSpec("debian", name, arch, base=name, xen=SUITES[name].xen)
    if kind == "debs" and colon:
        return _parse_debs(name, arch)
    known = ", ".join(f"debian:{name}" for name in SUITES)
    raise UsageError(
        f"unknown release {text!r}: choose one of {known}, or debs:DIR[@SUITE] for a directory of .deb files "
        f"laid over a Debian suite"
    )


def parse_qemu(text: str) -> str:
    """The name of a QEMU, checked: ``system`` or ``debian:SUITE``. Raises UsageError that lists what there is."""
    known = [SYSTEM_QEMU, *(f"debian:{suite.name}" for suite in SUITES.values() if not suite.ended)]
    if text not in known:
        raise UsageError(f"unknown QEMU {text!r}: choose one of {', '.join(known)}")
    return text


def _parse_debs(name: str, arch: Arch) -> ReleaseSpec:
    directory, at, base = name.rpartition("@")
    if not at or "/" in base:
        directory, base = name, ""
    if base and base not in SUITES:
        raise UsageError(f"debs:{name}: unknown Debian suite {base!r}: choose one of {', '.join(SUITES)}")
    path = Path(directory).expanduser().resolve() if directory else None
    if path is None or not path.is_dir():
        raise UsageError(f"debs:{name}: no such directory; give a directory of .deb files: debs:DIR or debs:DIR@SUITE")
    overlay = read_overlay(path, arch)
    return ReleaseSpec("debs", str(path), arch, base=base or _base_for(overlay.xen), xen=overlay.xen, overlay=overlay)


def _base_for(xen: str) -> str:
    """The suite whose Xen is the same, else the oldest one with a newer Xen, else the newest suite."""
    wanted = _numbers(xen)
    for suite in sorted(SUITES.values(), key=lambda suite: _numbers(suite.xen)):
        if _numbers(suite.xen) >= wanted:
            return suite.name
    return next(iter(SUITES))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
