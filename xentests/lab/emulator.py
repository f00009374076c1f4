"""QEMUs that hosts run under instead of the outer system's: a Debian release's own, as an entry of the store.

Another QEMU emulates other CPUs and has other defects; with one from the store it is the same on every outer
distribution, and nothing is installed. It runs by its own loader with its own libraries, from a tree of its packages.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xentests.errors import LabError, UsageError
from xentests.image.unpack import Tree, patterns
from xentests.lab.store import Store, key_of
from xentests.release.arch import Arch
from xentests.release.fetch import fetch
from xentests.release.spec import SUITES, SYSTEM_QEMU, ReleaseSpec
from xentests.tools import run_tool

_VERSION = 1  # raise it when the same packages give another entry
_PACKAGES: dict[Arch, tuple[str, ...]] = {
    "amd64": ("qemu-system-x86", "seabios", "ipxe-qemu"),
    "arm64": ("qemu-system-arm",),
}
_BINARIES: dict[Arch, str] = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}


@dataclass(frozen=True)
class _Outer:
    """The outer machine's architecture, as Debian, the GNU tools and glibc name it."""

    debian: Arch
    libraries: str
    loader: str


_OUTER = {
    "x86_64": _Outer("amd64", "x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "aarch64": _Outer("arm64", "aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}
_LEFT_OUT = ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*", "var/lib/dpkg/*", "etc/*")
# A loader that is given the program does not look at the outer system's libraries.
_WRAPPER = """#!/bin/sh
root=${{0%/*}}
export QEMU_MODULE_DIR="$root/usr/lib/{libraries}/qemu"
exec "$root/usr/lib/{libraries}/{loader}" --library-path "$root/usr/lib/{libraries}" --argv0 {binary} \\
    "$root/usr/bin/{binary}" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""


@dataclass(frozen=True)
class Emulator:
    """One of them: its name as on the command line, version, the program to start, and a key of all its bytes."""

    name: str
    version: str
    path: Path
    digest: str


def find_emulator(
    name: str, arch: Arch, store: Store, *, mirror: str | None = None, report: Callable[[str], None] = lambda text: None
) -> Emulator:
    """The QEMU ``debian:SUITE`` that emulates ``arch``, fetched and unpacked if need be.

    Raises UsageError, DownloadError, LabFull, and LabError when it does not run here.
    """
    outer = _OUTER.get(platform.machine())
    if outer is None:
        raise UsageError(f"QEMU {name}: there is none for a {platform.machine()} machine; use {SYSTEM_QEMU}")
    suite, binary = name.removeprefix("debian:"), _BINARIES[arch]
    spec = ReleaseSpec("debian", suite, outer.debian, base=suite, xen=SUITES[suite].xen)
    fetched = fetch(spec, _PACKAGES[arch], store, mirror=mirror, report=report)

    def build(directory: Path) -> Mapping[str, object]:
        report(f"{binary} of {name}: unpacking packages")
        tree = Tree(directory, left_out=patterns(_LEFT_OUT))
        tree.add_all((package, fetched.deb(package)) for package in fetched.chosen.packages)
        _seal(directory / "usr/bin" / binary, outer)
        wrapper = directory / binary
        wrapper.write_text(_WRAPPER.format(libraries=outer.libraries, loader=outer.loader, binary=binary))
        wrapper.chmod(0o755)
        said = run_tool([wrapper, "--version"], limit_s=30.0, package="qemu").decode("utf-8", "replace")
        found = re.search(r"version (\d+\.\d+\.\d+)", said)
        if found is None:
            raise LabError(f"{binary} of {name} does not say its version: {said[:200]!r}")
        return {"version": found[1], "packages": [package.to_json() for package in fetched.chosen.packages]}

    key = key_of("qemu", _VERSION, fetched.chosen.key, binary, _WRAPPER, _LEFT_OUT)
    entry = store.get("qemu", key, build, what=f"QEMU of {name} for {arch}")
    return Emulator(name, str(entry.manifest["version"]), entry.file(binary), entry.digest)


def _seal(binary: Path, outer: _Outer) -> None:
    """Have QEMU look for modules in its own tree only (util/module.c has the directory compiled in, too).

    libvirt asks it for all there are, and a module of the outer system's QEMU ends it: "Only modules from the same
    build can be loaded".
    """
    content, folder = binary.read_bytes(), f"/usr/lib/{outer.libraries}/qemu".encode() + b"\0"
    if folder not in content:
        raise LabError(f"{binary.name} does not name {folder.decode()}, where it would look for modules")
    binary.write_bytes(content.replace(folder, b"/nowhere".ljust(len(folder), b"\0")))
