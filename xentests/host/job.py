"""A program left running in dom0 while the test goes on: its output so far, its end, its killing.

Output goes into files in dom0, since the agent shows nothing of a program before its end. Made by ``Host.start``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from xentests.deadline import Deadline, until
from xentests.errors import CommandFailed, CommandTimeout
from xentests.host.command import Commands, Result, Word, shown
from xentests.host.console import Console
from xentests.host.files import Files
from xentests.text import tail

T = TypeVar("T")
_SPOOL = "/run/xentests/jobs"
# A session of its own, so that one signal reaches the program and whatever it starts.
_SCRIPT = 'mkdir -p "${0%/*}" && exec >"$0.out" 2>"$0.err" && exec "$@"'


class Job:
    """One background program. ``pid`` is its process and session id in dom0. Not captured by the agent."""

    def __init__(self, host: str, commands: Commands, files: Files, console: Console, argv: tuple[Word, ...]) -> None:
        self.argv = tuple(str(word) for word in argv)
        self._host = host
        self._commands = commands
        self._files = files
        self._console = console
        self._ended: Result | None = None
        self._age = Deadline(1e9, scaled=False)
        _counter["jobs"] += 1
        self._spool = f"{_SPOOL}/{_counter['jobs']}"
        self._words = ("setsid", "sh", "-c", _SCRIPT, self._spool, *self.argv)
        started = commands.spawn(self._words, capture=False)
        if isinstance(started, Result):
            raise CommandFailed(str(started))
        self.pid = started

    def poll(self) -> Result | None:
        """The Result if the program has ended, None while it runs. A program that does not exist ends with 127."""
        if self._ended is None:
            ended = self._commands.poll(self.pid, self.argv, self._age.elapsed_s)
            if ended is not None:
                out, err = self._output("out"), self._output("err")
                self._ended = Result(self.argv, ended.exit_code, out, err, ended.duration_s, self._host)
        return self._ended

    def output(self) -> bytes:
        """stdout so far."""
        return self._output("out") if self._ended is None else self._ended.stdout

    def wait(self, timeout_s: float) -> Result:
        """Wait for the program's own end; its Result, whatever the exit code. Raises CommandTimeout and leaves it."""

        def look() -> Result | None:
            self._console.check()
            return self.poll()

        return _until(look, timeout_s, self._late)

    def wait_for_output(self, text: bytes, timeout_s: float) -> bytes:
        """Wait until ``text`` stands in stdout; all of stdout so far. Raises CommandTimeout."""

        def look() -> bytes | None:
            self._console.check()
            output = self.output()
            return output if text in output else None

        return _until(look, timeout_s, self._late)

    def signal(self, name: str) -> None:
        """Send a signal, by its name without SIG, to the program and everything in its session."""
        self._commands.run("kill", "-s", name, "--", f"-{self.pid}")

    def kill(self) -> Result:
        """End it and everything it started with SIGKILL, and return its Result. Harmless when it has ended."""
        if self.poll() is None:
            self.signal("KILL")
        return self.wait(10.0)

    def _output(self, channel: str) -> bytes:
        with contextlib.suppress(CommandFailed):  # the file is not there before the program's first moment
            return self._files.read(f"{self._spool}.{channel}")
        return b""

    def _late(self, message: str) -> CommandTimeout:
        return CommandTimeout(
            f"{self._host}: background `{shown(self.argv)}`: {message}\nlast of stdout:\n{tail(self._output('out'))}\n"
            f"last of stderr:\n{tail(self._output('err'))}\nThe whole console: {self._console.log}"
        )


_counter = {"jobs": 0}


def _until(look: Callable[[], T | None], timeout_s: float, late: Callable[[str], CommandTimeout]) -> T:
    found = until(look, what="waited for", deadline=timeout_s, error=late)
    assert found is not None
    return found
