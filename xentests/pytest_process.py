"""A pytest of its own: in a session of its own, ended with its parent, and interrupted once before it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from xentests.deadline import time_scale
from xentests.errors import LabError

_PATIENCE_S = 60.0
"""How long an interrupted pytest has to collect its evidence, and to end its build and its machines."""


class PytestProcess:
    """``arguments`` are pytest's, run in ``cwd``; its output is appended to ``log``. LabError if it does not start.

    ``keep_open`` are descriptors that it inherits.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self._interrupted = False
        try:
            with log.open("ab") as file:
                self._process = subprocess.Popen(
                    # As by Ctrl-C when this process dies, however that is.
                    ["setpriv", "--pdeathsig", "INT", "--", sys.executable, "-m", "pytest", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=None if environment is None else dict(environment),
                    pass_fds=tuple(keep_open),
                    start_new_session=True,
                )
        except OSError as error:
            raise LabError(f"pytest does not start: {error}") from error

    def wait(self, limit_s: float) -> int | None:
        """Its exit status, None if it is still at work after ``limit_s`` seconds."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def poll(self) -> int | None:
        """Its exit status, None while it is at work."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Ask it to end, once: a second Ctrl-C would have it drop what it collects."""
        if not self._interrupted and self.poll() is None:
            self._interrupted = True
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """End it, if it is still at work: asked first, then with all that it has started in its session."""
        self.interrupt()
        if self.wait(_PATIENCE_S * time_scale()) is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def said(code: int) -> str:
    """An exit status of pytest's in words."""
    with contextlib.suppress(ValueError):
        if code < 0:
            return f"signal {signal.Signals(-code).name}"
    words = {2: "interrupted, or a test that cannot be collected", 3: "internal error", 4: "wrong call"}
    return f"{code} ({words.get(code, 'unknown')})"
