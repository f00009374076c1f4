"""Other QEMUs: which there are, that one is made of its packages alone, and what is said when it cannot be."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from selftests.fake_archive import make_deb
from xentests.errors import LabError, UsageError
from xentests.lab import emulator
from xentests.lab.emulator import find_emulator
from xentests.lab.machine import Machine
from xentests.lab.store import Store
from xentests.release.deb import Package, sha256_of
from xentests.release.fetch import Chosen, Fetched
from xentests.release.spec import ReleaseSpec, parse_qemu

LIBRARIES = "usr/lib/x86_64-linux-gnu"
MODULES = b"/usr/lib/x86_64-linux-gnu/qemu\0"
# Played by a shell: the loader runs what it is given, which says a version as QEMU does.
LOADER = b'#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift 2; done\nexec sh "$@"\n'
QEMU = b'echo "QEMU emulator version 10.0.13 (Debian)"\nexit\n'


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is fetched for any QEMU: one package, to be written by the test."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    deb = tmp_path / "qemu.deb"

    def fetch(spec: ReleaseSpec, wanted: object, store: Store, **_: object) -> Fetched:
        found = Package("qemu-system-x86", "10.0", "amd64", sha256_of(deb), "archive")

        def keep(directory: Path) -> dict[str, object]:
            (directory / f"{found.sha256}.deb").write_bytes(deb.read_bytes())
            return {}

        return Fetched(Chosen(spec, (found,)), store.get("debs", found.sha256, keep, what="packages"))

    monkeypatch.setattr(emulator, "fetch", fetch)
    return deb


def test_names() -> None:
    """The system's, or that of a Debian release that is still maintained."""
    assert parse_qemu("system") == "system"
    assert Machine("amd64", qemu="debian:trixie").qemu == "debian:trixie"
    for name in ("debian:bullseye", "debian:potato", "10.0", ""):
        with pytest.raises(UsageError, match="choose one of system, debian:trixie, debian:bookworm"):
            parse_qemu(name)
    with pytest.raises(UsageError, match="unknown QEMU"):
        Machine("amd64", qemu="newest")


def test_a_qemu_is_an_entry_of_the_store(store: Store, package: Path) -> None:
    """It says its version through its own loader, and looks for modules where it is alone."""
    make_deb(package, files={f"{LIBRARIES}/ld-linux-x86-64.so.2": LOADER, "usr/bin/qemu-system-x86_64": QEMU + MODULES})
    found = find_emulator("debian:trixie", "amd64", store)
    assert (found.name, found.version) == ("debian:trixie", "10.0.13")
    binary = found.path.parent / "usr/bin/qemu-system-x86_64"
    assert binary.read_bytes() == QEMU + b"/nowhere".ljust(len(MODULES), b"\0")
    assert find_emulator("debian:trixie", "amd64", store) == found


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(QEMU, "does not name /usr/lib/x86_64-linux-gnu/qemu"), (b"exit\n" + MODULES, "does not say its version")],
)
def test_what_is_no_qemu_is_refused(store: Store, package: Path, content: bytes, complaint: str) -> None:
    """With what is missing; nothing half-made stays."""
    make_deb(package, files={f"{LIBRARIES}/ld-linux-x86-64.so.2": LOADER, "usr/bin/qemu-system-x86_64": content})
    with pytest.raises(LabError, match=complaint):
        find_emulator("debian:trixie", "amd64", store)
    assert not [path for path in (store.root / "qemu").iterdir() if path.is_dir()]


def test_an_outer_machine_that_debian_has_no_qemu_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is fetched."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UsageError, match="there is none for a riscv64 machine; use system"):
        find_emulator("debian:trixie", "amd64", store)
