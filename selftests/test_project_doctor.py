"""The doctor on made-up machines: each missing thing is seen and gets the command that mends it."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from xentests import doctor
from xentests.doctor import Check
from xentests.tools import find_tool

QEMUS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-arm"}
PACKAGES = {**{tool: package for tool, (package, _) in doctor.TOOLS.items()}, **QEMUS}


class Machine:
    """A machine whose PATH holds only stubs and whose system files are below a directory."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.root = directory / "root"
        self.bin.mkdir()
        for name in PACKAGES:
            self.stub(name, "echo 'QEMU emulator version 7.2.22 (Debian)'")
        self.stub("chromium", "")
        self.file(doctor.KEYRING)
        self.file("usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so")

    def stub(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def file(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def check(self, name: str) -> Check:
        return next(check for check in doctor.examine(root=self.root) if check.name == name)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr("xentests.tools.tool_path", lambda: str(made.bin))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XENTESTS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 << 30, total=16 << 30))
    return made


def libvirt_of(version: int) -> Any:
    """A stand-in for the loaded libvirt.so.0 that reports ``version``."""

    def get(pointer: Any, *rest: object) -> int:
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_ulong)).contents.value = version
        return 0

    return lambda name: SimpleNamespace(virGetVersion=get)


def test_complete_machine_is_healthy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything there nothing is required and nothing has to be mended but what is optional."""
    monkeypatch.setattr(ctypes, "CDLL", libvirt_of(9_000_000))
    checks = doctor.examine(root=machine.root)
    assert [check for check in checks if check.required and check.state != "ok"] == []
    assert doctor.healthy(checks)


@pytest.mark.parametrize("tool", PACKAGES)
def test_missing_tool_is_named_with_its_package(machine: Machine, tool: str) -> None:
    """A tool that is not there makes the machine unfit, and the fix installs its package."""
    (machine.bin / tool).unlink()
    checks = doctor.examine(root=machine.root)
    missing = [check for check in checks if check.state == "missing" and check.package == PACKAGES[tool]]
    assert [check.required for check in missing] == [True]
    assert missing[0].fix == f"sudo apt-get install --no-install-recommends {PACKAGES[tool]}"
    assert not doctor.healthy(checks)


@pytest.mark.parametrize("answer", ["echo 'QEMU emulator version 6.2.0'", "echo nonsense", "exit 3"])
def test_unusable_qemu_is_missing(machine: Machine, answer: str) -> None:
    """A QEMU that is too old, says no version or does not run counts as missing."""
    machine.stub("qemu-system-aarch64", answer)
    assert machine.check("QEMU for arm64").state == "missing"
    assert machine.check("QEMU for amd64").state == "ok"


def test_old_libvirt_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt before 9.0 is refused with both versions."""
    monkeypatch.setattr(ctypes, "CDLL", libvirt_of(8_010_002))
    check = machine.check("libvirt")
    assert (check.state, check.found) == ("missing", "8.10.2, older than 9.0")


def test_absent_libvirt_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No libvirt library at all is not a crash of the doctor."""

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert machine.check("libvirt").state == "missing"


def test_missing_driver_and_keys(machine: Machine) -> None:
    """libvirt without its QEMU driver, and Debian's keys, are looked for as files."""
    shutil.rmtree(machine.root)
    assert machine.check("libvirt's QEMU driver").package == "libvirt-daemon-driver-qemu"
    assert machine.check("Debian's archive keys").package == "debian-archive-keyring"


def test_little_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less memory than one host needs is said with both figures."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30, total=2 << 30))
    check = machine.check("memory")
    assert (check.state, check.found) == ("missing", "1024 MiB available of 2048 MiB")


def test_full_disk(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without room is mended by collecting it or moving it."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 20))
    check = machine.check("cache")
    assert check.state == "missing"
    assert "xentests gc" in check.fix
    assert "XENTESTS_CACHE" in check.fix


def test_kvm_is_only_a_note(machine: Machine) -> None:
    """/dev/kvm, there or not, decides nothing."""
    assert machine.check("/dev/kvm").state == "note"
    machine.file("dev/kvm")
    assert "may lie" in machine.check("/dev/kvm").found


def test_packages_are_installed_by_one_command(machine: Machine) -> None:
    """All missing packages stand in one command."""
    for tool in ("mmdebstrap", "zstd", "mke2fs"):
        (machine.bin / tool).unlink()
    first = doctor.fixes(doctor.examine(root=machine.root))[0]
    assert first == "sudo apt-get install --no-install-recommends e2fsprogs mmdebstrap zstd"


def test_json_and_table_say_the_same(machine: Machine) -> None:
    """A machine's reader and a person get the same findings, and hostile text stays text."""
    (machine.bin / "zstd").unlink()
    checks = [*doctor.examine(root=machine.root), Check("[red]odd[/]", "", "ok", "[bold]")]
    content = json.loads(doctor.as_json(checks))
    screen = io.StringIO()
    doctor.render(checks, Console(file=screen, width=200))
    assert content["healthy"] is False
    assert [check["name"] for check in content["checks"]] == [check.name for check in checks]
    for text in (*content["fixes"], "[red]odd[/]", "Something required is missing"):
        assert text in screen.getvalue()


def test_administrators_tools_are_found_by_an_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """mke2fs lives in /usr/sbin, which is not on the PATH of Debian's ordinary users."""
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    found = find_tool("mke2fs")
    assert found is not None
    assert found.parent.name == "sbin"
