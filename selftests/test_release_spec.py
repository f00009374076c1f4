"""Names of releases, and directories of a developer's packages: what is taken and what is refused, with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from selftests.fake_archive import make_deb
from xentests.errors import UsageError
from xentests.release.deb import Package, sha256_of, stanzas
from xentests.release.spec import DEFAULT_RELEASE, SUITES, parse_release


def deb(directory: Path, name: str, *, arch: str = "amd64", version: str = "1", file: str = "") -> Path:
    """A package without files."""
    fields = {"Package": name, "Architecture": arch, "Version": version}
    return make_deb(directory / (file or f"{name}_{version}_{arch}.deb"), fields=fields)


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize("suite", SUITES)
def test_debian_releases(suite: str, arch: str) -> None:
    """Each suite and architecture; its text names it again."""
    spec = parse_release(f"debian:{suite}", arch)
    assert (spec.kind, spec.name, spec.base, spec.arch, spec.xen) == ("debian", suite, suite, arch, SUITES[suite].xen)
    assert parse_release(str(spec), arch) == spec


def test_the_default_is_one_of_them() -> None:
    """And the newest."""
    assert f"debian:{next(iter(SUITES))}" == DEFAULT_RELEASE


@pytest.mark.parametrize("text", ["", "debian", "debian:", "debian:sid", "trixie", "debian:trixie:x", "debs"])
def test_an_unknown_release_lists_what_there_is(text: str) -> None:
    """Whatever is not one of the names."""
    with pytest.raises(UsageError, match=r"unknown release .*debian:trixie, debian:bookworm, debian:bullseye; debs:"):
        parse_release(text, "amd64")


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "AMD64", "riscv64"])
def test_an_unknown_architecture_lists_what_there_is(arch: str) -> None:
    """Debian's names only."""
    with pytest.raises(UsageError, match="choose one of amd64, arm64"):
        parse_release("debian:trixie", arch)


@pytest.mark.parametrize(
    ("xen", "base"),
    [("4.20", "trixie"), ("4.17", "bookworm"), ("4.14", "bullseye"), ("4.19", "trixie"), ("4.22", "trixie")],
)
def test_the_base_fits_the_hypervisor(tmp_path: Path, xen: str, base: str) -> None:
    """The suite of the same Xen, else the next newer one, else the newest."""
    deb(tmp_path, f"xen-hypervisor-{xen}-amd64")
    spec = parse_release(f"debs:{tmp_path}", "amd64")
    assert (spec.kind, spec.base, spec.xen) == ("debs", base, xen)
    assert parse_release(str(spec), "amd64") == spec


def test_the_base_can_be_chosen(tmp_path: Path) -> None:
    """By @SUITE, also when the directory has an @ in its name."""
    directory = tmp_path / "builds@home"
    directory.mkdir()
    deb(directory, "xen-hypervisor-4.20-amd64")
    assert parse_release(f"debs:{directory}@bookworm", "amd64").base == "bookworm"
    with pytest.raises(UsageError, match="unknown Debian suite 'sid'"):
        parse_release(f"debs:{directory}@sid", "amd64")


def test_packages_of_the_other_architecture_stay_out(tmp_path: Path) -> None:
    """A directory may have both; each run takes its own and what fits all."""
    mine = deb(tmp_path, "xen-hypervisor-4.20-amd64", arch="amd64")
    deb(tmp_path, "xen-hypervisor-4.20-arm64", arch="arm64")
    deb(tmp_path, "xen-doc", arch="all")
    spec = parse_release(f"debs:{tmp_path}", "amd64")
    assert spec.overlay is not None
    assert [package.name for package in spec.overlay.packages] == ["xen-doc", "xen-hypervisor-4.20-amd64"]
    assert spec.overlay.packages[1] == Package("xen-hypervisor-4.20-amd64", "1", "amd64", sha256_of(mine), "directory")


def test_a_directory_that_is_not_there() -> None:
    """Nor an empty name."""
    for text in ("debs:/no/such/directory", "debs:"):
        with pytest.raises(UsageError, match="no such directory"):
            parse_release(text, "amd64")


def test_a_directory_without_packages(tmp_path: Path) -> None:
    """Other files do not count."""
    (tmp_path / "README").touch()
    with pytest.raises(UsageError, match=r"there is no \.deb file in it"):
        parse_release(f"debs:{tmp_path}", "amd64")


@pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"not a package at all"], ids=["empty", "header-only", "text"])
def test_a_file_that_is_no_package(tmp_path: Path, content: bytes) -> None:
    """It is named, and what to do."""
    deb(tmp_path, "xen-hypervisor-4.20-amd64")
    (tmp_path / "broken.deb").write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.deb: not a whole Debian package; build it again"):
        parse_release(f"debs:{tmp_path}", "amd64")


def test_a_package_cut_short(tmp_path: Path) -> None:
    """As a copy that was interrupted leaves it."""
    file = deb(tmp_path, "xen-hypervisor-4.20-amd64")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UsageError, match="not a whole Debian package"):
        parse_release(f"debs:{tmp_path}", "amd64")


def test_packages_for_another_architecture(tmp_path: Path) -> None:
    """All of them: then there is nothing to test."""
    deb(tmp_path, "xen-hypervisor-4.20-arm64", arch="arm64")
    with pytest.raises(UsageError, match="its packages are for arm64, not for amd64"):
        parse_release(f"debs:{tmp_path}", "amd64")


def test_no_hypervisor_inside(tmp_path: Path) -> None:
    """Tools alone are not a release; what there is, is listed."""
    deb(tmp_path, "xen-utils-4.20")
    with pytest.raises(UsageError, match=r"xen-hypervisor-VERSION-amd64 .*found none; there are: xen-utils-4\.20"):
        parse_release(f"debs:{tmp_path}", "amd64")


def test_two_hypervisors_inside(tmp_path: Path) -> None:
    """Nobody can tell which is meant."""
    deb(tmp_path, "xen-hypervisor-4.17-amd64")
    deb(tmp_path, "xen-hypervisor-4.20-amd64")
    with pytest.raises(UsageError, match=r"found those of Xen 4\.17 and 4\.20"):
        parse_release(f"debs:{tmp_path}", "amd64")


def test_two_versions_of_one_package(tmp_path: Path) -> None:
    """Yesterday's build lies beside today's."""
    deb(tmp_path, "xen-hypervisor-4.20-amd64", version="1")
    deb(tmp_path, "xen-hypervisor-4.20-amd64", version="2")
    with pytest.raises(UsageError, match=r"more than one version of xen-hypervisor-4\.20-amd64"):
        parse_release(f"debs:{tmp_path}", "amd64")


def test_paragraphs_of_a_control_file() -> None:
    """Continuation lines, comments, empty lines at either end."""
    text = "\nPackage: a\n# said aside\nDescription: one\n two\n .\n three\n\n\nPackage: b\nVersion: 1:2-3\n"
    assert list(stanzas(text)) == [
        {"Package": "a", "Description": "one\n two\n .\n three"},
        {"Package": "b", "Version": "1:2-3"},
    ]
