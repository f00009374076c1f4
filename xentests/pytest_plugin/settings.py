"""The plugin's options: declared, read and checked once, into one frozen value. A wrong one is a ``pytest.UsageError``.

Without any of the options and without the ini key ``xen_artifacts`` the plugin does nothing at all, so that it can be
installed beside foreign tests.
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import pytest

from xentests.errors import UsageError
from xentests.release.arch import ARCHES, Arch
from xentests.release.spec import DEFAULT_RELEASE, SUITES, SYSTEM_QEMU, ReleaseSpec, parse_qemu, parse_release
from xentests.report.records import read_nodeids
from xentests.text import clean

DEFAULT_LAB = "qemu:///embed"
_INI = "xen_artifacts"
_MIRROR_SCHEMES = ("http", "https", "file")


@dataclass(frozen=True)
class Settings:
    """What the command line asked for.

    ``artifacts`` is where runs put their directories; ``done`` are node ids of tests that need not run again.
    """

    release: ReleaseSpec
    lab_uri: str
    qemu: str
    artifacts: Path
    mirror: str | None
    fresh_boot: bool
    keep: bool
    done: frozenset[str] = frozenset()

    @property
    def arch(self) -> Arch:
        """The architecture of the Xen under test."""
        return self.release.arch


def add_options(parser: pytest.Parser) -> None:
    """Declare the options, all ``--xen-*``, and the ini key. Defaults are None: whether one was given is asked."""
    group = parser.getgroup("xen", "integration tests of Xen releases")
    releases = ", ".join(f"debian:{name}" for name in SUITES)
    group.addoption(
        "--xen-release",
        metavar="RELEASE",
        help=f"the Xen to test: {releases}, or debs:DIR[@SUITE] for packages of your own (default: {DEFAULT_RELEASE})",
    )
    group.addoption("--xen-arch", metavar="ARCH", help=f"its architecture: {', '.join(ARCHES)} (default: amd64)")
    group.addoption("--xen-lab-uri", metavar="URI", help=f"the libvirt that runs the hosts (default: {DEFAULT_LAB})")
    group.addoption(
        "--xen-qemu",
        metavar="QEMU",
        help=f"the QEMU that hosts run under: {SYSTEM_QEMU}, or debian:trixie for that release's, which is fetched "
        f"(default: {SYSTEM_QEMU})",
    )
    group.addoption(
        "--xen-mirror", metavar="URL", help="where Debian packages are fetched from (default: what mmdebstrap uses)"
    )
    group.addoption(
        "--xen-artifacts", metavar="DIR", help=f"where runs put what they make (default: ini {_INI}, else artifacts)"
    )
    group.addoption(
        "--xen-fresh-boot",
        action="store_true",
        default=None,
        help="boot every host instead of cloning it from a frozen one",
    )
    group.addoption(
        "--xen-keep", action="store_true", default=None, help="leave failed hosts running and say how to enter them"
    )
    group.addoption("--xen-done", metavar="FILE", help="leave out the tests whose node ids are in FILE, one a line")
    parser.addini(_INI, "directory, from the root directory, for what runs make; switches the plugin on", default="")


def read_settings(config: pytest.Config) -> Settings | None:
    """The checked settings; None when the plugin has not been asked for anything. Raises pytest.UsageError."""
    option = config.option
    given = [
        option.xen_release,
        option.xen_arch,
        option.xen_lab_uri,
        option.xen_qemu,
        option.xen_mirror,
        option.xen_artifacts,
        option.xen_fresh_boot,
        option.xen_keep,
        option.xen_done,
    ]
    directory = config.getini(_INI)
    if all(value is None for value in given) and not directory:
        return None
    try:
        return Settings(
            release=_release(option.xen_release, option.xen_arch),
            lab_uri=_lab_uri(option.xen_lab_uri),
            qemu=_qemu(option.xen_qemu),
            artifacts=_artifacts(option.xen_artifacts, config.rootpath, directory),
            mirror=_mirror(option.xen_mirror),
            fresh_boot=bool(option.xen_fresh_boot),
            keep=bool(option.xen_keep),
            done=_done(option.xen_done),
        )
    except UsageError as error:
        raise pytest.UsageError(clean(str(error))) from error


def _release(release: str | None, arch: str | None) -> ReleaseSpec:
    if arch is not None and arch not in ARCHES:
        raise UsageError(f"--xen-arch {arch!r}: unknown architecture; choose one of {', '.join(ARCHES)}")
    try:
        return parse_release(DEFAULT_RELEASE if release is None else release, arch or "")
    except UsageError as error:
        raise UsageError(f"--xen-release: {error}") from error


def _lab_uri(uri: str | None) -> str:
    if uri is None:
        return DEFAULT_LAB
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme.partition("+")[0] != "qemu" or not parts.path.strip("/"):
        raise UsageError(
            f"--xen-lab-uri {uri!r}: not the URI of a libvirt QEMU driver; give qemu:///embed, qemu:///system or "
            "qemu+ssh://HOST/system"
        )
    return uri


def _qemu(name: str | None) -> str:
    try:
        return parse_qemu(SYSTEM_QEMU if name is None else name)
    except UsageError as error:
        raise UsageError(f"--xen-qemu: {error}") from error


def _mirror(mirror: str | None) -> str | None:
    if mirror is None:
        return None
    parts = urllib.parse.urlsplit(mirror)
    usable = parts.scheme in _MIRROR_SCHEMES and (parts.netloc or parts.path.strip("/"))
    if not usable or any(character.isspace() for character in mirror):
        raise UsageError(f"--xen-mirror {mirror!r}: give the URL of a Debian archive, {', '.join(_MIRROR_SCHEMES)}")
    return mirror


def _artifacts(given: str | None, root: Path, ini: str) -> Path:
    if given is not None and not given.strip():
        raise UsageError("--xen-artifacts '': give a directory")
    path = Path(given).expanduser().absolute() if given is not None else root / (ini or "artifacts")
    if path.exists() and not path.is_dir():
        raise UsageError(f"--xen-artifacts {path}: this is not a directory")
    return path


def _done(given: str | None) -> frozenset[str]:
    if given is None:
        return frozenset()
    try:
        return read_nodeids(Path(given))
    except (OSError, ValueError) as error:
        raise UsageError(f"--xen-done {given}: cannot be read: {error}") from error
