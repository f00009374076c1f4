"""The parts of an image: kernels unpacked, initrds packed, modules in order, packages kept in their place."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
from pathlib import Path

import pytest

from selftests.fake_archive import Files, ar_of, make_deb, tar_of
from selftests.tiny_release import VMLINUX, bzimage, module
from xentests.errors import LabError
from xentests.image.cpio import Cpio
from xentests.image.kernel import plain_hypervisor, plain_kernel
from xentests.image.modules import Modules, kernel_release, module_name, prune
from xentests.image.unpack import Tree, merged, one_member, patterns
from xentests.release.deb import Package
from xentests.tools import run_tool

ARM64_IMAGE = bytes(56) + b"ARM\x64" + b"code" * 100


# -- kernels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packer", ["gzip", "xz", "bzip2", "lzma", "zstd", "lz4", "none"])
def test_a_kernel_is_unpacked_from_its_bzimage(packer: str) -> None:
    """With every packer that Linux knows but LZO; all but gzip's have the unpacked size behind them."""
    if packer == "none":
        payload = VMLINUX
    elif packer in ("gzip", "bzip2"):
        payload = gzip.compress(VMLINUX) if packer == "gzip" else bz2.compress(VMLINUX)
    elif packer in ("xz", "lzma"):
        payload = lzma.compress(VMLINUX, lzma.FORMAT_XZ if packer == "xz" else lzma.FORMAT_ALONE)
    else:
        legacy = ["-l"] if packer == "lz4" else []
        payload = run_tool([packer, *legacy, "-c"], input_data=VMLINUX, package=packer)
    image = bzimage(payload, size_behind=packer not in ("gzip", "none"))
    assert plain_kernel(image, "amd64", what="vmlinuz") == VMLINUX


def test_an_arm64_image_is_taken_plain_or_gzipped() -> None:
    """As Debian ships it, either way."""
    assert plain_kernel(ARM64_IMAGE, "arm64", what="vmlinuz") == ARM64_IMAGE
    assert plain_kernel(gzip.compress(ARM64_IMAGE), "arm64", what="vmlinuz") == ARM64_IMAGE


def test_a_hypervisor_is_taken_plain_or_gzipped() -> None:
    """And only for its own architecture."""
    elf = b"\x7fELF xen"
    assert plain_hypervisor(gzip.compress(elf), "amd64", what="xen.gz") == elf
    assert plain_hypervisor(ARM64_IMAGE, "arm64", what="xen") == ARM64_IMAGE
    with pytest.raises(LabError, match=r"xen\.gz: not a Xen for arm64"):
        plain_hypervisor(gzip.compress(elf), "arm64", what="xen.gz")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        bytes(4096),
        bzimage(b"unknown packer"),
        bzimage(gzip.compress(VMLINUX)[:20]),
        bzimage(b"\xfd7zXZ\0 rubbish", size_behind=True),
    ],
    ids=["empty", "short", "zeros", "unknown", "cut", "damaged"],
)
def test_what_is_no_kernel_is_refused(data: bytes) -> None:
    """With the file's name, not with a traceback of a library."""
    with pytest.raises(LabError, match=r"^vmlinuz"):
        plain_kernel(data, "amd64", what="vmlinuz")
    with pytest.raises(LabError, match=r"^vmlinuz"):
        plain_kernel(data, "arm64", what="vmlinuz")


# -- initrds ------------------------------------------------------------------------------------------------------


def test_cpio_reads_back_what_was_packed(tmp_path: Path) -> None:
    """Files, links and directories with their modes, extracted by cpio itself."""
    archive = Cpio()
    archive.directory("dev/pts")
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.file("a/b/c", b"odd")
    archive.file("empty", b"")
    archive.link("bin", "usr/bin")
    archive.device("dev/console", 5, 1)
    data = archive.data()
    assert len(data) % 512 == 0
    listing = run_tool(["cpio", "-tv", "--quiet", "--numeric-uid-gid"], input_data=data, package="cpio").decode()
    assert [line.split()[0] for line in listing.splitlines()] == [
        "drwxr-xr-x", "drwxr-xr-x", "-rwxr-xr-x", "drwxr-xr-x", "drwxr-xr-x", "-rw-r--r--", "-rw-r--r--", "lrwxrwxrwx",
        "crw-------",
    ]  # fmt: skip
    assert "5,   1" in listing
    run_tool(["cpio", "-i", "--quiet", "--nonmatching", "dev/console"], input_data=data, cwd=tmp_path, package="cpio")
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "a/b/c").read_bytes() == b"odd"
    assert (tmp_path / "bin").readlink() == Path("usr/bin")


def test_the_same_content_packs_to_the_same_bytes() -> None:
    """No times, no inode numbers of a file system."""

    def packed() -> bytes:
        archive = Cpio()
        archive.file("init", b"x")
        return archive.data()

    assert packed() == packed()


# -- modules ------------------------------------------------------------------------------------------------------


def test_the_order_of_modules() -> None:
    """What is needed comes first, once; dashes are underscores; built-in and absent optional ones are nothing."""
    modules = Modules(
        directory=Path("/nowhere"),
        dependencies={
            "kernel/fs/ext4.ko": ("kernel/fs/jbd2.ko", "kernel/lib/crc16.ko"),
            "kernel/fs/jbd2.ko": ("kernel/lib/crc16.ko",),
            "kernel/lib/crc16.ko": (),
            "kernel/net/xen-netfront.ko": (),
        },
        paths={
            "ext4": "kernel/fs/ext4.ko",
            "jbd2": "kernel/fs/jbd2.ko",
            "crc16": "kernel/lib/crc16.ko",
            "xen_netfront": "kernel/net/xen-netfront.ko",
        },
        builtin=frozenset({"virtio"}),
    )
    order = modules.order(["xen-netfront", "ext4", "virtio", "absent?", "jbd2?"])
    assert [module_name(path) for path in order] == ["xen_netfront", "crc16", "jbd2", "ext4"]
    with pytest.raises(LabError, match="no module absent"):
        modules.order(["absent"])


@pytest.fixture
def module_tree(tmp_path: Path) -> Path:
    """An unpacked kernel whose modules need each other, and its ``modules.builtin``."""
    kernel = tmp_path / "usr/lib/modules/9.9/kernel"
    files = {
        "fs/ext4/ext4.ko.xz": lzma.compress(module(depends="jbd2")),
        "fs/jbd2/jbd2.ko.xz": lzma.compress(module(depends="crc-16")),
        "lib/crc-16.ko": module(),
        "net/bridge/bridge.ko": module(depends="llc"),
        "net/llc/llc.ko": module(),
        "sound/noise.ko": module(),
    }
    for name, content in files.items():
        (kernel / name).parent.mkdir(parents=True, exist_ok=True)
        (kernel / name).write_bytes(content)
    (kernel.parent / "modules.builtin").write_text("kernel/virtio.ko\n")
    return tmp_path


def test_modules_nobody_needs_are_dropped(module_tree: Path) -> None:
    """Kept: a directory, a name, and what they need, each decompressed."""
    prune(module_tree, kernel_release(module_tree), prefixes=["fs/ext4"], names=["llc", "virtio", "absent?"])
    left = sorted(path.name for path in module_tree.rglob("*.ko*"))
    assert left == ["crc-16.ko", "ext4.ko", "jbd2.ko", "llc.ko"]
    assert (module_tree / "usr/lib/modules/9.9/kernel/fs/ext4/ext4.ko").read_bytes() == module(depends="jbd2")


def test_a_damaged_module_is_named(module_tree: Path) -> None:
    """Its package is the culprit."""
    (module_tree / "usr/lib/modules/9.9/kernel/net/llc/llc.ko").write_bytes(b"not an ELF file")
    with pytest.raises(LabError, match=r"llc\.ko: not a kernel module"):
        prune(module_tree, "9.9", prefixes=["net"], names=[])


def test_one_kernel_and_no_more(module_tree: Path) -> None:
    """Two kernels in one tree: nobody could tell which is dom0's."""
    (module_tree / "usr/lib/modules/10.0/kernel").mkdir(parents=True)
    with pytest.raises(LabError, match=r"found 10\.0, 9\.9"):
        kernel_release(module_tree)


# -- packages -----------------------------------------------------------------------------------------------------


def unpacked(tmp_path: Path, files: Files, *, exclude: tuple[str, ...] = ()) -> Path:
    """A tree with one package in it."""
    (tmp_path / "tree").mkdir()
    tree = Tree(tmp_path / "tree", left_out=patterns(exclude))
    tree.add_all([(Package("demo", "1.0", "amd64", "0" * 64), make_deb(tmp_path / "demo.deb", files=files))])
    return tree.path


def test_old_and_new_places_of_programs_are_one(tmp_path: Path) -> None:
    """Packages from before and after the merge of /bin into /usr/bin give the same tree."""
    path = unpacked(tmp_path, {"bin/old": b"1", "usr/bin/new": b"2", "lib/x/y.so": b"3", "sbin/link": "../bin/old"})
    assert (path / "usr/bin/old").read_bytes() == b"1"
    assert (path / "bin/new").read_bytes() == b"2"
    assert (path / "usr/lib/x/y.so").read_bytes() == b"3"
    assert (path / "usr/sbin/link").readlink() == Path("../bin/old")
    assert (path / "bin").readlink() == Path("usr/bin")
    assert merged("lib/x") == "usr/lib/x"
    assert merged("libexec/x") == "libexec/x"
    assert merged("bin") == "bin"


def test_left_out_paths_stay_out_under_either_name(tmp_path: Path) -> None:
    """A pattern on the merged path catches the old one."""
    path = unpacked(tmp_path, {"lib/doc/a": b"1", "usr/share/b": b"2"}, exclude=("usr/lib/doc/*",))
    assert not (path / "usr/lib/doc/a").exists()
    assert (path / "usr/share/b").exists()
    assert "/lib/doc/a" in (path / "var/lib/dpkg/info/demo.list").read_text()


def test_modes_come_without_set_uid(tmp_path: Path) -> None:
    """Everything belongs to root in dom0 anyway."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("./usr/bin/su")
        member.size, member.mode, member.mtime = 1, 0o4755, 1000
        archive.addfile(member, io.BytesIO(b"x"))
        hard = tarfile.TarInfo("./usr/bin/also-su")
        hard.type, hard.linkname = tarfile.LNKTYPE, "./usr/bin/su"
        archive.addfile(hard)
    path = unpack_raw(tmp_path, buffer.getvalue())
    state = (path / "usr/bin/su").stat()
    assert stat.S_IMODE(state.st_mode) == 0o755
    assert state.st_mtime == 1000
    assert os.path.samefile(path / "usr/bin/su", path / "usr/bin/also-su")


def unpack_raw(tmp_path: Path, data: bytes) -> Path:
    """Unpack a package whose data archive is given."""
    deb = tmp_path / "demo.deb"
    control = tar_of(
        {"./control": b"Package: demo\nVersion: 1.0\nArchitecture: amd64\nMaintainer: n\nDescription: d\n"}
    )
    deb.write_bytes(ar_of({"debian-binary": b"2.0\n", "control.tar": control, "data.tar": data}))
    (tmp_path / "tree").mkdir()
    tree = Tree(tmp_path / "tree", left_out=lambda name: False)
    tree.add_all([(Package("demo", "1.0", "amd64", "0" * 64), deb)])
    return tree.path


@pytest.mark.parametrize("name", ["../escape", "usr/../../escape"])
def test_a_path_cannot_lead_out_of_the_tree(tmp_path: Path, name: str) -> None:
    """A developer's package is not signed by anybody."""
    with pytest.raises(LabError, match="outside its tree"):
        unpack_raw(tmp_path, tar_of({name: b"x"}))
    assert not list(tmp_path.parent.rglob("escape"))


@pytest.mark.parametrize(
    ("link", "target", "lands"),
    [
        ("usr/out", "../../..", "escape"),
        ("usr/out", "/run/lock", "run/lock/escape"),
        ("usr/out", "missing/there", "usr/missing/there/escape"),
        ("lib/out", "../share", "usr/share/escape"),
    ],
    ids=["dotdot", "absolute", "dangling", "merged"],
)
def test_links_are_followed_as_if_the_tree_were_the_root(tmp_path: Path, link: str, target: str, lands: str) -> None:
    """So they do not lead out of it, and a package may write through another's absolute link."""
    path = unpack_raw(tmp_path, tar_of({link: target, f"{link}/escape": b"x"}))
    assert [str(file.relative_to(path)) for file in path.rglob("escape")] == [lands]
    assert len(list(tmp_path.rglob("escape"))) == 1
    assert not (tmp_path.parent / "escape").exists()


def test_a_directory_does_not_reach_through_a_link(tmp_path: Path) -> None:
    """Its mode is not set on what the link points to, here outside."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    unpack_raw(tmp_path, tar_of({"usr/out": str(outside), "usr/out/": b""}))
    assert stat.S_IMODE(outside.stat().st_mode) == 0o750
    assert not list(outside.iterdir())


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    """It would never end."""
    with pytest.raises(LabError, match="loop of links"):
        unpack_raw(tmp_path, tar_of({"usr/a": "b", "usr/b": "a", "usr/a/file": b"x"}))


def test_an_absolute_path_is_taken_as_one_in_the_tree(tmp_path: Path) -> None:
    """As dpkg does."""
    assert (unpack_raw(tmp_path, tar_of({"/etc/file": b"x"})) / "etc/file").read_bytes() == b"x"


@pytest.mark.parametrize("keep", [0, 700], ids=["nothing", "half"])
def test_a_damaged_data_archive_is_named(tmp_path: Path, keep: int) -> None:
    """A package whose outer shell is whole and whose inside is not."""
    whole = tar_of({"usr/file": b"x" * 3000})
    with pytest.raises(LabError, match=r"demo 1\.0: (its archive is damaged|does not unpack)"):
        unpack_raw(tmp_path, lzma.compress(whole)[:keep])


def test_one_file_out_of_a_package(tmp_path: Path) -> None:
    """Without unpacking the rest; None when it is not there."""
    deb = make_deb(tmp_path / "demo.deb", files={"boot/vmlinuz": b"kernel", "boot/other": b"x"})
    assert one_member(deb, lambda name: name == "boot/vmlinuz") == ("boot/vmlinuz", b"kernel")
    assert one_member(deb, lambda name: False) is None


def test_the_module_of_a_test_is_one() -> None:
    """The hand-made ELF file is read by the tools that read real ones."""
    assert struct.unpack_from("<H", module(), 16)[0] == 1
