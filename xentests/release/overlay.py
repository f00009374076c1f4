"""A directory of ``.deb`` files of a developer's own build: read, checked, keyed by contents.

Offered to apt as a small trusted repository of its own, so that apt decides which of them replace or join the packages
of the Debian suite below. Nothing here is signed: the manifest says so by ``origin="directory"``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from xentests.errors import UsageError
from xentests.release.arch import ARCHES, Arch
from xentests.release.deb import Package, control_fields, sha256_of
from xentests.tools import ToolFailed

ORIGIN = "xentests-directory"  # of the repository, for apt's preferences
_HYPERVISOR = re.compile(r"xen-hypervisor-(?P<xen>\d+\.\d+)-(?P<arch>amd64|arm64)")


@dataclass(frozen=True)
class Overlay:
    """The usable .deb files of a directory, for one architecture; ``xen`` is the version in the package names."""

    directory: Path
    xen: str
    packages: tuple[Package, ...]
    files: tuple[Path, ...]

    def write_repository(self, path: Path) -> None:
        """Fill the empty directory ``path`` with copies of the packages and an index of them, a flat repository."""
        index = []
        for package, file in zip(self.packages, self.files, strict=True):
            copy = path / f"{package.sha256[:16]}.deb"
            shutil.copyfile(file, copy)
            fields = control_fields(copy)
            fields |= {"Filename": f"./{copy.name}", "Size": str(copy.stat().st_size), "SHA256": package.sha256}
            index.append("".join(f"{name}: {value}\n" for name, value in fields.items()))
        packages = "\n".join(index).encode()
        (path / "Packages").write_bytes(packages)
        digest = hashlib.sha256(packages).hexdigest()
        (path / "Release").write_text(f"Origin: {ORIGIN}\nSHA256:\n {digest} {len(packages)} Packages\n")


def read_overlay(directory: Path, arch: Arch) -> Overlay:
    """The packages of ``directory`` that fit ``arch``.

    Raises UsageError when there are none, when one is not a package, and when none brings a hypervisor.
    """
    found = sorted(directory.glob("*.deb"))
    if not found:
        raise UsageError(f"debs:{directory}: there is no .deb file in it; give the directory your build put them in")
    packages, files, others = [], [], set()
    for file in found:
        try:
            fields = control_fields(file)
            package = Package(
                fields["Package"], fields["Version"], fields["Architecture"], sha256_of(file), "directory"
            )
        except (ToolFailed, KeyError, OSError) as error:
            raise UsageError(f"{file}: not a whole Debian package; build it again or take it away ({error})") from error
        if package.arch in (arch, "all"):
            packages.append(package)
            files.append(file)
        else:
            others.add(package.arch)
    if not packages:
        raise UsageError(
            f"debs:{directory}: its packages are for {', '.join(sorted(others))}, not for {arch}; choose the "
            f"architecture to match ({', '.join(ARCHES)})"
        )
    names = sorted(package.name for package in packages)
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise UsageError(f"debs:{directory}: more than one version of {', '.join(sorted(doubled))}: keep one of each")
    versions = {match["xen"] for name in names if (match := _HYPERVISOR.fullmatch(name)) and match["arch"] == arch}
    if len(versions) != 1:
        have = f"those of Xen {' and '.join(sorted(versions))}" if versions else "none"
        raise UsageError(
            f"debs:{directory}: wanted one package xen-hypervisor-VERSION-{arch} with the hypervisor, found {have}; "
            f"there are: {', '.join(names)[:500]}"
        )
    return Overlay(directory, versions.pop(), tuple(packages), tuple(files))
