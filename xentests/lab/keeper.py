"""The keeper: a tiny child that outlives a killed run just long enough to end its QEMUs and remove its files.

libvirt's embedded driver cannot auto-destroy domains, and a QEMU outlives the process that started it. The keeper waits
for the end of its standard input, which the kernel closes however its parent dies. Standard library only, and no import
of this package: it is started as a file, isolated, in some 20 ms.

Input, one word pair a line: ``dir PATH`` names a directory to remove as well, ``keep NAME`` spares the domain NAME
(``--xen-keep``), ``done`` says that all is cleaned up.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_SETTLE_S = 1.0
"""How long no QEMU may have shown up before we believe that none is still on its way (a fork just before its exec)."""


def qemus(token: str) -> list[tuple[int, bytes]]:
    """Process ids and command lines of the QEMUs that carry ``token`` (a run's random name) in an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if token.encode() in line and b"qemu-system" in line:
                found.append((int(entry.name), line))
    return found


def kill_qemus(token: str, kept: frozenset[str] = frozenset(), *, settle_s: float = 0.0) -> int:
    """End the QEMUs of a run but the kept ones; returns how many. A pidfd makes a reused process id harmless."""
    killed = 0
    quiet_since = time.monotonic()
    while True:
        for pid, _ in qemus(token):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                try:
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if token.encode() not in line or any(f"guest={name},".encode() in line for name in kept):
                        continue
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    killed += 1
                    quiet_since = time.monotonic()
                finally:
                    os.close(pidfd)
        if time.monotonic() - quiet_since >= settle_s:
            return killed
        time.sleep(0.05)


def main(token: str, directories: list[str]) -> None:
    """Wait for the parent's end, then clean up; ``directories`` are removed unless a domain was kept."""
    kept = set()
    for line in sys.stdin:
        word, _, name = line.strip().partition(" ")
        if word == "done":
            return
        if word == "dir":
            directories.append(name)
        if word == "keep":
            kept.add(name)
    kill_qemus(token, frozenset(kept), settle_s=_SETTLE_S)
    if not kept:
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
