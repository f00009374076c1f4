"""The guest agent of one host, with a console that is watched while it is being waited for.

``Agent.call`` is one agent command. The outer library's call cannot be interrupted, so it runs in a helper thread
while this one looks at the console: a panic ends a wait at once instead of after the agent's silence. Retries while
the agent is not connected yet (just after a clone resumed); turns a silent agent into HostHang by ``hang``.
Not for running programs: see ``command``.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from xentests.deadline import Deadline, until
from xentests.errors import AgentUnresponsive, LabError
from xentests.host.console import Console
from xentests.host.hang import diagnose
from xentests.host.protocol import Domain
from xentests.text import clean

SILENCE_S = 20.0
"""Seconds (scaled) of silence after which a host counts as hanging: an answer takes 1.5 ms, seconds on a busy lab."""

REQUEST = 96 << 10
"""Bytes of data that one request may carry. A request longer than what the socket between libvirt and QEMU buffers
(208 KiB here) gets stuck half-way, for good: with libvirt 9.0 and QEMU 7.2 128 KiB of data pass and 192 do not."""

_SHELL = "shell"
_LOOK_S = 0.05
_Call = tuple[str, dict[str, object] | None, float]
_Answer = tuple[Any, BaseException | None]


class Agent:
    """Calls ``domain.agent`` for one host; not for several threads at once."""

    def __init__(self, domain: Domain, console: Console) -> None:
        self._domain = domain
        self._console = console
        self._worker: _Worker | None = None

    def call(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        silence_s: float = SILENCE_S,
        wanted: str | None = None,
    ) -> Any:
        """The ``return`` value of one agent command; ``wanted`` is a member that it must have.

        Raises AgentError (the agent refused), HostHang (silent for ``silence_s``, scaled; or what it says is the
        answer to something else, asked before a silence), HypervisorCrash, DomainGone.
        """
        deadline = Deadline(silence_s)
        answer: Any = None

        def attempt() -> bool:
            nonlocal answer
            try:
                answer = self._ask(command, arguments, max(1.0, deadline.left_s))
            except AgentUnresponsive as error:
                if not error.delivered:
                    return False
                raise diagnose(self._domain, self._console, waited=str(deadline), doing=command) from error
            if wanted is not None and (not isinstance(answer, dict) or wanted not in answer):
                late = f"{command}; {clean(repr(answer), limit=80)} came, the answer to something earlier"
                raise diagnose(self._domain, self._console, waited=str(deadline), doing=late)
            return True

        until(
            attempt,
            what=f"{self._domain.name}: the guest agent",
            deadline=deadline,
            error=lambda _: diagnose(self._domain, self._console, waited=str(deadline), doing=command),
            every_s=0.003,
            slowest_s=0.25,
        )
        return answer

    def _ask(self, command: str, arguments: dict[str, object] | None, timeout_s: float) -> Any:
        if self._worker is None:
            self._worker = _Worker(self._domain)
        worker = self._worker
        try:
            value, error = worker.ask((command, arguments, timeout_s), self._console.check)
        except BaseException:
            # The thread is still inside the outer library; it ends with that call, and a later one gets a new thread.
            self._worker = None
            worker.dismiss()
            raise
        if error is not None:
            raise error
        return value

    def revive(self) -> None:
        """Have dom0's init start a new agent, by way of its shell on another port, and wait until it answers.

        For an agent that works and has no connection any more: libvirt drops one that answers too much, for good.
        """
        with socket.socket(socket.AF_UNIX) as shell:
            try:
                shell.connect(str(self._domain.port(_SHELL)))
                shell.sendall(b"\x15pkill -KILL -x qemu-ga\r")
                self.call("guest-ping")
            except OSError as error:
                raise LabError(f"{self._domain.name}: cannot reach its shell: {error.strerror}") from error

    def close(self) -> None:
        """End the helper thread."""
        if self._worker is not None:
            self._worker.dismiss()
            self._worker = None


class _Worker:
    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"agent of {domain.name}", daemon=True).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            command, arguments, timeout_s = call
            try:
                self._answers.put((self._domain.agent(command, arguments, timeout_s=timeout_s), None))
            except BaseException as error:  # noqa: BLE001 - carried to the thread that asked, and raised there
                self._answers.put((None, error))

    def ask(self, call: _Call, look: Callable[[], None]) -> _Answer:
        # The outer library counts the seconds in which this machine stood still, so its limit is the wider one.
        command, arguments, timeout_s = call
        patience = Deadline(timeout_s, scaled=False)
        self._calls.put((command, arguments, 4 * timeout_s + 10.0))
        while True:
            try:
                return self._answers.get(timeout=_LOOK_S)
            except queue.Empty:
                look()
                if patience.passed:
                    raise AgentUnresponsive(f"{self._domain.name}: no answer to {command} within {patience}") from None

    def dismiss(self) -> None:
        self._calls.put(None)
