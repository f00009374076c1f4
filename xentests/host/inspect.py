"""testinfra's questions about dom0 (process, file, mount point, kernel parameter ...), asked through the guest agent.

Used as a library: testinfra's own pytest plugin stays out. A Host object of testinfra caches system facts, so a new one
is made after every reboot. What testinfra calls a command is a shell string: it is given to ``sh -c`` in dom0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host as TestinfraHost

from xentests.host.command import Result

__all__ = ["TestinfraHost", "inspector"]


class AgentBackend(BaseBackend):  # type: ignore[misc]  # testinfra publishes no types
    """Runs testinfra's shell commands by a callable that takes argv."""

    NAME = "agent"

    def __init__(self, name: str, run: Callable[..., Result]) -> None:
        super().__init__(name)
        self._run = run

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """One shell command line; ``%s`` in it stands for a quoted argument."""
        line = self.get_command(command, *args)
        result = self._run("sh", "-c", line)
        return self.result(result.exit_code, self.encode(line), result.stdout, result.stderr)

    def get_encoding(self) -> str:
        """dom0 speaks UTF-8; asking it would start Python there."""
        return "utf-8"


def inspector(name: str, run: Callable[..., Result]) -> TestinfraHost:
    """A testinfra Host for the dom0 behind ``run``. Commands have ``run``'s own deadline, which testinfra lacks."""
    backend = AgentBackend(name, run)
    host = TestinfraHost(backend)
    backend.set_host(host)
    return host
