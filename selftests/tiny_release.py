"""A release of a few kilobytes that builds like a real one: kernel, modules, hypervisor, busybox, and a recipe."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from selftests.fake_archive import FakeArchive

KERNEL = "9.9-test"
VMLINUX = b"\x7fELF" + b"vmlinux" * 100
MODULES = f"lib/modules/{KERNEL}"
RECIPE = """
[packages]
all = ["xen-hypervisor-{xen}-{arch}", "linux-image-{arch}", "busybox-static"]

[packages.symbols]
"trixie/amd64" = "xen-hypervisor-{xen}-amd64-dbg"

[disk]
size_mib = 24
leave_out = ["xen-hypervisor-*-dbg", "unneeded"]
exclude = ["usr/share/doc/*", "boot/vmlinu*"]
directories = ["dev", "proc", "var/log/xen"]

[modules]
keep = ["fs"]
initrd = ["disk_driver", "crc?", "built-in"]
load = ["xen-gntdev", "bridge"]
guest = ["xen-blkfront"]

[files]
"init.sh" = "usr/lib/xentests/init"

[links]
"usr/sbin/init" = "../bin/busybox"

[text]
"etc/hostname" = "dom0\\n"

[initrd]
dom0 = "init.sh"
guest = "init.sh"
"""


def write_recipe(directory: Path, text: str = RECIPE) -> Path:
    """A directory as ``images/`` is."""
    directory.mkdir(exist_ok=True)
    (directory / "dom0.toml").write_text(text)
    (directory / "init.sh").write_text("#!/bin/sh\necho hello\n")
    return directory


def served(tmp_path: Path) -> Iterator[FakeArchive]:
    """An archive with the packages of the recipe, whose signing agent ends with it: for a fixture."""
    made = FakeArchive(tmp_path / "archive", tmp_path / "keys")
    fill(made)
    yield made
    subprocess.run(["gpgconf", "--homedir", tmp_path / "keys", "--kill", "all"], check=False)


def fill(archive: FakeArchive) -> None:
    """Put the packages of the recipe into the archive and publish it."""
    base = f"{MODULES}/kernel"
    modules = {
        f"{base}/fs/ext4/ext4.ko.xz": lzma.compress(module(depends="crc16,jbd2")),
        f"{base}/fs/jbd2/jbd2.ko.xz": lzma.compress(module()),
        f"{base}/lib/crc16.ko": module(),
        f"{base}/drivers/block/disk_driver.ko": module(),
        f"{base}/drivers/block/xen-blkfront.ko": module(),
        f"{base}/drivers/xen/xen-gntdev.ko.xz": lzma.compress(module()),
        f"{base}/net/bridge/bridge.ko": module(depends="llc"),
        f"{base}/net/llc/llc.ko": module(),
        f"{base}/sound/noise.ko.xz": lzma.compress(module()),
        f"{MODULES}/modules.builtin": b"kernel/drivers/built-in.ko\n",
        f"{MODULES}/modules.order": b"",
    }
    archive.add("linux-image-amd64", depends=f"linux-image-{KERNEL}")
    archive.add(f"linux-image-{KERNEL}", files={**modules, f"boot/vmlinuz-{KERNEL}": bzimage(gzip.compress(VMLINUX))})
    archive.add(
        "xen-hypervisor-4.20-amd64",
        files={
            "boot/xen-4.20-amd64.gz": gzip.compress(b"\x7fELF hypervisor", mtime=0),
            "boot/xen-4.20-amd64.config": b"CONFIG_X86=y\n",
            "usr/share/doc/xen/changelog": b"long\n",
        },
    )
    archive.add(
        "xen-hypervisor-4.20-amd64-dbg",
        depends="xen-hypervisor-4.20-amd64 (= 1.0)",
        files={"usr/lib/debug/boot/xen-syms-4.20-amd64": b"\x7fELF symbols", "usr/lib/debug/boot/xen-syms.map": b""},
    )
    archive.add("busybox-static", depends="unneeded", files={"bin/busybox": b"#!busybox", "bin/sh": "busybox"})
    archive.add("unneeded", files={"usr/bin/unneeded": b"no"})
    archive.publish()


def bzimage(payload: bytes, *, size_behind: bool = False) -> bytes:
    """A kernel file with a payload where Linux' boot protocol says; ``size_behind``: as all packers but gzip do it."""
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    packed = payload + (struct.pack("<I", len(VMLINUX)) if size_behind else b"")
    struct.pack_into("<II", setup, 0x248, 64, len(packed))
    return bytes(setup) + bytes(64) + packed + b"more code"


def module(*, depends: str = "") -> bytes:
    """A relocatable ELF64 (ELF-64 Object File Format) with nothing but ``.modinfo``, as far as depmod looks."""
    modinfo = b"license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
    names = b"\0.modinfo\0.shstrtab\0"
    header, section = 64, 64
    tables = header + len(modinfo) + len(names)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    out = ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, tables, 0, header, 0, 0, section, 3, 2)
    out += modinfo + names + bytes(section)
    out += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, header, len(modinfo), 0, 0, 1, 0)
    return out + struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, header + len(modinfo), len(names), 0, 0, 1, 0)
