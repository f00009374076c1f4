"""What this machine can do for us, what is missing, and the command that mends it.

Looks at the outer machine only: tools and their versions, libvirt's embedded driver, room in memory and on disk. It
installs nothing, starts no machine and needs no network; whether an accelerator works is found out by booting a Xen.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.metadata
import json
import os
import pwd
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xentests.errors import LabError
from xentests.lab.store import default_cache_dir
from xentests.report.html import allure_command
from xentests.tools import find_tool, run_tool

State = Literal["ok", "missing", "note"]

MINIMUM_PYTHON = (3, 11)
MINIMUM_QEMU = (7, 2)
MINIMUM_LIBVIRT = (9, 0)
MINIMUM_MEMORY_MIB = 2048  # one 1 GiB host, QEMU's code cache and pytest
MINIMUM_DISK_MIB = 6144  # one release's packages, image and template for one architecture
KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"
LIBVIRT_DRIVERS = ("usr/lib/*/libvirt", "usr/lib/libvirt", "usr/lib64/libvirt", "usr/local/lib/libvirt")

ADD_LIBVIRT_USER = "useradd --system --user-group --home-dir /var/lib/libvirt --shell /usr/sbin/nologin libvirt-qemu"

# tool -> (Debian package, what it is for). Checked by presence; a version matters only for the ones with own checks.
TOOLS: dict[str, tuple[str, str]] = {
    "qemu-img": ("qemu-utils", "disk overlays of clones"),
    "mmdebstrap": ("mmdebstrap", "packages of a release, verified"),
    "mke2fs": ("e2fsprogs", "root disks without mounting"),
    "depmod": ("kmod", "module lists of dom0 images"),
    "fakeroot": ("fakeroot", "root's files in images"),
    "zstd": ("zstd", "kernels and modules"),
    "lz4": ("lz4", "kernels"),
    "dpkg-deb": ("dpkg", "unpacking packages"),
    "gpgv": ("gpgv", "signatures of the archive"),
    "gcc": ("gcc", "libvirt-python"),
}
# For releases from source only; tool -> Debian package.
BUILD_TOOLS = {
    "make": "make", "flex": "flex", "bison": "bison", "dpkg-source": "dpkg-dev", "ccache": "ccache",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
}  # fmt: skip
PYTHON_PACKAGES = ("libvirt-python", "pexpect", "pytest-testinfra", "allure-pytest", "pytest", "pytest-xdist")
BROWSERS = ("chromium", "google-chrome", "chromium-browser")


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    ``state`` is ``ok``, ``missing`` (absent, too old or too small) or ``note`` (worth knowing, nothing to mend).
    ``required`` says whether hosts can run without it; ``fix`` is a command, empty when there is nothing to mend.
    """

    name: str
    purpose: str
    state: State
    found: str
    required: bool = True
    fix: str = ""
    package: str = ""


def examine(*, root: Path = Path("/")) -> list[Check]:
    """All checks, in the order a person reads them. ``root`` is where system files are looked for."""
    checks = [_python(), _python_packages()]
    checks += [_qemu("amd64", "qemu-system-x86_64", "qemu-system-x86")]
    checks += [_qemu("arm64", "qemu-system-aarch64", "qemu-system-arm")]
    checks += [_libvirt(), _libvirt_driver(root)]
    if os.geteuid() == 0:
        checks.append(_libvirt_user())
    checks += [_tool(name, package, purpose) for name, (package, purpose) in TOOLS.items()]
    checks += [_build_tools(), _keyring(root), _memory(), _disk(default_cache_dir()), _kvm(root), _allure(), _browser()]
    return checks


def healthy(checks: Iterable[Check]) -> bool:
    """True when nothing required is missing."""
    return not any(check.required and check.state == "missing" for check in checks)


def fixes(checks: Iterable[Check]) -> list[str]:
    """The commands that mend everything missing, each once, packages in one command."""
    missing = [check for check in checks if check.state == "missing"]
    packages = sorted({check.package for check in missing if check.package})
    commands = [_apt(*packages)] if packages else []
    commands += [check.fix for check in missing if check.fix and not check.package]
    return list(dict.fromkeys(commands))


def as_json(checks: Sequence[Check]) -> str:
    """The checks for a machine: ``{"healthy": bool, "checks": [...], "fixes": [...]}``."""
    content = {
        "healthy": healthy(checks),
        "checks": [asdict(check) for check in checks],
        "fixes": fixes(checks),
    }
    return json.dumps(content, indent=2)


def render(checks: Sequence[Check], console: Console) -> None:
    """The checks for a person: a table, then the commands that mend what is missing."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        purpose = f" [dim]({escape(check.purpose)})[/]" if check.state == "missing" else ""
        table.add_row(_mark(check), escape(check.name), escape(check.found) + purpose)
    console.print(table)
    commands = fixes(checks)
    if commands:
        console.print("\nTo mend it:")
        for command in commands:
            console.print(f"    {escape(command)}", highlight=False, soft_wrap=True)
    if healthy(checks):
        console.print("\n[green]This machine can run nested Xen hosts.[/]")
    else:
        console.print("\n[red]Something required is missing.[/] ./bootstrap.sh ENV installs all of it.")


def _mark(check: Check) -> str:
    if check.state == "ok":
        return "[green]ok[/]"
    if check.state == "note":
        return "[blue]note[/]"
    return "[red]missing[/]" if check.required else "[yellow]optional[/]"


def _apt(*packages: str) -> str:
    prefix = "" if os.geteuid() == 0 else "sudo "
    return f"{prefix}apt-get install --no-install-recommends {' '.join(packages)}"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)


def _python() -> Check:
    version = sys.version_info[:3]
    good = version >= MINIMUM_PYTHON
    fix = "" if good else f"use Python {_dotted(MINIMUM_PYTHON)} or newer, as Debian 12 and 13 have it"
    return Check("Python", "everything", "ok" if good else "missing", f"{_dotted(version)} ({sys.executable})", fix=fix)


def _python_packages() -> Check:
    purpose = "libvirt, consoles, dom0 queries, reports"
    absent = [name for name in PYTHON_PACKAGES if not _has_distribution(name)]
    if absent:
        fix = "./bootstrap.sh livepatch"
        return Check("Python packages", purpose, "missing", f"without {', '.join(absent)}", fix=fix)
    return Check("Python packages", purpose, "ok", f"libvirt-python {importlib.metadata.version('libvirt-python')}")


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _tool(name: str, package: str, purpose: str) -> Check:
    path = find_tool(name)
    if path is None:
        return Check(name, purpose, "missing", "not on PATH", fix=_apt(package), package=package)
    return Check(name, purpose, "ok", str(path))


def _build_tools() -> Check:
    """Worth knowing, and nothing to mend where no hypervisor is built."""
    packages = [package for tool, package in BUILD_TOOLS.items() if find_tool(tool) is None]
    name, purpose = "build tools", "releases from source"
    if packages:
        return Check(name, purpose, "note", f"for releases from source: {_apt(*packages)}", required=False)
    return Check(name, purpose, "ok", f"{', '.join(BUILD_TOOLS)}", required=False)


def _qemu(arch: str, binary: str, package: str) -> Check:
    name, purpose = f"QEMU for {arch}", f"{arch} hosts"
    path = find_tool(binary)
    if path is None:
        return Check(name, purpose, "missing", f"no {binary} on PATH", fix=_apt(package), package=package)
    try:
        said = run_tool([path, "--version"], limit_s=20).decode(errors="replace")
    except (LabError, OSError) as error:
        return Check(name, purpose, "missing", f"{path} does not run: {error}", fix=_apt(package), package=package)
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", said)
    version = tuple(int(number) for number in match.groups(default="0")) if match else (0,)
    if version < MINIMUM_QEMU:
        found = f"{_dotted(version)}, older than {_dotted(MINIMUM_QEMU)}"
        return Check(name, purpose, "missing", found, fix=_apt(package), package=package)
    return Check(name, purpose, "ok", _dotted(version))


def _libvirt() -> Check:
    name, purpose, package = "libvirt", "running the machines", "libvirt-dev"
    number = ctypes.c_ulong()
    try:
        # virGetVersion, libvirt/libvirt-host.h: major * 1,000,000 + minor * 1,000 + release; 0 for success.
        answer = ctypes.CDLL("libvirt.so.0").virGetVersion(ctypes.byref(number), None, None)
    except OSError:
        return Check(name, purpose, "missing", "no libvirt.so.0", fix=_apt(package), package=package)
    version = (number.value // 1_000_000, number.value // 1000 % 1000, number.value % 1000)
    if answer != 0 or version < MINIMUM_LIBVIRT:
        found = f"{_dotted(version)}, older than {_dotted(MINIMUM_LIBVIRT)}"
        return Check(name, purpose, "missing", found, fix=_apt(package), package=package)
    return Check(name, purpose, "ok", _dotted(version))


def _libvirt_driver(root: Path) -> Check:
    name, purpose, package = "libvirt's QEMU driver", "qemu:///embed, no daemon needed", "libvirt-daemon-driver-qemu"
    for directory in LIBVIRT_DRIVERS:
        for found in glob.glob(f"{directory}/connection-driver/libvirt_driver_qemu.so", root_dir=root):
            return Check(name, purpose, "ok", str(root / found))
    return Check(name, purpose, "missing", "not installed", fix=_apt(package), package=package)


def _libvirt_user() -> Check:
    """As root the driver looks its default user up before it reads that we want another, and stops without it."""
    name, purpose = "user libvirt-qemu", "libvirt's QEMU driver, when run as root"
    try:
        entry = pwd.getpwnam("libvirt-qemu")
    except KeyError:
        return Check(name, purpose, "missing", "no such user", fix=ADD_LIBVIRT_USER)
    return Check(name, purpose, "ok", f"uid {entry.pw_uid}")


def _keyring(root: Path) -> Check:
    name, purpose, package = "Debian's archive keys", "signatures of the archive", "debian-archive-keyring"
    path = root / KEYRING
    if not path.is_file():
        return Check(name, purpose, "missing", f"no {path}", fix=_apt(package), package=package)
    return Check(name, purpose, "ok", str(path))


def _memory() -> Check:
    memory = psutil.virtual_memory()
    available, total = memory.available >> 20, memory.total >> 20
    found = f"{available} MiB available of {total} MiB"
    if available < MINIMUM_MEMORY_MIB:
        fix = f"free some memory: {MINIMUM_MEMORY_MIB} MiB are needed for one host"
        return Check("memory", "hosts; a clone takes some 200 MiB", "missing", found, fix=fix)
    return Check("memory", "hosts; a clone takes some 200 MiB", "ok", found)


def _disk(cache: Path) -> Check:
    existing = next(path for path in (cache, *cache.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free >> 20
    found = f"{free} MiB free at {cache}"
    if not os.access(existing, os.W_OK):
        fix = "set XENTESTS_CACHE to a directory that you may write to"
        return Check("cache", "images and templates", "missing", f"{existing} is not writable", fix=fix)
    if free < MINIMUM_DISK_MIB:
        fix = f"xentests gc, or set XENTESTS_CACHE to a disk with {MINIMUM_DISK_MIB} MiB free"
        return Check("cache", "images and templates", "missing", found, fix=fix)
    return Check("cache", "images and templates", "ok", found)


def _kvm(root: Path) -> Check:
    name, purpose = "/dev/kvm", "speed only; hosts run without"
    device = root / "dev/kvm"
    if not device.exists():
        return Check(name, purpose, "note", "absent: hosts are emulated (TCG)", required=False)
    if not os.access(device, os.R_OK | os.W_OK):
        return Check(name, purpose, "note", "not yours to open: hosts are emulated (TCG)", required=False)
    return Check(name, purpose, "note", "present, but it may lie: probed by booting a Xen", required=False)


def _allure() -> Check:
    name, purpose, fix = "Allure 3", "the HTML report", "./bootstrap.sh report"
    try:
        command = allure_command()
    except LabError as error:
        return Check(name, purpose, "missing", str(error), required=False, fix=fix)
    return Check(name, purpose, "ok", str(command[-1]), required=False)


def _browser() -> Check:
    name, purpose, package = "a browser", "the selftest that opens the report", "chromium"
    for binary in BROWSERS:
        path = find_tool(binary)
        if path is not None:
            return Check(name, purpose, "ok", str(path), required=False)
    return Check(name, purpose, "missing", "no chromium on PATH", required=False, fix=_apt(package), package=package)
