"""Raw hypercalls made from dom0: a script of them, run by a small program that is put there at its first use.

For what no tool sends: hypercalls asked for by number, wrong arguments, actions that tools would repeat.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xentests.errors import LabError
from xentests.payload.runner import Reply, Script, program

if TYPE_CHECKING:
    from xentests.host.host import Host

_PROGRAM = "/run/xentests/hypercalls"


def run(host: Host, script: Script, *, timeout_s: float = 30.0) -> Reply:
    """Run a script in dom0. Raises LabError when dom0 has not what the program needs."""
    data = script.encode()
    result = host.run(_PROGRAM, input_data=data, timeout_s=timeout_s)
    if result.exit_code == 127:
        host.write_file(_PROGRAM, program(host.domain.machine.arch), mode=0o755)
        result = host.run(_PROGRAM, input_data=data, timeout_s=timeout_s)
    if result.exit_code != 0:
        raise LabError(f"{result}\nThe hypercall runner could not run (2: no privcmd, 3: no hypercall buffers)")
    return Reply(result.stdout, script)


def answers(host: Host, *calls: tuple[int, ...]) -> list[str]:
    """What each hypercall (number, then up to five arguments) answers: an errno's name, or the number as text.

    They are made in one go. A number that takes state from dom0 (iret, set_trap_table and the like) ends dom0.
    """
    script = Script()
    steps = [script.hypercall(*call) for call in calls]
    reply = run(host, script)
    return [_named(reply.result(step)) for step in steps]


def _named(value: int) -> str:
    return errno.errorcode.get(-value, str(value)) if value < 0 else str(value)
