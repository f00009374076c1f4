"""Programs in dom0, run through the guest agent: argv in; exit code, output and duration out; a deadline on each.

Binary-safe both ways. Nothing here is a shell: a word of argv stays one word. When the deadline passes, the program
and its descendants are killed inside before the error is raised. Sources: guest-exec and guest-exec-status of QEMU's
qga/qapi-schema.json.
"""

from __future__ import annotations

import base64
import math
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from xentests.deadline import Deadline, until
from xentests.errors import AgentError, CommandFailed, CommandTimeout, UsageError
from xentests.host.agent import REQUEST, Agent
from xentests.host.console import Console
from xentests.text import clean, tail

Word = str | int | PurePath

OUTPUT_LIMIT_MIB = 7
"""What the two outputs of a program may come to; more is an error. libvirt takes no answer of an agent above 10 MiB
(QEMU_AGENT_MAX_RESPONSE of its qemu_agent.c), and outputs travel as base64."""

_TOO_MUCH = "No complete agent response"

# Reading a process tree from outside of it; argument 1 is the root. STOP first, so that nothing forks away meanwhile.
_KILL_TREE = r"""
[ -d "/proc/$1" ] || exit 4
while read -r key value; do
    case $key in Name: | State:) echo "$key $value" ;; esac
done 2>/dev/null <"/proc/$1/status"
echo "waits in $(cat "/proc/$1/wchan" 2>/dev/null)"
end() {
    kill -STOP "$1" 2>/dev/null
    ps -e -o pid= -o ppid= | while read -r pid parent; do
        [ "$parent" = "$1" ] && end "$pid"
    done
    kill -KILL "$1" 2>/dev/null
}
end "$1"
"""


@dataclass(frozen=True)
class Result:
    """How a program ended. ``exit_code`` is negative for a signal, as in subprocess: -9 was killed by SIGKILL."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes
    duration_s: float
    host: str

    @property
    def text(self) -> str:
        """stdout decoded, without the newlines at its end, as ``$(...)`` in a shell gives it."""
        return self.stdout.decode("utf-8", "replace").rstrip("\n")

    @property
    def ending(self) -> str:
        """The end in words: ``exit code 3``, ``killed by SIGKILL``."""
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        try:
            return f"killed by {signal.Signals(-self.exit_code).name}"
        except ValueError:
            return f"killed by signal {-self.exit_code}"

    def __str__(self) -> str:
        text = f"{self.host}: `{shown(self.argv)}`: {self.ending} after {self.duration_s:.2f} s"
        for name, data in (("stdout", self.stdout), ("stderr", self.stderr)):
            if data.strip():
                text += f"\n{name}:\n{_indented(data)}"
        return text


def shown(argv: tuple[str, ...]) -> str:
    """A command for people: quoted as a shell would want it, cleaned and at most 300 characters long."""
    text = clean(shlex.join(argv)).replace("\n", "\\n")
    return text if len(text) <= 300 else text[:300] + "..."


def _indented(data: bytes) -> str:
    return "\n".join(f"    {line}" for line in tail(data).split("\n"))


class Commands:
    """Runs programs in the dom0 behind ``agent``. Watches the console all the while."""

    def __init__(self, host: str, agent: Agent, console: Console) -> None:
        self._host = host
        self._agent = agent
        self._console = console

    def run(self, *argv: Word, input_data: bytes = b"", timeout_s: float = 30.0) -> Result:
        """Run a program to its end, whatever its exit code; 127 if there is no such program, 126 if it cannot run.

        Raises CommandTimeout (the program has been killed then), HostHang, HypervisorCrash, UsageError (output beyond
        ``OUTPUT_LIMIT_MIB``: let it go into a file and ``pull`` that).
        """
        words = self._words(argv)
        self._console.check()
        deadline = Deadline(timeout_s)
        pid = self.spawn(words, input_data=input_data)
        if isinstance(pid, Result):
            return pid
        result = self._await(pid, words, deadline, lambda seen: seen or deadline.passed)
        if result is None:
            raise self._timed_out(pid, words, deadline)
        return result

    def spawn(self, words: tuple[str, ...], *, input_data: bytes = b"", capture: bool = True) -> int | Result:
        """Start a program and return its process id in dom0, or the Result of a program that could not be started."""
        arguments: dict[str, object] = {"path": words[0], "arg": list(words[1:]), "capture-output": capture}
        if input_data:
            arguments["input-data"] = base64.b64encode(input_data).decode("ascii")
        started = Deadline(math.inf, scaled=False)
        try:
            return int(self._agent.call("guest-exec", arguments, wanted="pid")["pid"])
        except AgentError as error:
            said = str(error)
            if "Failed to execute child process" not in said:
                raise
            code = 127 if "No such file" in said else 126
            return Result(words, code, b"", said.encode(), started.elapsed_s, self._host)

    def poll(self, pid: int, words: tuple[str, ...], elapsed_s: float) -> Result | None:
        """The Result of a program started by ``spawn``, or None while it runs. The agent forgets it when it is told."""
        try:
            status = self._agent.call("guest-exec-status", {"pid": pid}, wanted="exited")
        except AgentError as error:
            if _TOO_MUCH not in str(error):
                raise
            self._agent.revive()
            raise self._too_much(words) from error
        if not status["exited"]:
            return None
        code = -int(status["signal"]) if "signal" in status else int(status.get("exitcode", 0))
        for channel in ("out", "err"):
            if status.get(f"{channel}-truncated"):
                raise self._too_much(words)
        stdout, stderr = (base64.b64decode(status.get(f"{channel}-data", "")) for channel in ("out", "err"))
        return Result(words, code, stdout, stderr, elapsed_s, self._host)

    def kill(self, pid: int) -> str:
        """Kill a program and its descendants; returns what it was doing, for a message; empty if it was gone."""
        words = ("sh", "-c", _KILL_TREE, "kill-tree", str(pid))
        killer = self.spawn(words)
        if isinstance(killer, Result):
            return clean(killer.stderr)
        deadline = Deadline(10.0)
        result = self._await(killer, words, deadline, lambda seen: seen or deadline.passed)
        return "?" if result is None else ", ".join(clean(result.stdout).strip().split("\n"))

    def _too_much(self, words: tuple[str, ...]) -> UsageError:
        return UsageError(
            f"{self._host}: `{shown(words)}` wrote more than the {OUTPUT_LIMIT_MIB} MiB that can be passed on: let it "
            "write into a file, and pull that"
        )

    def _words(self, argv: tuple[Word, ...]) -> tuple[str, ...]:
        words = tuple(str(word) for word in argv)
        if not words or not words[0]:
            raise UsageError("run() needs a program to run")
        if sum(len(word.encode()) + 4 for word in words) > REQUEST:
            raise UsageError(f"run({shown(words)}): longer than {REQUEST >> 10} KiB: put it into a file")
        if any("\0" in word for word in words):
            raise UsageError(f"run({shown(words)}): no word of a command can hold a NUL byte")
        return words

    def _await(
        self,
        pid: int,
        words: tuple[str, ...],
        deadline: Deadline,
        enough: Callable[[Result | None], object],
    ) -> Result | None:
        result: Result | None = None

        def look() -> object:
            nonlocal result
            self._console.check()
            result = self.poll(pid, words, deadline.elapsed_s)
            return enough(result)

        until(
            look,
            what=f"{self._host}: `{shown(words)}`",
            deadline=Deadline(math.inf, scaled=False),
            error=CommandTimeout,
            every_s=0.003,
            slowest_s=0.1,
        )
        return result

    def _timed_out(self, pid: int, words: tuple[str, ...], deadline: Deadline) -> CommandTimeout:
        waited = str(deadline)
        state = self.kill(pid)
        grace = Deadline(5.0)
        last = self._await(pid, words, deadline, lambda seen: seen or grace.passed)
        text = f"{self._host}: `{shown(words)}`: not ended after {waited}"
        if not state:
            text += ": it has ended itself, but something it started is still there and holds its output open"
        elif last is None:
            text += f". It was killed and is still there: stuck in the kernel ({state})"
        else:
            text += f"; it was killed ({state})"
            for name, data in (("stdout", last.stdout), ("stderr", last.stderr)):
                text += f"\nlast of {name}:\n{_indented(data)}" if data.strip() else f"\n(nothing on {name})"
        return CommandTimeout(
            f"{text}\nLast lines of the console:\n{self._console.tail(10)}\nThe whole console: {self._console.log}. "
            "The host itself answers. Look what the command waited for, or give it a longer timeout_s."
        )


def require(result: Result, *, ok: bool, exit_code: int | None = None) -> Result:
    """The result, if it is what was asked for; else CommandFailed. ``ok`` asks for exit code 0, else for another."""
    wanted = "exit code 0" if ok else "a failure" if exit_code is None else f"exit code {exit_code}"
    got = result.exit_code
    fits = got == 0 if ok else got != 0 if exit_code is None else got == exit_code
    if not fits:
        raise CommandFailed(f"{result}\n{wanted} was wanted")
    return result
