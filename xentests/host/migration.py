"""Guests that move between the hosts of a pair: ``xl migrate`` here, ``xl migrate-receive`` there, and who has what.

The stream goes over the pair's own cable by TCP, without ssh, which costs emulated CPUs more than the migration itself:
the receiver's standard streams are the connection, the sender has two `cat` between. A tool's last words can mislead,
so that whatever is said of a migration says what became of the guest on both hosts. Sources: docs/man/xl.1, "migrate";
docs/specs/libxc-migration-stream.pandoc.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xentests.deadline import until
from xentests.errors import ProductFailure, UsageError
from xentests.host.command import Result
from xentests.host.guest_log import GuestLog
from xentests.host.guests import Guest
from xentests.host.job import Job
from xentests.host.pair import Identity, Pair
from xentests.host.xl import DomainInfo
from xentests.text import clean, tail

if TYPE_CHECKING:
    from xentests.host.host import Host

RECIPE = 5
"""Raise it when ``prepare`` does something else."""
MIGRATE_S = 120.0
_RECEIVER_S = 10.0

_FOLDER = "/run/xentests/migration"
_SEND = f"{_FOLDER}/send"
_RECEIVE = f"{_FOLDER}/receive"
PORT = 8002
# $1: address, $2: port. A listener may come a moment late. $3...: what the stream is passed through.
_SENDER = b"""#!/bin/bash
address=$1 port=$2
shift 2
for try in {1..100}; do
    { exec 3<>"/dev/tcp/$address/$port"; } 2> /dev/null && break
    sleep 0.1
done
exec 4<&0
cat <&3 &
"${@:-cat}" <&4 >&3 &
# Whichever side has closed its end, whatever became of the guest: the other is told by the end of the connection.
wait -n
kill $(jobs -p) 2> /dev/null
"""
# $1: where to say what; $2: options.
_RECEIVER = b"#!/bin/sh\nexec xl migrate-receive $2 2>> $1\n"
_STOPPED = "read -r up idle < /proc/uptime; echo $up $(grep -m 1 '^now at' /proc/timer_list)"


class MigrationFailure(ProductFailure):
    """A guest did not arrive, or is where it must not be. The text has what both tools said, and both hosts' states."""


@dataclass(frozen=True, repr=False)
class Attempt:
    """One ``xl migrate``: how it ended, what the receiver said, and what each host has of the guest afterwards."""

    sent: Result
    received: str
    source: DomainInfo | None
    destination: DomainInfo | None

    @property
    def succeeded(self) -> bool:
        """Whether xl says so."""
        return self.sent.exit_code == 0

    @property
    def said(self) -> str:
        """What both tools said."""
        return clean(self.sent.stderr) + self.received

    def __repr__(self) -> str:
        return (
            f"{self.sent}\nthe receiver said:\n{tail(self.received.encode()) or '(nothing)'}\n"
            f"afterwards the sender has {_shown(self.source)}, the receiver has {_shown(self.destination)}"
        )


@dataclass(frozen=True)
class Moved:
    """A guest that has arrived: as the other host has it, and how long that took.

    ``duration_s`` is that of ``xl migrate``. ``downtime_s`` is how long the guest stood still, by the wall clocks of
    both hosts, which were set to some 50 ms: what its boot-time clock went forward by while its monotonic one stood.
    """

    guest: Guest
    duration_s: float
    downtime_s: float


class Underway:
    """A migration that has begun. ``job`` is the sending xl."""

    def __init__(self, guest: Guest, destination: Host, job: Job, *, listener: int, port: int, received: str) -> None:
        self.guest = guest
        self.destination = destination
        self.job = job
        self._listener = listener
        self._port = port
        self._received = received

    def wait_streaming(self, timeout_s: float = 60.0) -> None:
        """Wait until the receiver has some of the guest's memory: the stream is in its middle."""
        what = f"{self.destination.name} to receive memory of guest {self.guest.name}"

        def look() -> bool:
            if self.job.poll() is not None:
                raise MigrationFailure(f"{what}: xl has ended before that: {self.job.wait(1.0)}\n{self.received}")
            found = self.destination.xl.find(f"{self.guest.name}--incoming")
            return found is not None and found.memory_mib >= self.guest.spec.memory_mib // 4

        until(look, what=what, deadline=timeout_s, error=MigrationFailure)

    def hang_up(self) -> None:
        """Have the receiver's kernel close the connection, as that of a peer that has gone."""
        self.destination.succeed("ss", "-K", "sport", "=", f":{self._port}")

    @property
    def received(self) -> str:
        """What the receiver has said."""
        return clean(self.destination.run("cat", self._received).stdout)

    def finish(self, timeout_s: float = MIGRATE_S) -> Attempt:
        """Wait for the sender's end and the receiver's, and see who has what.

        Raises MigrationFailure when a receiver that has begun does not end once its sender has.
        """
        source, destination, name = self.guest.host, self.destination, self.guest.name
        sent = self.job.wait(timeout_s)
        if not self.received:
            destination.run("kill", self._listener)  # nobody has called
        until(
            lambda: destination.ended(self._listener) is not None,
            what=f"the end of the receiver on {destination.name}",
            deadline=_RECEIVER_S,
            error=lambda message: MigrationFailure(f"{message}\n{sent}\nthe receiver has said:\n{self.received}"),
        )
        return Attempt(sent, self.received, source.xl.find(name), destination.xl.find(name))


def prepare(host: Host) -> None:
    """Ready a host to send and to receive; once, before it is frozen."""
    # A peer that is gone is given up after seconds, as ssh's keep-alive would do, and not after a quarter of an hour.
    host.succeed("sh", "-c", "modprobe virtio_net && sysctl -q -w net.ipv4.tcp_retries2=5")
    host.write_file(_SEND, _SENDER, mode=0o755)
    host.write_file(_RECEIVE, _RECEIVER, mode=0o755)


class Migration:
    """``xl migrate`` between two hosts that were both prepared. A guest is named by the host that has it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def other(self, host: Host) -> Host:
        """The other host of the pair."""
        if host not in (self.pair.a, self.pair.b):
            raise UsageError(f"{host.name} is not one of this pair")
        return self.pair.b if host is self.pair.a else self.pair.a

    def attempt(self, guest: Guest, *, through: str = "", timeout_s: float = MIGRATE_S) -> Attempt:
        """Try to migrate a guest to the other host; whatever becomes of it. Its console's dialogue ends.

        ``through`` is a command of the sender's dom0 that the stream is passed through.
        """
        return self.begin(guest, through=through).finish(timeout_s)

    def begin(
        self,
        guest: Guest,
        *options: str,
        command: str = "migrate",
        through: str = "",
        receive: str = "",
        port: int = PORT,
    ) -> Underway:
        """Begin to migrate a guest to the other host, and leave that to itself; as ``attempt``, several at once.

        ``command`` ``remus`` replicates it there, until it ends here; ``receive``: an option for the receiving xl.
        """
        source, destination = guest.host, self.other(guest.host)
        guest.close()
        received = f"{_FOLDER}/{port}"
        destination.write_file(received, b"")
        listener = destination.launch("busybox", "nc", "-l", "-p", port, "-e", _RECEIVE, received, receive)
        way = f"{_SEND} {self.address_of(destination)} {port} {through}".rstrip()
        job = source.start("xl", command, "-s", "", *options, guest.name, way)
        return Underway(guest, destination, job, listener=listener, port=port, received=received)

    def migrate(self, guest: Guest, timeout_s: float = MIGRATE_S) -> Moved:
        """Migrate a guest to the other host, where it must be afterwards, and nowhere else. Raises MigrationFailure."""
        before = _stopped_s(guest)
        log = self.log_there(guest)
        attempt = self.attempt(guest, timeout_s=timeout_s)
        arrived = attempt.destination
        if not attempt.succeeded or attempt.source is not None or arrived is None or arrived.crashed:
            raise self.failure(guest, attempt)
        here = self.adopt(guest, log, arrived.domid)
        return Moved(here, attempt.sent.duration_s, _stopped_s(here) - before)

    def log_there(self, guest: Guest) -> GuestLog:
        """What the other host will log of a guest; made before it is sent. It arrives under another name."""
        other = self.other(guest.host)
        return GuestLog(f"{guest.name}--incoming", other.files, other.console)

    def carry(self, source: Host, path: str, timeout_s: float = MIGRATE_S) -> None:
        """Copy a file of a host to the same place on the other."""
        other = self.other(source)
        job = other.start("busybox", "nc", "-l", "-p", PORT, "-e", "sh", "-c", 'exec cat > "$0"', path)
        source.succeed(_SEND, self.address_of(other), PORT, "cat", path, timeout_s=timeout_s)
        job.wait(timeout_s)

    def adopt(self, guest: Guest, log: GuestLog, domid: int) -> Guest:
        """The guest as the other host has it, which has it as ``domid`` and logs its console to ``log``."""
        destination = self.other(guest.host)
        here = Guest(destination, guest.spec, log, boots=0)
        here.domid = domid
        guest.host.guests.made.pop(guest.name, None)
        destination.guests.made[guest.name] = here
        return here

    def failure(self, guest: Guest, attempt: Attempt) -> MigrationFailure:
        """An error that says what became of a guest that was to be migrated."""
        return MigrationFailure(
            f"guest {guest.name}, {guest.host.name} to {self.other(guest.host).name}: {attempt}\n"
            f"The guest's last words at the sender:\n{tail(guest.log.raw()) or '(none)'}\n"
            f"The whole consoles: {self.pair.a.console.log}, {self.pair.b.console.log}"
        )

    def address_of(self, host: Host) -> str:
        """The address by which the other host reaches it."""
        return Identity(1 if host is self.pair.a else 2).address


def _shown(info: DomainInfo | None) -> str:
    return "no such guest" if info is None else f"domain {info.domid} in state {info.state}"


def _stopped_s(guest: Guest) -> float:
    """How long the guest has stood still in its life, in seconds: its boot-time clock (clock_gettime(2)) goes on."""
    text = guest.succeed(_STOPPED)
    match = re.fullmatch(r"([\d.]+) now at (\d+) nsecs", text.strip())
    if match is None:
        raise guest.log.failure(f"its clocks are not to be read: {text!r}")
    return float(match[1]) - int(match[2]) / 1e9
