"""Outer tools (mmdebstrap, mke2fs, gcc ...): run one to its end within a limit and say clearly what went wrong.

Not for long-lived processes and not for anything inside a host.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xentests.deadline import Deadline
from xentests.errors import LabError
from xentests.text import tail


class ToolFailed(LabError):
    """An outer tool ended with a non-zero exit code. ``output`` holds stdout and stderr as they came."""

    def __init__(self, message: str, *, output: bytes, exit_code: int) -> None:
        super().__init__(message)
        self.output = output
        self.exit_code = exit_code


def tool_path() -> str:
    """PATH with the system directories at its end: mke2fs and depmod live in /usr/sbin, which Debian's users lack."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def find_tool(name: str) -> Path | None:
    """Where ``run_tool`` will find ``name``, or None."""
    found = shutil.which(name, path=tool_path())
    return Path(found) if found else None


def run_tool(
    argv: Sequence[str | Path],
    *,
    limit_s: float = 120.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_data: bytes = b"",
    package: str = "",
    with_stderr: bool = False,
) -> bytes:
    """Run ``argv`` and return its stdout. stderr is kept for the message, or returned too, ``with_stderr``, mixed in.

    ``package`` names the Debian package that brings the tool, for the advice when it is missing. The child gets its
    own session, so that Ctrl-C reaches us first and the whole process group ends with the deadline.
    Raises :class:`ToolFailed` or :class:`LabError` (missing tool, deadline passed).
    """
    words = [str(word) for word in argv]
    deadline = Deadline(limit_s)
    stderr_to = subprocess.STDOUT if with_stderr else subprocess.PIPE
    process = _start(words, env=env, cwd=cwd, package=package, stdin=subprocess.PIPE, stderr=stderr_to)
    try:
        stdout, stderr = process.communicate(input_data, timeout=deadline.limit_s)
    except subprocess.TimeoutExpired as error:
        _end(process)
        raise LabError(f"{shlex.join(words)[:300]}: not done within {deadline}; it was ended") from error
    except BaseException:
        _end(process)
        raise
    if process.returncode != 0:
        raise ToolFailed(
            f"{shlex.join(words)[:300]}: exit code {process.returncode} after {deadline.elapsed_s:.1f} s\n"
            f"{tail(stderr or stdout)}",
            output=stdout + (stderr or b""),
            exit_code=process.returncode,
        )
    return stdout


def follow_tool(
    argv: Sequence[str | Path],
    *,
    on_line: Callable[[str], None],
    limit_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    package: str = "",
) -> int:
    """Run ``argv`` and hand out each line of its stdout and stderr as it comes; returns its exit code.

    Raises :class:`LabError` for a missing tool and a passed deadline, which ends the whole process group.
    """
    words = [str(word) for word in argv]
    deadline = Deadline(limit_s)
    process = _start(words, env=env, cwd=cwd, package=package, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    late = threading.Timer(deadline.limit_s, _end, [process])
    late.start()
    try:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                on_line(line.decode("utf-8", "replace").rstrip("\n"))
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        late.cancel()
    if deadline.elapsed_s >= deadline.limit_s:
        raise LabError(f"{shlex.join(words)[:300]}: not done within {deadline}; it was ended")
    return code


def _start(
    words: Sequence[str], *, env: Mapping[str, str] | None, cwd: Path | None, package: str, stdin: int, stderr: int
) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C reaches us first and the whole process group can be ended."""
    try:
        return subprocess.Popen(
            words,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "PATH": tool_path(), "LC_ALL": "C.UTF-8", **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        advice = f"install it: apt-get install {package}" if package else "run `xentests doctor`"
        raise LabError(f"{words[0]} is not installed; {advice}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
