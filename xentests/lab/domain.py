"""One running machine, from outside: its CPUs, monitor, sockets, serial log and guest-agent channel, and its end."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xentests.deadline import Deadline
from xentests.errors import DomainGone, LabError
from xentests.lab.domain_xml import DomainFiles
from xentests.lab.keeper import qemus
from xentests.lab.libvirt_driver import DomainHandle
from xentests.lab.machine import Machine
from xentests.lab.watchdog import Watchdog


class Domain:
    """A machine that runs (or is paused). Made by :class:`xentests.lab.lab.Lab`; closed once, by whoever asked for it.

    ``console_log`` is the whole serial output of Xen and dom0. For a clone it begins with the template's boot, and
    ``console_start`` is the byte at which the clone's own life begins; 0 after a cold boot.
    """

    def __init__(
        self,
        handle: DomainHandle,
        *,
        name: str,
        machine: Machine,
        files: DomainFiles,
        console_start: int,
        closed: Callable[[Domain], None],
    ) -> None:
        self._handle = handle
        self._closed = closed
        self._is_closed = False
        self.name = name
        self.libvirt_name = handle.name
        self.machine = machine
        self.files = files
        self.log_dir = files.console_log.parent
        self.console_log = files.console_log
        self.console_start = console_start
        self._watchdog: Watchdog | None = None

    def agent(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float) -> Any:
        """Run one guest-agent command; returns its ``return`` value (qemu-ga's schema, qapi/qga).

        Raises ``AgentUnresponsive`` (silence), ``AgentError`` (a refusal) or :class:`DomainGone`.
        """
        return self._handle.agent(command, arguments, timeout_s=timeout_s)

    def monitor(self, command: str, **arguments: object) -> Any:
        """Run one QMP command; an underscore in an argument's name stands for QMP's hyphen."""
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._handle.monitor(command, words or None)

    def console_write(self, data: bytes, *, timeout_s: float = 5.0) -> None:
        """Type ``data`` on the serial console, and return when the machine's UART has taken all of it.

        The connection is closed for writing and then read to its end: QEMU ends it when it has passed everything on.
        """
        deadline = Deadline(timeout_s)
        with self.connect("console") as channel:
            try:
                channel.settimeout(deadline.left_s)
                channel.sendall(data)
                channel.shutdown(socket.SHUT_WR)
                while channel.recv(65536):
                    channel.settimeout(max(0.01, deadline.left_s))
            except TimeoutError as error:
                raise LabError(f"{self.name}: its serial console did not take {data!r} within {deadline}") from error
            except ConnectionError as error:
                raise DomainGone(f"{self.name}: its serial console closed while {data!r} was typed") from error

    def connect(self, port: str) -> socket.socket:
        """A connection to one of its channels (``shell``, a virtio port's name, or ``console``)."""
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(str(self.port(port)))
        except OSError as error:
            channel.close()
            raise DomainGone(f"{self.name}: cannot reach its channel {port}: {error.strerror}") from error
        return channel

    def port(self, name: str) -> Path:
        """The unix socket of one of its channels."""
        return self.files.socket(name)

    def is_running(self) -> bool:
        """Whether its CPUs run."""
        return self.state() == "running"

    def state(self) -> str:
        """``running``, ``paused``, ``crashed`` or ``gone``."""
        return self._handle.state()

    def pause(self) -> None:
        """Stop its CPUs."""
        self._handle.pause()

    def resume(self) -> None:
        """Let its CPUs run."""
        self._handle.resume()

    def nmi(self) -> None:
        """Inject an NMI."""
        self._handle.nmi()

    def reset(self) -> None:
        """Press its reset button."""
        self._handle.reset()

    def xml(self) -> str:
        """Its domain XML as it runs."""
        return self._handle.xml()

    def adopt(self, name: str, log_dir: Path) -> None:
        """Give a machine that was started ahead its name and the directory of its logs."""
        log_dir.mkdir(parents=True, exist_ok=True)
        target = log_dir / "console.log"
        target.unlink(missing_ok=True)
        old = self.files.console_log
        try:
            old.rename(target)  # QEMU goes on writing to the file, whatever it is called
            old.parent.rmdir()
        except OSError:
            target.symlink_to(old)
        self.name = name
        self.log_dir = log_dir
        self.console_log = target
        self.files = dataclasses.replace(self.files, console_log=target)

    def watch(self) -> None:
        """Have it ended when it outgrows what was reserved for it. For a giant that was just started."""
        pid = self.pid()
        if pid is not None:
            self._watchdog = Watchdog(self.name, pid, budget_mib=self.machine.reserved_mib)

    @property
    def peak_mib(self) -> int:
        """The most memory that a watched machine has occupied so far, in MiB; 0 for others."""
        return self._watchdog.look() if self._watchdog else 0

    @property
    def ended_because(self) -> str:
        """Why the lab itself ended it before its time; empty if it has not."""
        return self._watchdog.verdict if self._watchdog else ""

    def pid(self) -> int | None:
        """Process id of its QEMU on this machine; None on a remote lab or when it is gone."""
        for pid, line in qemus(self.libvirt_name):
            if f"guest={self.libvirt_name},".encode() in line:
                return pid
        return None

    @property
    def closed(self) -> bool:
        """Whether it was closed on purpose; a machine that is gone and was not has died."""
        return self._is_closed

    def close(self) -> None:
        """End it; returns at once, what death costs is paid off the caller's path. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._closed(self)

    def reap(self) -> None:
        """Have its process noticed as soon as it ends, whoever ends it. For a machine that was just started."""
        pid = self.pid()
        if pid is not None:
            self._handle.reap(pid)

    def end(self) -> None:
        """End it and wait until its QEMU is gone."""
        if self._watchdog is not None:
            self._watchdog.stop()
        self._handle.destroy(self.pid())
