"""XEN_SYSCTL_livepatch_op as steps of a hypercall script, and its answers. Bytes only: no host is asked here.

Layouts: xen/include/public/sysctl.h. What the fields mean: docs/misc/livepatch.pandoc, "Hypercalls".
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from xentests.payload.runner import Reply, Script

_HYPERVISOR_PLATFORM_OP, _HYPERVISOR_XEN_VERSION, _HYPERVISOR_SCHED_OP, _HYPERVISOR_SYSCTL = 7, 17, 29, 35
_XENVER_VERSION, _XENVER_EXTRAVERSION = 0, 1
_LIVEPATCH_OP = 27
_UPLOAD, _GET, _LIST, _ACTION = range(4)
_SYSCTL_SIZE = 8 + 128
_HEAD_SIZE = 16
_NAME = struct.Struct("<QH3H")
# struct xen_platform_op with XENPF_resource_op, one entry: read the TSC (xen/include/public/platform.h).
_XENPF_INTERFACE_VERSION, _XENPF_RESOURCE_OP, _PLATFORM_OP_SIZE = 0x03000001, 61, 8 + 128
_READ_MSR = struct.Struct("<IIQQ")
_MSR_READ, _MSR_IA32_TSC = 0, 0x10
# struct sched_pin_override (xen/include/public/sched.h): a physical CPU, or -1 for none.
_SCHEDOP_PIN_OVERRIDE, _NO_PIN = 7, -1
_STATES = {1: "CHECKED", 2: "APPLIED"}
_BUSY_TRIES = 200
_REVERT_TRIES = 2  # EBUSY also means "not the topmost", and Xen logs that each time
LISTED = 64
"""How many payloads a listing made here has room for."""


class Action(IntEnum):
    """LIVEPATCH_ACTION_*."""

    UNLOAD = 1
    REVERT = 2
    APPLY = 3
    REPLACE = 4


NODEPS = 1
"""LIVEPATCH_ACTION_APPLY_NODEPS, a flag of an action."""

PATIENT_NS = 2 * 10**9
"""A time limit that a CPU keeps even on a busy lab; xen-livepatch gives 30 ms."""


def error_name(result: int) -> str:
    """``ENOENT`` for -2, as xen/include/public/errno.h names it; empty for 0 and above."""
    if result >= 0:
        return ""
    return "EOPNOTSUPP" if result == -errno.EOPNOTSUPP else errno.errorcode.get(-result, str(-result))


@dataclass(frozen=True)
class Status:
    """Answer of XEN_SYSCTL_LIVEPATCH_GET: ``error`` of the call; ``state`` and ``rc`` (an errno name) if it worked.

    While an action is under way, ``rc`` is EAGAIN.
    """

    error: str
    state: str
    rc: str


@dataclass(frozen=True)
class Listing:
    """Answer of XEN_SYSCTL_LIVEPATCH_LIST. ``result`` is the number of payloads written, or a negative errno."""

    result: int
    version: int
    left: int
    states: dict[str, str]
    """State by name, in Xen's order."""

    @property
    def error(self) -> str:
        """The errno's name, or empty."""
        return error_name(self.result)


@dataclass(frozen=True)
class Call:
    """One sub-operation in a script: the step that makes it, and the address of its body."""

    step: int
    body: int


class LivepatchScript(Script):
    """A script of livepatch sub-operations. ``version`` is XEN_SYSCTL_INTERFACE_VERSION of the hypervisor.

    ``cpus`` is how many physical CPUs meet for an action, ``arch`` tells by what each can be seen to have left.
    """

    def __init__(self, version: int, *, arch: str, cpus: int = 1, room: int = 60) -> None:
        super().__init__(room)
        self._leave = {"amd64": self.interrupted, "arm64": self.visited}[arch]
        self._version = version
        self._cpus = cpus
        self._zero = self.data(bytes(8))

    def operation(self, command: int, body: bytes = b"", *, op_flags: int = 0) -> Call:
        """Any sub-operation by number; ``op_flags`` is the member after the number (padding before 4.20)."""
        head = struct.pack("<4I", _LIVEPATCH_OP, self._version, command, op_flags)
        at = self.data((head + body).ljust(_SYSCTL_SIZE, b"\0"))
        return Call(self.hypercall(_HYPERVISOR_SYSCTL, at), at + _HEAD_SIZE)

    def name(self, raw: bytes, *, size: int | None = None, pad: int = 0) -> bytes:
        """A struct xen_livepatch_name; ``raw`` goes out as it is, with its NUL if it has one."""
        return _NAME.pack(self.data(raw), len(raw) if size is None else size, 0, 0, pad)

    def upload(self, name: bytes, content: bytes, *, size: int | None = None) -> Call:
        """Upload; ``name`` is a packed name."""
        source = self.data(content)
        return self.operation(_UPLOAD, name + struct.pack("<QQ", len(content) if size is None else size, source))

    def get(self, name: bytes) -> Call:
        """Ask for a status."""
        return self.operation(_GET, name)

    def settled(self, name: bytes) -> Call:
        """Ask for a status until it is no longer "in progress", and until every CPU has left the meeting.

        A CPU on its way out (``check_for_livepatch_work`` of xen/common/livepatch.c, interrupts off) that is held up
        until the next action has begun takes that one for its own and stays, and the next action runs into its time
        limit. On emulated CPUs, which the outer machine holds up whenever it likes, that was one action in fifteen.
        """
        call = self.get(name)
        self.jump_if_equal(rc_at(call), -errno.EAGAIN, call.step)
        for cpu in range(self._cpus):
            self._leave(cpu)
        return call

    def interrupted(self, cpu: int) -> int:
        """Have a physical CPU answer an interrupt: returns when it has them on. ENODEV for one that is offline.

        Xen for x86 only.
        """
        entry = self.data(_READ_MSR.pack(_MSR_READ, 0, _MSR_IA32_TSC, 0))
        head = struct.pack("<4IQ", _XENPF_RESOURCE_OP, _XENPF_INTERFACE_VERSION, 1, cpu, entry)
        return self.hypercall(_HYPERVISOR_PLATFORM_OP, self.data(head.ljust(_PLATFORM_OP_SIZE, b"\0")))

    def visited(self, cpu: int) -> int:
        """Run on a physical CPU for a moment, which it allows when it has left the meeting: for Xen on Arm.

        The vCPU that asks must be the one that asks next: the runner stays on one.
        """
        for pin in (cpu, _NO_PIN):
            at = self.data(struct.pack("<i", pin))
            step = self.hypercall(_HYPERVISOR_SCHED_OP, _SCHEDOP_PIN_OVERRIDE, at)
        return step

    def action(
        self, name: bytes, action: int, *, time_limit_ns: int = PATIENT_NS, flags: int = 0, pad: int = 0
    ) -> Call:
        """An action, asked for again while Xen is still busy with the one before (it says EBUSY for a moment)."""
        call = self.operation(_ACTION, name + struct.pack("<4I", int(action), time_limit_ns, flags, pad))
        after = call.step + 4
        self.jump_if_equal(self.result_at(call.step), -errno.EBUSY, after - 1)
        self.jump(after)
        self.count_down(_REVERT_TRIES if action == Action.REVERT else _BUSY_TRIES, call.step)
        return call

    def jump(self, step: int) -> None:
        """Go to a step."""
        self.jump_if_equal(self._zero, 0, step)

    def listing(self, *, number: int, index: int, pad: int) -> ListCall:
        """List payloads."""
        arrays = [self.data(bytes(size)) for size in (8 * LISTED, 128 * LISTED, 4 * LISTED, 1 << 14, 4 * LISTED)]
        call = self.operation(_LIST, struct.pack("<6I5Q", 0, index, number, pad, 0, 0, *arrays))
        return ListCall(call.step, call.body, states_at=arrays[0], names_at=arrays[1])

    def count(self) -> Call:
        """A listing without room for any: it tells how many payloads there are. See :func:`left`."""
        return self.operation(_LIST)

    def xen_version(self) -> tuple[int, int]:
        """Ask for Xen's version: the step that returns its number, and where the 16 bytes of its extra version are."""
        extra_at = self.data(bytes(16))
        step = self.hypercall(_HYPERVISOR_XEN_VERSION, _XENVER_VERSION, 0)
        self.hypercall(_HYPERVISOR_XEN_VERSION, _XENVER_EXTRAVERSION, extra_at)
        return step, extra_at


@dataclass(frozen=True)
class ListCall(Call):
    """A listing in a script, with the addresses of its arrays."""

    states_at: int
    names_at: int


def probe_versions(versions: Iterable[int]) -> tuple[Script, dict[int, int]]:
    """A script that tries interface versions, and its step by version: all wrong ones answer EACCES."""
    script = Script()
    steps = {}
    for version in versions:
        head = struct.pack("<4I", _LIVEPATCH_OP, version, _LIST, 0)
        steps[version] = script.hypercall(_HYPERVISOR_SYSCTL, script.data(head.ljust(_SYSCTL_SIZE, b"\0")))
    return script, steps


def rc_at(get: Call) -> int:
    """The address of ``rc`` in the answer to a GET, for jumps on it."""
    return get.body + _NAME.size + 4


def error_of(reply: Reply, call: Call) -> str:
    """The errno's name that a call was answered with, or empty."""
    return error_name(reply.result(call.step))


def status_of(reply: Reply, get: Call) -> Status:
    """The answer to a GET."""
    error = error_of(reply, get)
    if error:
        return Status(error, "", "")
    state, rc = struct.unpack("<Ii", reply.read(get.body + _NAME.size, 8))
    return Status("", _STATES.get(state, str(state)), error_name(rc))


def left(reply: Reply, listing: Call) -> int:
    """How many payloads a listing did not tell of."""
    return int.from_bytes(reply.read(listing.body + 8, 4), "little")


def listing_of(reply: Reply, call: ListCall) -> Listing:
    """The answer to a LIST."""
    result = reply.result(call.step)
    names = reply.read(call.names_at, 128 * LISTED).split(b"\0")[: max(result, 0)]
    codes = struct.iter_unpack("<Ii", reply.read(call.states_at, 8 * len(names)))
    states = {name.decode(): _STATES.get(code, str(code)) for name, (code, _) in zip(names, codes, strict=True)}
    return Listing(result, int.from_bytes(reply.read(call.body, 4), "little"), left(reply, call), states)
