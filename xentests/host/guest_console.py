"""A dialogue with the shell on a guest's console, by pexpect: send a command, read its answer.

The bytes go through a virtio-serial port of the host, bridged in dom0 to Xen's console client: no network, and nothing
of dom0's own console. xenconsoled logs them as ever, so evidence does not depend on this. The only user of pexpect.
"""

from __future__ import annotations

import contextlib
import re
import socket
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import pexpect
from pexpect.socket_pexpect import SocketSpawn

from xentests.deadline import Deadline, until
from xentests.errors import DomainGone, HostHang, HypervisorCrash, LabError, LabFull, UsageError
from xentests.host.guest_log import GuestFailure
from xentests.text import clean, tail

if TYPE_CHECKING:
    from xentests.host.host import Host

PORTS = tuple(f"org.xentests.console.{number}" for number in range(4))
_SLICE_S = 0.25
_TICK = re.compile(r"^tick \d+ [\d.]+\n", re.MULTILINE)
# One descriptor for both directions: a virtio port opens once only. `--interactive` makes the client read its input
# although that is no terminal. An HVM guest has an emulated serial port besides its PV console.
_BRIDGE = 'exec 2> "/run/$1.err"; exec xenconsole --interactive --type pv --num 0 "$2" <>"/dev/virtio-ports/$1" >&0'
_numbers = count(1)


@dataclass(frozen=True)
class Answer:
    """What a command in the guest printed (lines of the guest's clock taken out), and its exit code."""

    command: str
    text: str
    exit_code: int


class GuestConsole:
    """One dialogue. Takes one of the host's console ports until it is closed."""

    def __init__(self, host: Host, name: str, domid: int) -> None:
        self._host = host
        self._name = name
        self._spawn: SocketSpawn[bytes] | None = None
        self._bridge: int | None = None  # its process id in dom0
        free = [port for port in PORTS if port not in host.console_ports]
        if not free:
            raise LabFull(f"{host.name}: all {len(PORTS)} console ports are in use: close a guest's console first")
        self._port = free[0]
        host.console_ports.add(self._port)
        try:
            self._open(domid)
        except BaseException:
            self.close()
            raise

    def _open(self, domid: int) -> None:
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(str(self._host.domain.port(self._port)))
        except OSError as error:
            channel.close()
            raise LabError(f"{self._host.name}: cannot reach its port {self._port}: {error.strerror}") from error
        # Bytes, since pexpect's socket class does not decode what it reads. searchwindowsize stays unset: every search
        # sees all that was not matched yet.
        self._spawn = SocketSpawn(channel)
        self._bridge = self._host.launch("sh", "-c", _BRIDGE, "bridge", self._port, domid)

    def send(self, text: str) -> None:
        """Type on the guest's console."""
        spawn = self._opened()
        try:
            spawn.send(text.encode())
        except OSError as error:
            raise self._failure(f"its console closed while {text!r} was typed: {error}") from error

    def expect(self, pattern: str, timeout_s: float = 20.0) -> str:
        """Wait for a regular expression in what the guest prints from now on; the text before it (``\\n`` ends).

        Raises GuestFailure with the pattern, the time and the last text; HypervisorCrash.
        """
        spawn = self._opened()
        deadline = Deadline(timeout_s)
        try:
            regex = re.compile(pattern.encode(), re.MULTILINE)
        except re.error as error:
            raise UsageError(f"expect({pattern!r}): not a regular expression: {error}") from error
        while True:
            self._host.console.check()
            try:
                spawn.expect(regex, timeout=min(_SLICE_S, deadline.left_s))
            except (pexpect.TIMEOUT, BlockingIOError) as error:
                # pexpect reads with what is left of its time, and 0.0 is a socket's word for not to block at all.
                if deadline.passed:
                    raise self._failure(f"{pattern!r} did not come on its console within {deadline}") from error
            except (pexpect.EOF, OSError) as error:
                raise self._failure(f"its console closed after {deadline} while {pattern!r} was waited for") from error
            else:
                return _text(spawn.before)

    def run(self, command: str, timeout_s: float = 20.0) -> Answer:
        """Run one line in the guest's shell and return what it printed. Raises GuestFailure; not for a non-zero end.

        The guest's kernel may print in between: ask for what can be told from that.
        """
        if "\n" in command:
            raise UsageError(f"run({command!r}): one line at a time")
        token = f"{next(_numbers):06d}"
        # Marks are put together by the guest's shell, so that the echo of this line does not hold them.
        self.send(f"echo xt-'begin'-{token}; {command}; echo xt-'end'-{token}:$?\r")
        self.expect(rf"xt-begin-{token}\r?\n", timeout_s)
        text = self.expect(rf"xt-end-{token}:(\d+)\r?\n", timeout_s)
        match = self._opened().match
        assert isinstance(match, re.Match)
        return Answer(command, clean(_TICK.sub("", text)), int(match.group(1)))

    def close(self) -> None:
        """End the dialogue and give the port back; the guest notices nothing."""
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            # A dead host has nothing left to end, and whoever asks it next is told.
            with contextlib.suppress(HypervisorCrash, HostHang, DomainGone):
                if self._host.ended(bridge) is None:
                    self._host.run("kill", "-KILL", bridge)
                    what = f"{self._host.name}: the end of the bridge to guest {self._name}"
                    until(lambda: self._host.ended(bridge), what=what, deadline=5.0, error=LabError)
        spawn, self._spawn = self._spawn, None
        if spawn is not None:
            with contextlib.suppress(OSError):  # QEMU was quicker
                spawn.close()
        self._host.console_ports.discard(self._port)

    def _opened(self) -> SocketSpawn[bytes]:
        if self._spawn is None:
            raise UsageError(f"the console of guest {self._name} is closed")
        return self._spawn

    def _failure(self, what: str) -> GuestFailure:
        pending = _text(self._spawn.before) if self._spawn is not None else ""
        bridge = self._host.ended(self._bridge) if self._bridge is not None else None
        if bridge is not None:
            self._bridge = None  # the agent tells of an end once
        ended = ""
        if bridge is not None:
            said = clean(self._host.run("tail", "-n", 3, f"/run/{self._port}.err").stdout).strip()
            ended = f"\nThe bridge in dom0 has ended ({bridge.ending}), saying {said!r}"
        return GuestFailure(
            f"guest {self._name} on {self._host.name}: {what}. Last text:\n{tail(pending) or '(nothing)'}{ended}\n"
            f"The whole console of the host: {self._host.console.log}"
        )


def _text(data: object) -> str:
    """What pexpect holds (bytes, or a class when nothing was matched), decoded."""
    return data.decode("utf-8", "replace").replace("\r", "") if isinstance(data, bytes) else ""
