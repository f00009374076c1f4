"""Names of releases, ``debian:trixie``, ``debs:DIR[@SUITE]``, ``source:DIR[,kconfig=FILE]``, ``tree:DIR``; of QEMUs.

Directories that are named are read; nothing is fetched or built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xentests.errors import UsageError
from xentests.release.arch import ARCHES, Arch, is_arch
from xentests.release.overlay import Overlay, read_overlay
from xentests.release.source import DIST, Source, read_source, version_of
from xentests.release.tree import DistTree, read_tree

Kind = Literal["debian", "debs", "source", "tree"]


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
    """One Xen to test. ``base`` is the Debian suite the rest of dom0 comes from; ``str()`` parses back to the same.

    ``xen`` is the version in the names of the base's packages of Xen. The hypervisor is of that base, or in
    ``overlay``, or built from ``source``, or in ``tree``, which also has the tools.
    """

    kind: Kind
    name: str
    arch: Arch
    base: str
    xen: str
    overlay: Overlay | None = None
    source: Source | None = None
    tree: DistTree | None = None

    def __str__(self) -> str:
        if self.kind == "debs":
            return f"debs:{self.name}@{self.base}"
        options = self.source.words if self.source else ""
        return f"{self.kind}:{self.name}{options}{f',base={self.base}' if self.tree else ''}"

    @property
    def debian(self) -> ReleaseSpec:
        """The Debian release below."""
        return ReleaseSpec("debian", self.base, self.arch, self.base, SUITES[self.base].xen)


def parse_release(text: str, arch: str = "") -> ReleaseSpec:
    """The release that ``text`` names; directories in it are read.

    ``arch`` is empty for what the name says (``,arch=arm64``), or else amd64. Raises UsageError that lists what there
    is.
    """
    if arch and not is_arch(arch):
        raise UsageError(f"unknown architecture {arch!r}: choose one of {', '.join(ARCHES)}")
    kind, colon, name = text.partition(":")
    if kind in _BUILT and name:
        return _parse_built(text, _BUILT[kind], arch)
    chosen = arch if is_arch(arch) else "amd64"
    if kind == "debian" and name in SUITES:
        return ReleaseSpec("debian", name, chosen, base=name, xen=SUITES[name].xen)
    if kind == "debs" and colon:
        return _parse_debs(name, chosen)
    known = ", ".join(f"debian:{name}" for name in SUITES)
    raise UsageError(
        f"unknown release {text!r}: choose one of {known}; debs:DIR[@SUITE] for a directory of .deb files laid over a "
        f"Debian suite; source:DIR or source:debian:SUITE[,kconfig=FILE] for a hypervisor to be built; tree:DIR for "
        f"what `make dist` made"
    )


_BUILT: dict[str, Literal["source", "tree"]] = {"source": "source", "tree": "tree"}
_OPTIONS = {"source": ("kconfig", "config", "arch", "base"), "tree": ("arch", "base")}


def _parse_built(text: str, kind: Literal["source", "tree"], wanted: str) -> ReleaseSpec:
    name, *words = text.removeprefix(f"{kind}:").split(",")
    given = [word.partition("=")[::2] for word in words]
    known = _OPTIONS[kind]
    if unknown := [word for word, value in given if word not in known or not value]:
        raise UsageError(f"{text}: {unknown[0]!r} is no option; there are {', '.join(f'{key}=...' for key in known)}")
    options = dict(given)
    fragments = [value for word, value in given if word == "kconfig"]
    if wanted and options.get("arch", wanted) != wanted:
        raise UsageError(
            f"{text}: the name says arch={options['arch']}, and {wanted} was asked for; give one of the two"
        )
    arch = options.get("arch", wanted or "amd64")
    if not is_arch(arch):
        raise UsageError(f"{text}: unknown architecture {arch!r}: choose one of {', '.join(ARCHES)}")
    if (base := options.get("base", "")) and base not in SUITES:
        raise UsageError(f"{text}: unknown Debian suite {base!r}: choose one of {', '.join(SUITES)}")
    if name.startswith("debian:"):
        suite = name.removeprefix("debian:")
        if kind != "source" or suite not in SUITES or base not in ("", suite):
            raise UsageError(f"{text}: choose one of {', '.join(f'source:debian:{suite}' for suite in SUITES)}")
        return ReleaseSpec("source", name, arch, suite, SUITES[suite].xen, source=read_source(name, options, fragments))
    directory = Path(name).expanduser().absolute()
    if kind == "tree":
        tree = read_tree(directory, arch, kind=kind)
        base = base or _base_for(tree.xen)
        return ReleaseSpec("tree", str(directory), arch, base, SUITES[base].xen, tree=tree)
    source = read_source(name, options, fragments)
    return _from_source(directory, arch, base, source)


def _from_source(directory: Path, arch: Arch, base: str, source: Source) -> ReleaseSpec:
    """With the tools of a Debian suite that has the same Xen, or with those that are in the tree."""
    short, _ = version_of(directory)
    same = next((suite.name for suite in SUITES.values() if suite.xen == short), "")
    tree = read_tree(directory, arch, kind="source") if (directory / DIST).is_dir() else None
    if not (base or same or tree):
        have = ", ".join(f"{suite.xen} ({suite.name})" for suite in SUITES.values())
        raise UsageError(
            f"source:{directory}: this is Xen {short}, and tools fit their own hypervisor only; Debian has those of "
            f"{have}. Build them with it: ./configure && make dist there, then the same name takes them from {DIST}"
        )
    base = base or same or _base_for(short)
    return ReleaseSpec("source", str(directory), arch, base, SUITES[base].xen, source=source, tree=tree)


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
