"""A running nested Xen and its dom0, for whoever writes a test: verbs for commands and files, an attribute a topic.

Topics are ``console``, ``xl``, ``xenstore``, ``livepatch``, ``capabilities``, ``guests``, ``inspect`` and ``leaks``.
Knows the machine only through ``protocol.Domain``. Nothing is opened or asked before it is used.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

from xentests.deadline import Deadline, until
from xentests.errors import CommandFailed, CommandTimeout, HostHang, ProductFailure
from xentests.host import boot, wake
from xentests.host.agent import REQUEST, Agent
from xentests.host.capabilities import Capabilities
from xentests.host.command import Commands, Result, Word, require, shown
from xentests.host.console import Console
from xentests.host.facts import Facts
from xentests.host.files import Files
from xentests.host.guests import Guests
from xentests.host.inspect import TestinfraHost, inspector
from xentests.host.job import Job
from xentests.host.leaks import Leaks
from xentests.host.livepatch import Livepatch
from xentests.host.protocol import Domain, ImageLike
from xentests.host.xenstore import Xenstore
from xentests.host.xl import Xl

_SPOOL = "/run/xentests"


class Host:
    """One host. Not for several threads at once. ``close`` lets go of it; ending its machine is the lab's business."""

    def __init__(self, domain: Domain, image: ImageLike) -> None:
        self.domain = domain
        self.image = image
        self.console = Console(domain, start=domain.console_start, banners=0 if domain.console_start else 1)
        self._agent = Agent(domain, self.console)
        self._commands = Commands(self.name, self._agent, self.console)
        self.files = Files(self.name, self._agent, self._commands)
        self.xl = Xl(self)
        self.xenstore = Xenstore(self)
        self.livepatch = Livepatch(self)
        self.guests = Guests(self)
        self.leaks = Leaks(self)
        self.console_ports: set[str] = set()
        self.takes_commands = True
        """False once it is armed for a measurement, which a clone of it will make."""

    @property
    def name(self) -> str:
        """The name by which messages call it."""
        return self.domain.name

    @property
    def arch(self) -> str:
        """``amd64`` or ``arm64``."""
        return self.domain.machine.arch

    def __repr__(self) -> str:
        return f"<host {self.name}>"

    def run(self, *argv: Word, input_data: bytes = b"", timeout_s: float = 30.0) -> Result:
        """Run a program in dom0 to its end, whatever its exit code.

        Raises CommandTimeout, HostHang, HypervisorCrash, DomainGone.
        """
        if len(input_data) <= REQUEST:
            return self._commands.run(*argv, input_data=input_data, timeout_s=timeout_s)
        path = f"{_SPOOL}/input"
        self.files.write(path, input_data)
        words = tuple(str(word) for word in argv)
        result = self._commands.run("sh", "-c", 'exec "$@" <"$0"', path, *words, timeout_s=timeout_s)
        self._commands.run("rm", path)
        return dataclasses.replace(result, argv=words)

    def succeed(self, *argv: Word, input_data: bytes = b"", timeout_s: float = 30.0) -> Result:
        """Run a program that must end with exit code 0. Raises CommandFailed besides what ``run`` raises."""
        return require(self.run(*argv, input_data=input_data, timeout_s=timeout_s), ok=True)

    def fail(
        self, *argv: Word, exit_code: int | None = None, input_data: bytes = b"", timeout_s: float = 30.0
    ) -> Result:
        """Run a program that must not end with exit code 0 (or must end with ``exit_code``)."""
        return require(self.run(*argv, input_data=input_data, timeout_s=timeout_s), ok=False, exit_code=exit_code)

    def wait_until_succeeds(self, *argv: Word, timeout_s: float) -> Result:
        """Run a program again and again until it ends with exit code 0; the last answer is in the error."""
        last: Result | None = None
        deadline = Deadline(timeout_s)

        def attempt() -> bool:
            nonlocal last
            last = self.run(*argv, timeout_s=max(1.0, deadline.left_s))
            return last.exit_code == 0

        def late(_: str) -> CommandTimeout:
            words = shown(tuple(str(word) for word in argv))
            return CommandTimeout(f"{self.name}: `{words}` did not succeed within {deadline}. The last time:\n{last}")

        until(attempt, what="success", deadline=deadline, error=late)
        assert last is not None
        return last

    def start(self, *argv: Word) -> Job:
        """Start a program in dom0 and leave it running."""
        return Job(self.name, self._commands, self.files, self.console, argv)

    def launch(self, *argv: Word) -> int:
        """Start a program in dom0 and leave it to itself; its process id. Three programs quicker than ``start``."""
        words = tuple(str(word) for word in argv)
        pid = self._commands.spawn(words, capture=False)
        if isinstance(pid, Result):
            raise CommandFailed(str(pid))
        return pid

    def ended(self, pid: int) -> Result | None:
        """How a program that was launched has ended, once; None while it runs."""
        return self._commands.poll(pid, (f"process {pid}",), 0.0)

    def read_file(self, path: str) -> bytes:
        """A file of dom0. Raises CommandFailed."""
        return self.files.read(path)

    def write_file(self, path: str, data: bytes, mode: int | None = None) -> None:
        """Make or replace a file of dom0, and the directory it is in. ``mode`` as for chmod; None leaves it alone."""
        self.files.write(path, data)
        if mode is not None:
            self.succeed("chmod", f"{mode:o}", path)

    def push(self, local: Path, remote: str) -> None:
        """Copy a file of this machine into dom0."""
        self.files.push(local, remote)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file of dom0 to this machine."""
        self.files.pull(remote, local)

    @cached_property
    def capabilities(self) -> Capabilities:
        """What this release on this machine can do, by name."""
        return Capabilities(Facts(self))

    @cached_property
    def inspect(self) -> TestinfraHost:
        """testinfra's questions about dom0: ``inspect.process``, ``.file``, ``.mount_point``, ``.sysctl`` ..."""
        return inspector(self.name, self.run)

    def ping(self) -> None:
        """Ask the agent whether it is there. Raises HostHang."""
        self._agent.call("guest-ping")

    def wait_ready(self, timeout_s: float = boot.BOOT_S) -> None:
        """Wait through a boot: for power-on and after. Raises BootFailure, NoBanner, HypervisorCrash."""
        boot.await_boot(self, timeout_s)
        wake.install(self)

    def wake(self) -> None:
        """Call once after a clone has resumed: sets its clock and reseeds its randomness."""
        wake.wake(self)

    def before_freeze(self) -> None:
        """Call last before its machine is frozen into a template."""
        wake.before_freeze(self)

    def reboot(self, timeout_s: float = boot.BOOT_S) -> None:
        """Reboot Xen and dom0 in place and wait until they are back; exactly one banner of Xen must come.

        Guests, live patches and everything in /run are gone afterwards.
        """
        before = self.read_file("/proc/sys/kernel/random/boot_id")
        seen = self.console.banners_seen
        self.guests.close()
        self.console.read()
        self.console.expect_banner()
        self._commands.spawn(("sh", "-c", "sync; echo b >/proc/sysrq-trigger"), capture=False)
        boot.await_boot(self, timeout_s)
        wake.install(self)
        for name in ("capabilities", "inspect"):
            self.__dict__.pop(name, None)
        self.guests.made.clear()
        banners = self.console.banners_seen - seen
        if banners != 1 or self.read_file("/proc/sys/kernel/random/boot_id") == before:
            raise ProductFailure(
                f"{self.name}: after a reboot {banners} banners of Xen were seen, one is right, and dom0's boot id "
                f"{'is the old one' if banners == 1 else 'was not asked for'}. The whole console: {self.console.log}"
            )

    def close(self) -> None:
        """Let go of consoles, threads and files on this side."""
        for guest in self.guests.made.values():
            try:
                guest.close()
            except (ProductFailure, HostHang):  # a dead host has nothing left to close
                continue
        self._agent.close()
        self.console.close()
