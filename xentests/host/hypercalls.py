"""Single hypercalls made from dom0 as they are, by number: for asking whether Xen has one at all."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xentests.errors import LabError
from xentests.payload.runner import Reply, Script, program

if TYPE_CHECKING:
    from xentests.host.host import Host

_PROGRAM = "/run/xentests/hypercalls"


def answers(host: Host, *calls: tuple[int, ...]) -> list[str]:
    """What each hypercall (number, then up to five arguments) answers: an errno's name, or the number as text.

    They are made in one go. A number that takes state from dom0 (iret, set_trap_table and the like) ends dom0.
    """
    script = Script()
    steps = [script.hypercall(*call) for call in calls]
    host.write_file(_PROGRAM, program(host.domain.machine.arch), mode=0o755)
    result = host.run(_PROGRAM, input_data=script.encode(), timeout_s=30.0)
    if result.exit_code != 0:
        raise LabError(f"{result}\nThe hypercall runner could not run (2: no privcmd, 3: no hypercall buffers)")
    reply = Reply(result.stdout, script)
    return [_named(reply.result(step)) for step in steps]


def _named(value: int) -> str:
    return errno.errorcode.get(-value, str(value)) if value < 0 else str(value)
