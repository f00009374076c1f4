"""The terminal side of ``xentests shell``: a person's terminal joined to a root shell in dom0, until Ctrl-] or its end.

Guest output goes to the terminal as it is: the person asked for a terminal of that host. All else in this project
shows guest text cleaned.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import termios
import tty
from collections.abc import Iterator

LEAVE = 0x1D
"""Ctrl-], as telnet and ``virsh console`` have it."""


def join(channel: socket.socket, *, stdin: int = 0, stdout: int = 1) -> None:
    """Pass bytes between a terminal and ``channel`` until Ctrl-] is typed, either side ends, or the host is gone."""
    size = shutil.get_terminal_size()
    with _raw(stdin):
        # The shell in dom0 cannot see our window: tell it, and clear what telling it printed.
        channel.sendall(f"stty rows {size.lines} cols {size.columns}; clear\n".encode())
        while True:
            readable, _, _ = select.select([stdin, channel.fileno()], [], [])
            if channel.fileno() in readable:
                try:
                    data = channel.recv(65536)
                except ConnectionError:
                    return
                if not data:
                    return
                _write_all(stdout, data)
            if stdin in readable:
                typed = os.read(stdin, 4096)
                before, leave, _ = typed.partition(bytes([LEAVE]))
                with contextlib.suppress(ConnectionError):
                    channel.sendall(before)
                if leave or not typed:
                    return


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
