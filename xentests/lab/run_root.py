"""A run's private directories and their end: sockets, overlays, the keeper, and the sweep after runs that were killed.

Short paths (a unix socket's is at most 107 bytes) in the system's temporary directory; overlays beside the cache, since
``/tmp`` may be memory. Whatever happens to the run, nothing of it stays: see ``keeper``.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

from xentests.errors import LabError, UsageError
from xentests.lab import keeper

_LOCK = "lock"
_SCRATCH = "scratch"
_KEPT = "kept"
_LONGEST_BASE = 44
"""BASE/xt12345678/lv/lib/qemu/domain-123-xt12345678-123/monitor.sock is what libvirt makes of it."""


def base_dir() -> Path:
    """Where the roots of this user's runs are: ``TMPDIR/xentests-UID``, mode 0700, ours.

    Below ``/tmp`` where ``TMPDIR`` is so long that a socket of libvirt's would not fit into the kernel's 107 bytes.
    """
    base = Path(tempfile.gettempdir()) / f"xentests-{os.getuid()}"
    if len(str(base)) > _LONGEST_BASE:
        base = Path("/tmp") / base.name
    try:
        base.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LabError(f"cannot make {base}: {error.strerror}; set TMPDIR to a directory of yours") from error
    status = base.lstat()
    if status.st_uid != os.getuid() or base.is_symlink() or status.st_mode & 0o022:
        raise LabError(f"{base} is not ours alone (owner {status.st_uid}): remove it, or set TMPDIR")
    return base


class RunRoot:
    """The directories of one process. ``token`` is its random name and stands in every QEMU's command line."""

    _of_process: ClassVar[RunRoot | None] = None

    def __init__(self) -> None:
        self.path, self._lock = _new_root()
        self.token = self.path.name
        self._pid = os.getpid()
        self._numbers = itertools.count(1)
        self._kept = False
        # Blocked signals stay blocked over fork and exec: from its first instant no signal but SIGKILL ends the keeper.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, self.token, str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        atexit.register(self.close)

    @classmethod
    def of_process(cls) -> RunRoot:
        """The root of this process, made when first asked for.

        One for the process and not for each lab, since libvirt's embedded driver has one root for as long as its
        process lives ("already open with path").
        """
        if cls._of_process is None or cls._of_process._pid != os.getpid():
            sweep()
            cls._of_process = cls()
        return cls._of_process

    def next_number(self) -> int:
        """A number that no machine of this process has had."""
        return next(self._numbers)

    def scratch(self, cache: Path) -> Path:
        """The directory for disk overlays, beside the cache; removed with the root."""
        scratch = cache / "run" / self.token
        if not scratch.is_dir():
            scratch.mkdir(parents=True)
            with (self.path / _SCRATCH).open("a") as file:
                file.write(f"{scratch}\n")
            self._tell(f"dir {scratch}\n")
        return scratch

    def keep(self, name: str) -> None:
        """Leave the domain ``name`` running after this process; ``xentests gc --kept`` ends it."""
        self._kept = True
        with (self.path / _KEPT).open("a") as file:
            file.write(f"{name}\n")
        self._tell(f"keep {name}\n")

    def close(self) -> None:
        """End what is left, and the keeper. At the end of the process; idempotent."""
        if self._keeper.stdin is None or self._keeper.stdin.closed or self._pid != os.getpid():
            return
        if not self._kept:
            keeper.kill_qemus(self.token)
            _remove(self.path)
            self._tell("done\n")
        with contextlib.suppress(OSError):
            self._keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(5)
        os.close(self._lock)

    def _tell(self, line: str) -> None:
        if self._keeper.stdin is not None:
            with contextlib.suppress(OSError):
                self._keeper.stdin.write(line.encode())
                self._keeper.stdin.flush()


def sweep(*, kept_too: bool = False) -> int:
    """End the QEMUs and remove the directories of runs whose process is gone; returns how many runs were swept.

    A run that left a kept host behind is spared while that host lives, unless ``kept_too``.
    """
    swept = 0
    for root in base_dir().glob("xt*"):
        lock = _try_lock(root)
        if lock is None:
            continue
        try:
            names = frozenset(kept_names(root))
            if names and not kept_too and keeper.qemus(root.name):
                keeper.kill_qemus(root.name, names)
                continue
            keeper.kill_qemus(root.name)
            _remove(root)
            swept += 1
        finally:
            os.close(lock)
    return swept


def _remove(root: Path) -> None:
    """Remove a root and the scratch directories that it lists."""
    with contextlib.suppress(OSError):
        for line in (root / _SCRATCH).read_text().splitlines():
            # A root is ours alone, so the list is; still, only what is called as a scratch directory is removed.
            if Path(line).name == root.name and Path(line).parent.name == "run":
                shutil.rmtree(line, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)


def kept_names(root: Path) -> list[str]:
    """Names of the domains that the run at ``root`` asked to keep."""
    with contextlib.suppress(OSError):
        return (root / _KEPT).read_text().split()
    return []


def connect_kept(name: str) -> socket.socket:
    """A connection to the dom0 shell of a kept host. Raises :class:`UsageError` that lists those there are."""
    kept = {
        name: root
        for root in base_dir().glob("xt*")
        for name in kept_names(root)
        if any(f"guest={name},".encode() in line for _, line in keeper.qemus(name))
    }
    if name not in kept:
        known = ", ".join(sorted(kept)) or "none is left"
        raise UsageError(f"no kept host is called {name!r}; kept hosts that still run: {known}")
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(str(kept[name] / name.rpartition("-")[2] / "shell.sock"))
    return channel


def _new_root() -> tuple[Path, int]:
    """A new root and the lock that it is held by, for good: a run that starts just now may sweep it before it is."""
    while True:
        root = base_dir() / f"xt{secrets.token_hex(4)}"
        root.mkdir(mode=0o700)
        lock = _try_lock(root)
        if lock is None:
            continue
        with contextlib.suppress(OSError):
            if os.fstat(lock).st_ino == (root / _LOCK).stat().st_ino:
                return root, lock
        os.close(lock)


def _try_lock(root: Path) -> int | None:
    try:
        fd = os.open(root / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
