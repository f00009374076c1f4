"""The schedule of the ARINC 653 scheduler, set and read by its hypercall: no tool has a command for it.

XEN_SYSCTL_scheduler_op with ``struct xen_sysctl_arinc653_schedule`` (xen/include/public/sysctl.h).
"""

from __future__ import annotations

import errno
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xentests.errors import LabError
from xentests.host import hypercalls
from xentests.payload.runner import Script

if TYPE_CHECKING:
    from xentests.host.host import Host

_SYSCTL, _SCHEDULER_OP, _ARINC653 = 35, 19, 7
_PUT, _GET = 0, 1
_VERSIONS = range(0x10, 0x30)
_HEAD = struct.Struct("<QB7x")
_ENTRY = struct.Struct("<16sI4xQ")
_ENTRIES = 64
_SIZE = _HEAD.size + _ENTRIES * _ENTRY.size


@dataclass(frozen=True)
class Slot:
    """A vCPU's part of each major frame, in ns, in the order of the schedule."""

    domain: uuid.UUID
    runtime: int
    vcpu: int = 0


DOM0 = uuid.UUID(int=0)


def put(host: Host, major_frame: int, slots: Sequence[Slot]) -> str:
    """Set the schedule of Pool-0: the errno's name, empty when Xen has taken it."""
    content = _HEAD.pack(major_frame, len(slots))
    content += b"".join(_ENTRY.pack(slot.domain.bytes, slot.vcpu, slot.runtime) for slot in slots)
    result, _ = _call(host, _PUT, content)
    return errno.errorcode.get(-result, str(result)) if result else ""


def get(host: Host) -> tuple[int, list[Slot]]:
    """The major frame in ns, and the schedule."""
    result, content = _call(host, _GET, b"")
    if result:
        raise LabError(f"{host.name}: the schedule cannot be read: {errno.errorcode.get(-result, str(result))}")
    major_frame, number = _HEAD.unpack_from(content)
    slots = []
    for index in range(number):
        domain, vcpu, runtime = _ENTRY.unpack_from(content, _HEAD.size + index * _ENTRY.size)
        slots.append(Slot(uuid.UUID(bytes=domain), runtime, vcpu))
    return major_frame, slots


def domain_of(host: Host, name: str) -> uuid.UUID:
    """What the schedule calls a guest."""
    domid = host.succeed("xl", "domid", name).text.strip()
    return uuid.UUID(host.xenstore.read(f"/local/domain/{domid}/vm").removeprefix("/vm/"))


def _call(host: Host, command: int, content: bytes) -> tuple[int, bytes]:
    script = Script()
    schedule = script.data(content.ljust(_SIZE, b"\0"))
    steps = []
    for version in _VERSIONS:  # all but the right one are refused with EACCES
        operation = struct.pack("<IIIIIIQ", _SCHEDULER_OP, version, 0, _ARINC653, command, 0, schedule)
        steps.append(script.hypercall(_SYSCTL, script.data(operation.ljust(8 + 128, b"\0"))))
    reply = hypercalls.run(host, script)
    answers = [answer for step in steps if (answer := reply.result(step)) != -errno.EACCES]
    if len(answers) != 1:
        raise LabError(f"{host.name}: sysctl takes {len(answers)} interface versions, not one")
    return answers[0], reply.read(schedule, _SIZE)
