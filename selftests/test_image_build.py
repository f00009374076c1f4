"""Building an image: what is in it, that it is found again, and what is said when it cannot be. With a tiny release."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from selftests.fake_archive import FakeArchive
from selftests.tiny_release import KERNEL, RECIPE, VMLINUX, served, write_recipe
from xentests.errors import LabError, LabFull
from xentests.image import build as build_module
from xentests.image.build import build_image, find_image
from xentests.image.disk import make_disk
from xentests.image.image import Image
from xentests.image.recipe import load_recipe
from xentests.lab.store import Store
from xentests.release.arch import ARCHES
from xentests.release.spec import SUITES, parse_release
from xentests.tools import ToolFailed, run_tool

pytestmark = pytest.mark.skipif(not shutil.which("gpg"), reason="needs gpg, to sign an archive of its own")
TRIXIE = parse_release("debian:trixie", "amd64")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[FakeArchive]:
    """With the packages of the tiny release."""
    yield from served(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty one."""
    return Store(tmp_path / "cache")


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """The recipe of the tiny release."""
    return write_recipe(tmp_path / "images")


def on_disk(image: Image, request: str) -> str:
    """What debugfs says about the root disk."""
    return run_tool(["debugfs", "-R", request, image.root_disk], package="e2fsprogs").decode()


def in_initrd(initrd: Path) -> list[str]:
    """The names in an initrd, as cpio reads them."""
    return run_tool(["cpio", "-t", "--quiet"], input_data=initrd.read_bytes(), package="cpio").decode().split()


def test_an_image_has_what_the_recipe_says(archive: FakeArchive, store: Store, recipes: Path) -> None:
    """Files for the lab, the root disk for dom0, and what is known about them."""
    image = build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    assert image.hypervisor.read_bytes() == b"\x7fELF hypervisor"
    assert image.dom0_kernel.read_bytes() == VMLINUX
    assert image.symbols is not None
    assert image.symbols.read_bytes() == b"\x7fELF symbols"
    assert image.xen_config is not None
    assert image.xen_config.read_bytes() == b"CONFIG_X86=y\n"
    assert (image.kernel_version, image.xen_package_version) == (KERNEL, "1.0")
    assert len(image.packages) == 6
    assert all(len(package.sha256) == 64 for package in image.packages)
    assert sorted(path.name for path in image.entry.path.iterdir() if path.is_dir()) == []

    modules = f"/usr/lib/modules/{KERNEL}/kernel"
    assert "ext4.ko" in on_disk(image, f"ls {modules}/fs/ext4")
    assert "jbd2.ko" in on_disk(image, f"ls {modules}/fs/jbd2")  # what a kept one needs
    assert "llc.ko" in on_disk(image, f"ls {modules}/net/llc")
    assert "noise" not in on_disk(image, f"ls {modules}/sound")
    assert "boot/vmlinuz" not in on_disk(image, "ls /boot")
    assert "changelog" not in on_disk(image, "ls /usr/share/doc/xen")
    assert "unneeded" not in on_disk(image, "ls /usr/bin")
    assert on_disk(image, "cat /etc/modules").split() == ["xen_gntdev", "bridge"]
    assert on_disk(image, "cat /etc/hostname") == "dom0\n"
    assert on_disk(image, "cat /usr/share/xentests/guest/kernel").encode(errors="surrogateescape") == VMLINUX
    assert 'Fast link dest: "usr/bin"' in on_disk(image, "stat /bin")
    for path in ("/", "/usr/bin/busybox", "/usr/lib/xentests/init"):
        assert "User:     0   Group:     0" in on_disk(image, f"stat {path}")
    assert "Mode:  0755" in on_disk(image, "stat /usr/lib/xentests/init")
    label = run_tool(["e2label", image.root_disk], package="e2fsprogs")
    assert label == b"dom0root\n"
    run_tool(["e2fsck", "-fn", image.root_disk], package="e2fsprogs")


def test_the_initrds_have_their_modules_only(archive: FakeArchive, store: Store, recipes: Path) -> None:
    """They are read whole at every boot, so they are small."""
    image = build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    common = ["bin", "dev", "proc", "sys", "root", "modules", "dev/console", "bin/busybox"]
    assert in_initrd(image.dom0_initrd) == [*common, "modules/disk_driver.ko", "modules/order", "init"]
    assert in_initrd(image.guest_initrd) == [*common, "modules/xen_blkfront.ko", "modules/order", "init"]


def test_installed_packages_are_known_to_dpkg(
    archive: FakeArchive, store: Store, recipes: Path, tmp_path: Path
) -> None:
    """dpkg-query reads the database, and lists what is on the disk but not what was left out."""
    image = build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    database = tmp_path / "dpkg"
    (database / "info").mkdir(parents=True)
    (database / "status").write_text(on_disk(image, "cat /var/lib/dpkg/status"))
    name = "xen-hypervisor-4.20-amd64"
    (database / "info" / f"{name}.list").write_text(on_disk(image, f"cat /var/lib/dpkg/info/{name}.list"))
    query = ["dpkg-query", f"--admindir={database}"]
    assert run_tool([*query, "-W", "-f", "${Status} ${Version}", name]) == b"install ok installed 1.0"
    assert b"/boot/xen-4.20-amd64.gz" in run_tool([*query, "-L", name])
    assert run_tool([*query, "-W", "-f", "${db:Status-Status}", "unneeded"]) == b"not-installed"


def test_a_built_image_needs_neither_archive_nor_packages(archive: FakeArchive, store: Store, recipes: Path) -> None:
    """The warm way: found by what was chosen, in no time."""
    said: list[str] = []
    first = build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    shutil.rmtree(archive.root)
    shutil.rmtree(store.root / "debs")
    again = build_image(TRIXIE, Store(store.root), mirror=archive.mirror, recipes=recipes, report=said.append)
    assert (again.key, said) == (first.key, [])
    found = find_image(TRIXIE, Store(store.root), mirror=archive.mirror, recipes=recipes)
    assert found is not None
    assert found.key == first.key


def test_where_packages_came_from_is_kept_apart(
    archive: FakeArchive, store: Store, recipes: Path, tmp_path: Path
) -> None:
    """The archive's own hypervisor, copied into a directory: the same bytes, but nobody signed them there."""
    signed = build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    directory = tmp_path / "debs"
    directory.mkdir()
    for deb in (archive.root / "pool").glob("xen-hypervisor-*.deb"):
        shutil.copy(deb, directory)
    spec = parse_release(f"debs:{directory}", "amd64")
    unsigned = build_image(spec, store, mirror=archive.mirror, recipes=recipes)
    assert unsigned.key != signed.key
    assert unsigned.entry.manifest["release"] == f"debs:{directory}@trixie"
    origins = {package.name: package.origin for package in unsigned.packages}
    assert origins["xen-hypervisor-4.20-amd64"] == origins["xen-hypervisor-4.20-amd64-dbg"] == "directory"
    assert origins["busybox-static"] == "archive"
    assert unsigned.symbols is not None


def test_symbols_of_another_build_are_not_taken(
    archive: FakeArchive, store: Store, recipes: Path, tmp_path: Path
) -> None:
    """A developer's hypervisor without its symbols has none."""
    directory = tmp_path / "debs"
    directory.mkdir()
    shutil.copy(archive.root / "pool/xen-hypervisor-4.20-amd64_1.0_amd64.deb", directory)
    spec = parse_release(f"debs:{directory}", "amd64")
    assert build_image(spec, store, mirror=archive.mirror, recipes=recipes).symbols is None


def test_nothing_is_found_before_it_is_built(store: Store, recipes: Path) -> None:
    """And looking does not build."""
    assert find_image(TRIXIE, store, recipes=recipes) is None


def test_a_changed_file_of_the_recipe_makes_another_image(archive: FakeArchive, store: Store, recipes: Path) -> None:
    """From the same packages, without the archive."""
    first = build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    shutil.rmtree(archive.root)
    (recipes / "init.sh").write_text("#!/bin/sh\necho other\n")
    other = build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    assert other.key != first.key
    assert "echo other" in on_disk(other, "cat /usr/lib/xentests/init")


def test_a_damaged_image_is_made_anew_and_this_is_said(archive: FakeArchive, store: Store, recipes: Path) -> None:
    """A byte of the root disk changes behind our back."""
    said: list[str] = []
    image = build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    with image.root_disk.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    again = build_image(TRIXIE, Store(store.root, say=said.append), mirror=archive.mirror, recipes=recipes)
    assert again.key == image.key
    assert any("damaged" in line for line in said)
    run_tool(["e2fsck", "-fn", again.root_disk], package="e2fsprogs")


def test_a_package_with_another_kernel_module_missing(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """A module that the recipe names and the kernel lacks."""
    recipes = write_recipe(tmp_path / "images", RECIPE.replace('"bridge"', '"no-such-module"'))
    with pytest.raises(LabError, match="no module no_such_module: mend the image recipe"):
        build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    assert list((store.root / "image").iterdir()) == []


def test_a_disk_that_is_too_small_for_the_packages(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """The recipe's fault, and it says which line."""
    recipes = write_recipe(tmp_path / "images", RECIPE.replace("size_mib = 24", "size_mib = 4"))
    with pytest.raises(LabError, match="do not fit a root disk of 4 MiB: raise size_mib"):
        build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    assert list((store.root / "image").iterdir()) == []


def test_a_full_disk_while_a_tool_writes(
    archive: FakeArchive, store: Store, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tool says it."""

    def full(*args: object, **options: object) -> None:
        raise ToolFailed("depmod", output=b"depmod: modules.dep.bin: No space left on device\n", exit_code=1)

    monkeypatch.setattr(build_module, "prune", full)
    with pytest.raises(LabFull, match="make room"):
        build_image(TRIXIE, store, mirror=archive.mirror, recipes=recipes)
    assert list((store.root / "image").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root, to mount a small file system")
@pytest.mark.parametrize("size_kib", [300, 700])
def test_a_really_full_disk(archive: FakeArchive, recipes: Path, tmp_path: Path, size_kib: int) -> None:
    """A cache on a file system of a few kilobytes: full while fetching, or while building."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        with pytest.raises(LabFull, match=r"make room|Free some space"):
            build_image(TRIXIE, Store(small), mirror=archive.mirror, recipes=recipes)
        assert not list(small.glob("image/*"))
        assert not list(small.glob("debs/.tmp*"))
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_ordinary_users_disk_belongs_to_root(tmp_path: Path) -> None:
    """Made under fakeroot when this is not root; run as root, the test becomes nobody first."""
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/file").write_text("x")
    disk = tmp_path / "disk"
    if os.geteuid() == 0:
        for path in (tree, tree / "etc", tree / "etc/file", tmp_path):
            os.chown(path, 65534, 65534)
        for path in tmp_path.parents[:-2]:
            path.chmod(path.stat().st_mode | 0o111)
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            code = 1
            try:
                make_disk(tree, disk, size_mib=24)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    else:
        make_disk(tree, disk, size_mib=24)
    assert disk.stat().st_uid != 0 or os.geteuid() != 0
    for name in ("/", "/etc", "/etc/file"):
        said = run_tool(["debugfs", "-R", f"stat {name}", disk], package="e2fsprogs")
        assert b"User:     0   Group:     0" in said


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("suite", SUITES)
def test_the_real_recipe_reads_for_every_release(suite: str, arch: str) -> None:
    """All names filled in, all its files there, all of them scripts that say so or data."""
    loaded = load_recipe(parse_release(f"debian:{suite}", arch))
    assert f"xen-hypervisor-{SUITES[suite].xen}-{arch}" in loaded.packages
    assert not [name for name in loaded.packages if "{" in name]
    assert all(loaded.contents.values())
    assert {name for name, text in loaded.contents.items() if text.startswith(b"#!")} >= {"dom0/init", "guest/init"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("[packages]", "[packages"), "line 2"),
        (("size_mib = 24", 'size_mib = "big"'), "size_mib"),
        (("[disk]", '[disk]\ncolour = "red"'), "colour"),
        (('"init.sh" =', '"absent.sh" ='), "absent.sh"),
    ],
    ids=["syntax", "type", "unknown-field", "missing-file"],
)
def test_a_recipe_that_is_wrong_is_refused(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    """The file and the reason are named."""
    recipes = write_recipe(tmp_path / "images", RECIPE.replace(*change))
    with pytest.raises(LabError, match=f"dom0.toml: the image recipe does not read.*{complaint}"):
        load_recipe(TRIXIE, directory=recipes)
