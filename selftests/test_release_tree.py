"""What ``make dist`` made as a release, with a tiny tree: looked over, laid over a Debian base, made an image of."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from selftests.fake_archive import FakeArchive
from selftests.tiny_release import served, write_recipe
from xentests.errors import UsageError
from xentests.image.build import build_image, find_image
from xentests.lab.store import Store
from xentests.release.spec import parse_release
from xentests.tools import run_tool

XL = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00"  # for x86-64


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """The top directory of a Xen after ``make dist``."""
    files = {
        "boot/xen-4.20.1.gz": gzip.compress(b"\x7fELF mine"),
        "boot/xen-4.20.1.config": b"CONFIG_MINE=y\n",
        "usr/lib/debug/xen-syms-4.20.1": b"\x7fELF my symbols",
        "usr/lib/debug/xen-syms-4.20.1.map": b"",
        "usr/local/sbin/xl": XL,
        "usr/local/lib/xen/bin/xenstored": XL,
        "etc/hostname": b"mine\n",
    }
    top = tmp_path / "xen"
    for name, content in files.items():
        path = top / "dist/install" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (top / "dist/install/boot/xen.gz").symlink_to("xen-4.20.1.gz")
    return top


def test_name_is_read_back(dist: Path) -> None:
    """The top directory and dist/install mean the same; the suite below is that with the same Xen."""
    spec = parse_release(f"tree:{dist}")
    assert (spec.base, spec.xen) == ("trixie", "4.20")
    assert spec.tree is not None
    assert (spec.tree.version, spec.tree.prefix) == ("4.20.1", "usr/local")
    assert parse_release(str(spec)) == spec
    inner = parse_release(f"tree:{dist}/dist/install,base=bookworm")
    assert (inner.base, inner.tree) == ("bookworm", spec.tree)


def test_another_content_is_another_release(dist: Path) -> None:
    """Whatever file changes."""
    before = parse_release(f"tree:{dist}")
    (dist / "dist/install/etc/hostname").write_text("other\n")
    assert parse_release(f"tree:{dist}") != before


@pytest.mark.parametrize(
    ("gone", "says"),
    [("boot/xen-4.20.1.gz", "wanted one hypervisor"), ("usr/local/sbin/xl", "makes the tools, too")],
)
def test_what_is_missing_is_named(dist: Path, gone: str, says: str) -> None:
    """With what to do."""
    (dist / "dist/install" / gone).unlink()
    with pytest.raises(UsageError, match=says):
        parse_release(f"tree:{dist}")


def test_tools_for_another_architecture_are_refused(dist: Path) -> None:
    """They would not run in dom0."""
    with pytest.raises(UsageError, match="not for arm64"):
        parse_release(f"tree:{dist}", "arm64")


def test_two_hypervisors_are_refused(dist: Path) -> None:
    """Left by an earlier build: which one is meant cannot be told."""
    shutil.copy(dist / "dist/install/boot/xen-4.20.1.gz", dist / "dist/install/boot/xen-4.19.0.gz")
    with pytest.raises(UsageError, match=r"found xen-4\.19\.0\.gz, xen-4\.20\.1\.gz"):
        parse_release(f"tree:{dist}")


def test_files_replace_files_and_stay_inside(dist: Path, tmp_path: Path) -> None:
    """A link of the base is replaced, not followed; directories are merged; boot stays out."""
    base = tmp_path / "base"
    (base / "etc").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_text("mine alone")
    (base / "etc/hostname").symlink_to(outside)
    (base / "etc/other").write_text("stays")
    spec = parse_release(f"tree:{dist}")
    assert spec.tree is not None
    spec.tree.lay_over(base)
    assert (base / "etc/hostname").read_text() == "mine\n"
    assert outside.read_text() == "mine alone"
    assert sorted(path.name for path in (base / "etc").iterdir()) == ["hostname", "other"]
    assert not (base / "boot").exists()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[FakeArchive]:
    """With the packages of the tiny release."""
    yield from served(tmp_path)


@pytest.mark.skipif(not shutil.which("gpg"), reason="needs gpg, to sign an archive of its own")
def test_image_has_the_tree_s_files(dist: Path, archive: FakeArchive, tmp_path: Path) -> None:
    """Hypervisor, symbols and configuration are the tree's, its tools are on the disk and found first."""
    store, recipes = Store(tmp_path / "cache"), write_recipe(tmp_path / "images")
    spec = parse_release(f"tree:{dist}")
    image = build_image(spec, store, mirror=archive.mirror, recipes=recipes)
    assert image.hypervisor.read_bytes() == b"\x7fELF mine"
    assert image.symbols is not None
    assert image.symbols.read_bytes() == b"\x7fELF my symbols"
    assert image.xen_config is not None
    assert image.xen_config.read_bytes() == b"CONFIG_MINE=y\n"
    assert image.xen_package_version == "4.20.1"

    def disk(request: str) -> str:
        return run_tool(["debugfs", "-R", request, image.root_disk], package="e2fsprogs").decode()

    assert disk("cat /etc/hostname") == "dom0\n"  # the recipe's own files come last
    assert "/usr/local/lib/xen" in disk("stat /usr/lib/xentests/xen")
    assert disk("cat /usr/lib/xentests/environment") == "export LD_LIBRARY_PATH=/usr/local/lib\n"
    assert find_image(spec, store, mirror=archive.mirror, recipes=recipes) is not None
    (dist / "dist/install/usr/local/sbin/xl").write_bytes(XL + b"changed")
    assert find_image(parse_release(f"tree:{dist}"), store, mirror=archive.mirror, recipes=recipes) is None
