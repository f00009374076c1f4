"""bootstrap.sh on made-up machines: a copy of it in a directory of its own, with a PATH that holds only stubs.

Stubs stand for everything that would install, download or change the system; they write what they were called with to
one log. sed, awk, flock and the like are the real ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from selftests.project import ROOT

REAL = (
    "awk basename bash cat chmod cmp cp dirname env flock grep ln mkdir paste printf readlink rm sed setsid touch tty"
)
PYTHON = """
case "$*" in
-) exit "${STUB_PYTHON_BAD:-0}" ;;
-m\\ venv*) log "python3 $*"; mkdir -p .venv/bin; cp "$STUBS/venv-python" .venv/bin/python ;;
esac"""
VENV_PYTHON = """
case "$*" in
*\\ pip\\ *) log "pip $*"; cp "$STUBS/tox" "$STUBS/npm" .venv/bin/; exit "${STUB_PIP_CODE:-0}" ;;
esac"""
TOX = """
log "tox $*"
case "$*" in
*--notest*) mkdir -p .tox/"$4"/bin; cp "$STUBS/venv-python" .tox/"$4"/bin/python; touch .tox/"$4"/.tox-info.json ;;
*) exit "${STUB_TOX_CODE:-0}" ;;
esac"""
NPM = """
log "npm $*"
mkdir -p node_modules
exit "${STUB_NPM_CODE:-0}" """
INSTALLED = "for package in $STUB_INSTALLED; do echo \"ii  $package\"; done; echo 'un  absent'"


class Checkout:
    """A checkout with bootstrap.sh and what it reads, beside a directory of stubs."""

    def __init__(self, directory: Path) -> None:
        self.path, self.stubs, self.log = directory / "checkout", directory / "stubs", directory / "log"
        self.path.mkdir()
        self.stubs.mkdir()
        for name in ("bootstrap.sh", "tox.ini", "system-packages.txt", "package-lock.json"):
            shutil.copy(ROOT / name, self.path)
        (self.path / "requirements.txt").touch()
        (self.path / "pyproject.toml").touch()
        for name in REAL.split():
            found = shutil.which(name)
            assert found, name
            (self.stubs / name).symlink_to(found)
        self.stub("id", "echo ${STUB_UID:-0}")
        self.stub("getent", 'exit "${STUB_GETENT_CODE:-0}"')
        self.stub("useradd", 'log "useradd $*"')
        self.stub("dpkg-query", INSTALLED)
        self.stub("apt-get", 'log "apt-get $*"; case "$*" in *install*) exit "${STUB_APT_CODE:-0}" ;; esac')
        for name, body in (("python3", PYTHON), ("venv-python", VENV_PYTHON), ("tox", TOX), ("npm", NPM)):
            self.stub(name, body)
        rows = [line.split()[0] for line in (ROOT / "system-packages.txt").read_text().splitlines() if line]
        self.environment = {
            "PATH": str(self.stubs),
            "STUBS": str(self.stubs),
            "LOG": str(self.log),
            "STUB_INSTALLED": " ".join(row for row in rows if row != "#"),
        }

    def stub(self, name: str, body: str) -> None:
        path = self.stubs / name
        path.write_text(f'#!{shutil.which("bash")}\nlog() {{ echo "$*" >>"$LOG"; }}\n{body}\n')
        path.chmod(0o755)

    def without(self, *packages: str) -> str:
        """A value of STUB_INSTALLED in which these are missing."""
        return " ".join(name for name in self.environment["STUB_INSTALLED"].split() if name not in packages)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.path / "bootstrap.sh"), *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """What it printed to stderr; it must end with ``code``."""
        process = self.start(*arguments, **environment)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == code, said
        return said

    def calls(self, name: str) -> list[str]:
        """How the stub was called, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_complete_machine_runs_tox_at_once(checkout: Checkout) -> None:
    """Nothing missing: no apt, no sudo; arguments after -- reach tox as they are."""
    checkout.run("livepatch", "--", "-k", "two words", "--xen-release", "debian:bookworm")
    assert checkout.calls("apt-get") == []
    assert checkout.calls("tox")[-1] == "run -e livepatch -- -k two words --xen-release debian:bookworm"


def test_second_run_makes_nothing(checkout: Checkout) -> None:
    """With everything there only tox is called, once."""
    checkout.run("livepatch")
    checkout.log.unlink()
    checkout.run("livepatch")
    assert checkout.log.read_text() == "tox run -e livepatch --\n"


def test_exit_code_is_that_of_tox(checkout: Checkout) -> None:
    """A failed test run fails bootstrap.sh."""
    checkout.run("smoke", code=7, STUB_TOX_CODE="7")


def test_missing_packages_are_installed_and_no_others(checkout: Checkout) -> None:
    """As root, exactly what is missing is installed, after an update, waiting for somebody else's lock."""
    said = checkout.run("livepatch", STUB_INSTALLED=checkout.without("mmdebstrap", "gcc", "chromium"))
    update, install = checkout.calls("apt-get")
    assert update.endswith(" update")
    assert install.endswith("install --no-install-recommends gcc mmdebstrap")
    assert "DPkg::Lock::Timeout" in install
    assert "missing system packages: gcc mmdebstrap" in said


def test_only_selftests_need_a_browser(checkout: Checkout) -> None:
    """A package is installed only for the environments of its scope."""
    checkout.run("selftests", STUB_INSTALLED=checkout.without("chromium"))
    assert checkout.calls("apt-get")[-1].endswith(" chromium")


def test_only_builds_need_build_tools(checkout: Checkout) -> None:
    """What builds hypervisors needs tools for that: an environment that does, and any with a release from source."""
    lacking = checkout.without("flex")
    checkout.run("smoke", STUB_INSTALLED=lacking)
    assert checkout.calls("apt-get") == []
    checkout.run("smoke", "--", "--xen-release", "source:debian:bookworm", STUB_INSTALLED=lacking)
    assert checkout.calls("apt-get")[-1].endswith(" flex")
    checkout.run("kconfig", STUB_INSTALLED=lacking)
    assert checkout.calls("apt-get")[-1].endswith(" flex")


def test_lint_needs_no_machine_and_no_report(checkout: Checkout) -> None:
    """Environments that start no machine need neither QEMU, nor libvirt's user, nor npm."""
    checkout.run("lint", STUB_INSTALLED=checkout.without("qemu-system-x86"), STUB_GETENT_CODE="2")
    assert checkout.calls("apt-get") + checkout.calls("npm") + checkout.calls("useradd") == []


def test_ordinary_user_installs_by_sudo(checkout: Checkout) -> None:
    """Not root, but sudo is there: apt-get runs through it, without asking when there is no terminal."""
    checkout.stub("sudo", 'log "sudo $*"; [ "$1" = -n ] && shift; exec "$@"')
    checkout.run("livepatch", STUB_UID="1000", STUB_INSTALLED=checkout.without("gcc"))
    assert all(call.startswith("-n env DEBIAN_FRONTEND=noninteractive ") for call in checkout.calls("sudo"))
    assert checkout.calls("apt-get")[-1].endswith("install --no-install-recommends gcc")


def test_ordinary_user_without_sudo_is_told_what_to_ask_for(checkout: Checkout) -> None:
    """Neither root nor sudo: the command for an administrator, and nothing was begun."""
    said = checkout.run("livepatch", code=1, STUB_UID="1000", STUB_INSTALLED=checkout.without("gcc", "zstd"))
    assert "apt-get install --no-install-recommends gcc zstd" in said
    assert not checkout.log.exists()


def test_ordinary_user_with_everything_needs_no_root(checkout: Checkout) -> None:
    """Root is for system packages only; the user that libvirt wants under root is not asked for."""
    checkout.run("livepatch", STUB_UID="1000", STUB_GETENT_CODE="2")
    assert checkout.calls("useradd") == []


def test_root_gets_the_user_that_libvirt_looks_up(checkout: Checkout) -> None:
    """As root, libvirt-qemu is added when it is missing."""
    checkout.run("livepatch", STUB_GETENT_CODE="2")
    assert [call.split()[-1] for call in checkout.calls("useradd")] == ["libvirt-qemu"]


def test_failed_installation_stops(checkout: Checkout) -> None:
    """When apt fails the message repeats the command, and no tests run."""
    said = checkout.run("livepatch", code=1, STUB_APT_CODE="100", STUB_INSTALLED=checkout.without("gcc"))
    assert "run this again: apt-get install --no-install-recommends gcc" in said
    assert checkout.calls("tox") == []


def test_not_debian_is_said_and_goes_on(checkout: Checkout) -> None:
    """Without dpkg the packages are the user's business."""
    (checkout.stubs / "dpkg-query").unlink()
    assert "not a Debian system" in checkout.run("livepatch")
    assert checkout.calls("tox")


def test_unfit_python_is_refused(checkout: Checkout) -> None:
    """A Python that is too old or cannot compile extensions is not used."""
    said = checkout.run("livepatch", code=1, STUB_PYTHON_BAD="1", XENTESTS_PYTHON="python3 no-such-python")
    assert "no Python 3.11 or newer" in said


def test_interrupted_installation_is_made_again(checkout: Checkout) -> None:
    """A .venv that was not finished is not believed."""
    checkout.run("livepatch", code=1, STUB_PIP_CODE="1")
    assert checkout.calls("tox") == []
    checkout.run("livepatch")
    assert len(checkout.calls("pip")) == 2
    assert checkout.calls("tox")


def test_failed_allure_installation_stops_and_says_how_to_go_on(checkout: Checkout) -> None:
    """npm failing is an error, with the way to run the tests without it; the next run tries again."""
    said = checkout.run("livepatch", code=1, STUB_NPM_CODE="1")
    assert ".venv/bin/tox -e livepatch" in said
    checkout.run("livepatch")
    assert len(checkout.calls("npm")) == 2


def test_changed_pins_make_the_environment_anew(checkout: Checkout) -> None:
    """A newer requirements.txt sends tox looking again, under the lock."""
    checkout.run("livepatch")
    later = time.time() + 10
    os.utime(checkout.path / "requirements.txt", (later, later))
    checkout.run("livepatch")
    assert [call for call in checkout.calls("tox") if "--notest" in call] == ["run -q -e livepatch --notest"] * 2


def test_two_at_once_prepare_once(checkout: Checkout) -> None:
    """The second waits for the first and finds everything made; both run their tests."""
    both = [checkout.start("livepatch"), checkout.start("livepatch")]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    assert len(checkout.calls("python3")) == 1
    assert checkout.calls("tox").count("run -e livepatch --") == 2


@pytest.mark.parametrize("arguments", [(), ("no-such",), ("live",), ("livepatch", "-k", "x")])
def test_bad_arguments_are_refused(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    """An unknown environment, or arguments without --, end with 2 and the list of environments."""
    assert (
        "ENV is one of: livepatch smoke lifecycle hotplug migration memory kconfig scheduler selftests"
        in checkout.run(*arguments, code=2)
    )
    assert not checkout.log.exists()
