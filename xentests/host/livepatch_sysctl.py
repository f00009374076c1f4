"""XEN_SYSCTL_livepatch_op sent from dom0 as it is, without the checks, pauses and retries of ``xen-livepatch``.

For tests of the hypercall interface (docs/misc/livepatch.pandoc, "Hypercalls"), for many actions in a short time, and
wherever an action must happen exactly once: xen-livepatch's limit of 30 ms is short for emulated CPUs, and an action
that is tried again runs its hooks again. What is sent is made by ``xentests.payload.sysctl``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xentests.errors import ProductFailure
from xentests.host import hypercalls
from xentests.payload.runner import Reply, Script
from xentests.payload.sysctl import (
    LISTED,
    PATIENT_NS,
    Action,
    Listing,
    LivepatchScript,
    Status,
    error_of,
    left,
    listing_of,
    probe_versions,
    rc_at,
    status_of,
)

if TYPE_CHECKING:
    from xentests.host.host import Host

_VERSIONS = range(0x10, 0x30)
"""XEN_SYSCTL_INTERFACE_VERSION is 0x13 in 4.14, 0x15 in 4.17 to 4.20; the right one is that which Xen takes."""


class PayloadLike(Protocol):
    """A name and an ELF file (``xentests.payload`` makes these)."""

    @property
    def name(self) -> str:
        """The name under which Xen shall know it."""

    @property
    def content(self) -> bytes:
        """The ELF file."""


@dataclass(frozen=True)
class Uploaded:
    """Answer to an upload: ``error`` of the call, and how many payloads there are afterwards."""

    error: str
    payloads: int


@dataclass(frozen=True)
class Outcome:
    """An action and what became of it: ``error`` of the hypercall, then the payload's status when Xen was done."""

    error: str
    status: Status

    @property
    def failure(self) -> str:
        """The errno's name, whether the call was refused or the action failed; empty when all went well."""
        return self.error or self.status.error or self.status.rc

    @property
    def state(self) -> str:
        """The state of the payload afterwards."""
        return self.status.state


@dataclass(frozen=True)
class Look:
    """What tells, at a glance, whether a hypervisor is as it was: its version in two parts, and how many payloads."""

    version: int
    extra: str
    payloads: int


class LivepatchSysctl:
    """Raw hypercalls on one host; the runner program is put into dom0 at the first use."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._version = 0
        self._cpus = host.domain.machine.cpus
        self._arch = host.domain.machine.arch
        self.uploaded: list[str] = []
        """Names of payloads that may be there, in the order of their upload: for ``clear``."""

    # -- single calls -------------------------------------------------------------------------------------------

    def upload(
        self, name: bytes, content: bytes, *, size: int | None = None, name_size: int | None = None, name_pad: int = 0
    ) -> Uploaded:
        """Upload, and count the payloads. Names and sizes go out as given (``name`` with its NUL if it has one)."""
        self.uploaded.append(name.partition(b"\0")[0].decode())
        script = self._script()
        upload = script.upload(script.name(name, size=name_size, pad=name_pad), content, size=size)
        count = script.count()
        reply = self._run(script)
        return Uploaded(error_of(reply, upload), left(reply, count))

    def get(self, name: str, *, name_pad: int = 0) -> Status:
        """Ask for a payload's status."""
        script = self._script()
        get = script.get(script.name(_terminated(name), pad=name_pad))
        return status_of(self._run(script), get)

    def list(self, *, number: int = LISTED, index: int = 0, pad: int = 0) -> Listing:
        """One call: at most ``number`` payloads from ``index`` on, fewer when Xen has something more urgent to do."""
        script = self._script()
        call = script.listing(number=number, index=index, pad=pad)
        return listing_of(self._run(script), call)

    def action(
        self, name: str, action: Action | int, *, time_limit_ns: int = PATIENT_NS, flags: int = 0, pad: int = 0
    ) -> Outcome:
        """One action, and the status once it is no longer "in progress"."""
        script = self._script()
        packed = script.name(_terminated(name))
        call = script.action(packed, action, time_limit_ns=time_limit_ns, flags=flags, pad=pad)
        get = script.settled(packed)
        reply = self._run(script)
        return Outcome(error_of(reply, call), status_of(reply, get))

    def command(self, number: int, *, op_flags: int = 0) -> str:
        """A sub-operation by number, with an empty body; the errno's name, or empty."""
        script = self._script()
        call = script.operation(number, op_flags=op_flags)
        return error_of(self._run(script), call)

    # -- several calls in one go --------------------------------------------------------------------------------

    def patch(self, payload: PayloadLike, action: Action = Action.APPLY, *, flags: int = 0) -> Outcome:
        """Upload a payload, and apply it or replace all others by it. Raises :class:`ProductFailure` if not taken."""
        self.uploaded.append(payload.name)
        script = self._script()
        packed = script.name(_terminated(payload.name))
        upload = script.upload(packed, payload.content)
        script.jump_if_equal(script.result_at(upload.step), 0, upload.step + 3)
        script.end()
        call = script.action(packed, action, flags=flags)
        get = script.settled(packed)
        reply = self._run(script)
        if error := error_of(reply, upload):
            raise ProductFailure(f"{self._host.name}: payload {payload.name}: upload is refused with {error}")
        return Outcome(error_of(reply, call), status_of(reply, get))

    def cycles(self, name: str, count: int, *, timeout_s: float = 120.0) -> int:
        """Apply and revert a payload ``count`` times without a pause; how many cycles were whole.

        An action that runs into its time limit (EBUSY: a CPU came too late to the rendezvous) is asked for again, as
        the document tells a toolstack to; anything else ends the run.
        """
        script = self._script()
        packed = script.name(_terminated(name))
        first = len(script.steps)
        for action in (Action.APPLY, Action.REVERT):
            call = script.action(packed, action)
            script.jump_if_equal(script.result_at(call.step), -errno.EBUSY, call.step)
            going_on = len(script.steps) + 2
            script.jump_if_equal(script.result_at(call.step), 0, going_on)
            script.end()
            get = script.settled(packed)
            script.jump_if_equal(rc_at(get), -errno.EBUSY, call.step)
            going_on = len(script.steps) + 2
            script.jump_if_equal(rc_at(get), 0, going_on)
            script.end()
        counter = script.count_down(count, first)
        return count - self._run(script, timeout_s=timeout_s).left(counter)

    def upload_and_unload(self, payload: PayloadLike, count: int, *, timeout_s: float = 60.0) -> int:
        """Upload and unload a payload ``count`` times, whether it is taken or refused; how many rounds were made."""
        script = self._script()
        packed = script.name(_terminated(payload.name))
        upload = script.upload(packed, payload.content)
        script.action(packed, Action.UNLOAD)
        counter = script.count_down(count, upload.step)
        return count - self._run(script, timeout_s=timeout_s).left(counter)

    def states(self) -> dict[str, str]:
        """The state of every payload by name, in Xen's order, by as many calls as it takes."""
        found: dict[str, str] = {}
        while True:
            listing = self.list(index=len(found))
            if listing.error:
                raise ProductFailure(f"{self._host.name}: payloads cannot be listed from {len(found)}: {listing.error}")
            found |= listing.states
            if listing.left == 0:
                return found

    def clear(self) -> Look:
        """Revert and unload whatever there is, and look. Raises :class:`ProductFailure` when something stays.

        What was uploaded last is reverted first. One run is enough where every name is in ``uploaded``.
        """
        names, self.uploaded = list(dict.fromkeys(self.uploaded)), []
        look = self._clear(names)
        for _ in range(3):
            if not look.payloads:
                return look
            # Xen reverts the topmost only, and the list does not tell which that is: try each as often as there are.
            states = self.states()
            applied = [name for name, state in states.items() if state == "APPLIED"]
            look = self._clear(list(states), reverts=[name for _ in applied for name in reversed(applied)])
        raise ProductFailure(f"{self._host.name}: payloads that cannot be reverted and unloaded: {self.states()}")

    def _clear(self, names: Sequence[str], *, reverts: Sequence[str] | None = None) -> Look:
        reverts = list(reversed(names)) if reverts is None else reverts
        script = self._script(room=10 + (8 + 2 * self._cpus) * (len(names) + len(reverts)))
        for name in reverts:
            packed = script.name(_terminated(name))
            script.action(packed, Action.REVERT)
            script.settled(packed)
        for name in names:
            script.action(script.name(_terminated(name)), Action.UNLOAD)
        return self._look(script)

    def look(self) -> Look:
        """A glance at the hypervisor."""
        return self._look(self._script())

    def _look(self, script: LivepatchScript) -> Look:
        version, extra_at = script.xen_version()
        count = script.count()
        reply = self._run(script)
        extra = reply.read(extra_at, 16).partition(b"\0")[0].decode("utf-8", "replace")
        return Look(reply.result(version), extra, left(reply, count))

    # -- running ------------------------------------------------------------------------------------------------

    def _script(self, *, room: int = 60) -> LivepatchScript:
        if not self._version:
            probe, steps = probe_versions(_VERSIONS)
            reply = self._run(probe)
            taken = [version for version, step in steps.items() if reply.result(step) != -errno.EACCES]
            if len(taken) != 1:
                raise ProductFailure(f"{self._host.name}: sysctl takes the interface versions {taken}, not just one")
            self._version = taken[0]
        return LivepatchScript(self._version, arch=self._arch, cpus=self._cpus, room=room)

    def _run(self, script: Script, *, timeout_s: float = 30.0) -> Reply:
        return hypercalls.run(self._host, script, timeout_s=timeout_s)


def _terminated(name: str) -> bytes:
    return name.encode() + b"\0"
