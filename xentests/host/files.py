"""Files of dom0, read and written through the guest agent without starting a program there. Binary-safe, in chunks.

Sources: guest-file-open, -read, -write, -seek and -close of QEMU's qga/qapi-schema.json. Not for pipes or devices
that block, and not for gigabytes: a chunk travels as base64 inside JSON.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path

from xentests.errors import AgentError, CommandFailed, DomainGone, HostHang, HypervisorCrash, UsageError
from xentests.host.agent import REQUEST, Agent
from xentests.host.command import Commands

CHUNK = 512 << 10
"""Bytes that one call reads: with base64 well below the 4 MiB that libvirt lets through from a remote lab."""

READ_LIMIT = 64 << 20


class Files:
    """Reads and writes files of one dom0."""

    def __init__(self, host: str, agent: Agent, commands: Commands) -> None:
        self._host = host
        self._agent = agent
        self._commands = commands

    @contextlib.contextmanager
    def _open(self, path: str, mode: str) -> Iterator[int]:
        try:
            handle = self._handle(path, mode)
        except AgentError as error:
            raise CommandFailed(f"{self._host}: cannot open {path} ({mode}): {error}") from error
        try:
            yield handle
        except (HypervisorCrash, HostHang, DomainGone):
            raise  # nobody is there who could close it
        except BaseException:
            self._forget(handle)
            raise
        try:
            self._agent.call("guest-file-close", {"handle": handle})
        except AgentError as error:
            raise CommandFailed(f"{self._host}: {path}: closing it failed, so the data may be lost: {error}") from error

    def _handle(self, path: str, mode: str) -> int:
        arguments: dict[str, object] = {"path": path, "mode": mode}
        try:
            return int(self._agent.call("guest-file-open", arguments))
        except AgentError as error:
            folder = path.rpartition("/")[0]
            if mode == "r" or not folder or "No such file" not in str(error):
                raise
        self._commands.run("mkdir", "-p", folder)
        return int(self._agent.call("guest-file-open", arguments))

    def _forget(self, handle: int) -> None:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            self._agent.call("guest-file-close", {"handle": handle}, silence_s=2.0)

    def chunks(self, path: str, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a file from ``offset`` on, in pieces. Raises CommandFailed."""
        with self._open(path, "r") as handle:
            try:
                if offset:
                    self._agent.call("guest-file-seek", {"handle": handle, "offset": offset, "whence": 0})
                eof = False
                while not eof:
                    answer = self._agent.call("guest-file-read", {"handle": handle, "count": CHUNK})
                    data = base64.b64decode(answer["buf-b64"])
                    eof = bool(answer["eof"]) or not data
                    if data:
                        yield data
            except AgentError as error:
                raise CommandFailed(f"{self._host}: cannot read {path}: {error}") from error

    def read(self, path: str, *, offset: int = 0) -> bytes:
        """A whole file, at most 64 MiB. Raises CommandFailed (no such file ...), UsageError (too big)."""
        data = bytearray()
        for chunk in self.chunks(path, offset=offset):
            data += chunk
            if len(data) > READ_LIMIT:
                raise UsageError(f"{self._host}: {path} is larger than {READ_LIMIT >> 20} MiB: pull it into a file")
        return bytes(data)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file's content; a missing directory is made. A new file is readable by all."""
        with self._open(path, "w") as handle:
            self._write(handle, path, data)

    def push(self, local: Path, remote: str) -> None:
        """Copy a file of this machine into dom0."""
        with local.open("rb") as source, self._open(remote, "w") as handle:
            while chunk := source.read(CHUNK):
                self._write(handle, remote, chunk)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file of dom0 to this machine."""
        with local.open("wb") as target:
            for chunk in self.chunks(remote):
                target.write(chunk)

    def _write(self, handle: int, path: str, data: bytes) -> None:
        view = memoryview(data)
        while view:
            piece = base64.b64encode(view[:REQUEST]).decode("ascii")
            try:
                written = int(self._agent.call("guest-file-write", {"handle": handle, "buf-b64": piece})["count"])
            except AgentError as error:
                raise CommandFailed(f"{self._host}: cannot write {path}: {error}") from error
            view = view[written:]
