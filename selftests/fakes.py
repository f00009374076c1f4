"""A machine made of nothing: the outer side of a host whose agent runs programs on this machine, for selftests.

``FakeDomain`` speaks the guest agent's protocol (guest-exec, guest-file-*, guest-ping) as qemu-ga does, limits
included, and can be told to be silent, not connected, slow, or gone. Its console is a file that tests write to,
byte by byte if they like, and it answers Xen's debug keys as long as it is ``xen_alive``.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from xentests.errors import AgentError, AgentUnresponsive, DomainGone, LabError

REQUEST_LIMIT = 208 << 10
"""A longer request gets stuck between libvirt and QEMU, for good."""

ANSWER_LIMIT = 10 << 20
"""libvirt's QEMU_AGENT_MAX_RESPONSE: beyond it the connection to the agent is lost until the agent starts anew."""


@dataclass(frozen=True)
class FakeMachine:
    """Fits ``xentests.host.protocol.MachineLike``."""

    arch: str = "amd64"
    cpus: int = 2
    timing: str = "fast"
    xen_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class FakeImage:
    """Fits ``xentests.host.protocol.ImageLike``."""

    xen_package_version: str = "4.20.2+7-g1badcf5035-0+deb13u1"
    kernel_version: str = "6.12.48+deb13-amd64"
    xen_config: Path | None = None
    symbols: Path | None = None


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    out: bytes = b""
    err: bytes = b""
    threads: list[threading.Thread] = field(default_factory=list)


class FakeDomain:
    """Fits ``xentests.host.protocol.Domain``. ``on_program`` may answer in a program's stead: (exit code, stdout)."""

    def __init__(self, folder: Path, machine: FakeMachine | None = None) -> None:
        self.name = "fake"
        self.machine = machine or FakeMachine()
        self.console_log = folder / "console.log"
        self.console_log.touch()
        self.console_start = 0
        self.folder = folder
        self.silent = False
        self.connected = True
        self.gone = False
        self.xen_alive = True
        self.running = True
        self.typed = b""
        self.calls: list[str] = []
        self.on_program: Callable[[list[str]], tuple[int, bytes] | None] = lambda argv: None
        self.on_call: Callable[[str], None] = lambda command: None
        self._input_to_xen = False
        self._processes: dict[int, _Process] = {}
        self._done: dict[int, tuple[int, bytes]] = {}
        self._files: dict[int, IO[bytes]] = {}
        self._next = 1000

    def say(self, text: str | bytes, *, pieces: int = 0) -> None:
        """Print on the console; with ``pieces`` in writes of that many bytes."""
        data = text.encode() if isinstance(text, str) else text
        size = pieces or len(data) or 1
        with self.console_log.open("ab", buffering=0) as file:
            for at in range(0, len(data), size):
                file.write(data[at : at + size])

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something while the test waits."""
        timer = threading.Timer(delay_s, action)
        timer.daemon = True
        timer.start()

    def console_write(self, data: bytes) -> None:
        """Answers three Ctrl-A and single keys as Xen does."""
        self.typed += data
        if not self.xen_alive:
            raise LabError(f"{self.name}: its serial console did not take {data!r}")
        if data == b"\x01\x01\x01":
            self._input_to_xen = not self._input_to_xen
            to = "Xen" if self._input_to_xen else "DOM0"
            self.say(f"(XEN) *** Serial input to {to} (type 'CTRL-a' three times to switch input)\r\n")
        elif self._input_to_xen:
            self.say(f"(XEN) '{data.decode()}' pressed -> doing what it does\r\n")

    def port(self, name: str) -> Path:
        """A socket in the test's folder."""
        return self.folder / name

    def serve_shell(self) -> None:
        """Listen where dom0's shell is reached; whoever types `pkill` there restarts the agent."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.port("shell")))
        listener.listen()

        def serve() -> None:
            with listener:
                connection, _ = listener.accept()
            with connection:
                if b"pkill" in connection.recv(200):
                    self.connected = True

        threading.Thread(target=serve, daemon=True).start()

    def is_running(self) -> bool:
        """As told."""
        return self.running

    def state(self) -> str:
        """As told."""
        return "gone" if self.gone else "running" if self.running else "paused"

    def agent(self, command: str, arguments: dict[str, object] | None = None, *, timeout_s: float) -> Any:
        """One command of qemu-ga."""
        self.calls.append(command)
        self.on_call(command)
        if len(str(arguments)) > REQUEST_LIMIT:
            self.silent = True
        if self.gone:
            raise DomainGone(f"{self.name}: QEMU ended")
        if not self.connected:
            raise AgentUnresponsive(f"{self.name}: the agent is not connected", delivered=False)
        if self.silent:
            threading.Event().wait(timeout_s)
            raise AgentUnresponsive(f"{self.name}: no answer to {command} within {timeout_s:.1f} s")
        handler = getattr(self, "_" + command.replace("-", "_"), None)
        if handler is None:
            raise AgentError(f"The command {command} has not been found", kind="CommandNotFound")
        return handler(**{key.replace("-", "_"): value for key, value in (arguments or {}).items()})

    def _here(self, word: str) -> str:
        """Our own directory in dom0 is one of the test's here: nobody but root may write to the real /run."""
        return word.replace("/run/xentests", str(self.folder / "run"))

    def _guest_ping(self) -> dict[str, object]:
        return {}

    def _guest_exec(
        self, path: str, arg: list[str], capture_output: bool = False, input_data: str = ""
    ) -> dict[str, int]:
        answer = self.on_program([path, *arg])
        if answer is not None:
            self._next += 1
            self._done[self._next] = answer
            return {"pid": self._next}
        output = subprocess.PIPE if capture_output else subprocess.DEVNULL
        try:
            argv = [self._here(word) for word in (path, *arg)]
            popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=output, stderr=output)
        except OSError as error:
            raise AgentError(
                f"Guest agent command failed, error was 'Failed to execute child process “{path}” ({error.strerror})'"
            ) from error
        process = self._processes[popen.pid] = _Process(popen)
        feeds = base64.b64decode(input_data)
        process.threads = [
            threading.Thread(target=work, daemon=True)
            for work in (
                lambda: _feed(popen, feeds),
                lambda: setattr(process, "out", _drain(popen.stdout)),
                lambda: setattr(process, "err", _drain(popen.stderr)),
            )
        ]
        for thread in process.threads:
            thread.start()
        return {"pid": popen.pid}

    def _guest_exec_status(self, pid: int) -> dict[str, object]:
        if pid in self._done:
            code, out = self._done.pop(pid)
            return {"exited": True, "exitcode": code, "out-data": base64.b64encode(out).decode()}
        if pid not in self._processes:
            raise AgentError(f"Invalid parameter 'pid' {pid}")
        process = self._processes[pid]
        # As qemu-ga does it: not ended before its outputs are closed.
        if process.popen.poll() is None or any(thread.is_alive() for thread in process.threads):
            return {"exited": False}
        del self._processes[pid]
        code = process.popen.returncode
        status: dict[str, object] = {"exited": True, **({"exitcode": code} if code >= 0 else {"signal": -code})}
        for channel, data in (("out", process.out), ("err", process.err)):
            if data:
                status[f"{channel}-data"] = base64.b64encode(data).decode()
        if sum(len(str(value)) for value in status.values()) > ANSWER_LIMIT:
            self.connected = False
            raise AgentError(f"No complete agent response found in {ANSWER_LIMIT} bytes")
        return status

    def _guest_file_open(self, path: str, mode: str = "r") -> int:
        try:
            self._next += 1
            self._files[self._next] = open(self._here(path), mode + "b")  # noqa: SIM115 - closed by guest-file-close
        except OSError as error:
            raise AgentError(f"failed to open file '{path}' (mode: '{mode}'): {error.strerror}") from error
        return self._next

    def _guest_file_read(self, handle: int, count: int = 4096) -> dict[str, object]:
        data = self._files[handle].read(count)
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": len(data) < count}

    def _guest_file_write(self, handle: int, buf_b64: str) -> dict[str, object]:
        data = base64.b64decode(buf_b64)[: 100 << 10]  # a short write, as a full disk or a pipe gives
        return {"count": self._files[handle].write(data), "eof": False}

    def _guest_file_seek(self, handle: int, offset: int, whence: int) -> dict[str, object]:
        return {"position": self._files[handle].seek(offset, whence), "eof": False}

    def _guest_file_close(self, handle: int) -> dict[str, object]:
        self._files.pop(handle).close()
        return {}


def _feed(popen: subprocess.Popen[bytes], data: bytes) -> None:
    assert popen.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        popen.stdin.write(data)
    with contextlib.suppress(BrokenPipeError):
        popen.stdin.close()


def _drain(pipe: IO[bytes] | None) -> bytes:
    if pipe is None:
        return b""
    with pipe:
        return pipe.read()


def elapsed(action: Callable[[], object]) -> float:
    """Seconds an action takes."""
    start = time.monotonic()
    action()
    return time.monotonic() - start
