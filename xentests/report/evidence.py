"""Evidence of one host at one moment: what can be had of its console, Xen, dom0 and guests, as files in one folder.

Each collector stands alone: it has a short deadline of its own, and what it could not get is said in ``MISSING.txt``
instead of being raised. What comes from outside the host is taken first; a dom0 that does not answer a ping is asked
nothing more, so a dead host costs seconds. Files hold bytes as they came: whoever shows them cleans them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from xentests.deadline import Deadline
from xentests.text import clean, display

T = TypeVar("T")

MISSING = "MISSING.txt"
CONSOLE = "console.log"
GUEST_LOGS = "var-log-xen.txt"
DEBUG_KEYS = "0rqd"
"""dom0's registers, run queues, domains, registers of all pCPUs (xen/common/keyhandler.c, arch/x86/traps.c)."""

_HEAD_BYTES, _TAIL_BYTES = 1 << 20, 7 << 20
_OUTSIDE_S = 3.0
_PING_S = 2.0
_INSIDE_S = 5.0
_KEYS_S = 10.0
_TOTAL_S = 25.0
_LOG_BYTES = "131072"

_COMMANDS: dict[str, tuple[str, ...]] = {
    "xl-dmesg.txt": ("xl", "dmesg"),
    "dom0-dmesg.txt": ("dmesg",),
    "xl-list.txt": ("xl", "list", "--long"),
    "xl-vcpu-list.txt": ("xl", "vcpu-list"),
    "xl-info.txt": ("xl", "info", "--numa"),
    "xenstore.txt": ("xenstore-ls", "-fp"),
    "livepatches.txt": ("xen-livepatch", "list"),
    # What guests may have of the CPU; there is no such tool on Arm.
    "xen-cpuid.txt": ("sh", "-c", 'test ! -x "$0" || exec "$0" -p', "/usr/lib/xentests/xen/bin/xen-cpuid"),
    "processes.txt": ("ps", "-eo", "pid,ppid,stat,wchan:20,rss,etimes,args"),
    # xl's logs, xenstored's, the device models' and the guests' consoles (console/guest-NAME.log).
    GUEST_LOGS: ("find", "/var/log/xen", "-type", "f", "-exec", "tail", "-v", "-c", _LOG_BYTES, "{}", "+"),
}


class Machine(Protocol):
    """What is asked of the outer side: see ``xentests.lab.domain.Domain``."""

    @property
    def console_log(self) -> Path:
        """The serial console's log file."""

    def agent(self, command: str, /, *, timeout_s: float) -> Any:
        """One guest-agent command."""

    def state(self) -> str:
        """``running``, ``paused``, ``crashed`` or ``gone``."""

    def xml(self) -> str:
        """The domain XML as it runs."""


class _Output(Protocol):
    @property
    def exit_code(self) -> int: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> bytes: ...


class _Keyboard(Protocol):
    def xen_keys(self, keys: str, /) -> bool: ...


class Inside(Protocol):
    """What is asked of the inner side: see ``xentests.host.host.Host``."""

    @property
    def console(self) -> _Keyboard:
        """Takes Xen's debug keys."""

    def run(self, *argv: str, timeout_s: float) -> _Output:
        """Run a command in dom0 to its end, whatever its exit code."""


@dataclass
class Evidence:
    """What was collected of one host: the files in their order, and why each missing one is missing."""

    host: str
    folder: Path
    files: list[Path] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def text(self, path: Path, *, limit: int) -> str:
        """A collected file as it may be shown, with its middle cut out beyond ``limit`` characters."""
        return display(path.read_bytes(), limit=limit)


class _NotCollectedError(Exception):
    """A collector's reason for having nothing."""


def collect(host: str, machine: Machine, inside: Inside | None, folder: Path) -> Evidence:
    """Collect all that can be had of ``machine`` (and ``inside`` it, once its dom0 has come up) into ``folder``.

    Never raises but for what a signal raises; takes at most some 25 s, and about 5 s for a host that is dead.
    """
    evidence = Evidence(host, folder)
    deadline = Deadline(_TOTAL_S)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        evidence.missing["everything"] = _reason(error)
        return evidence
    state = _take(evidence, "state.txt", _OUTSIDE_S, lambda: b"QEMU: " + machine.state().encode() + b"\n")
    _take(evidence, "domain.xml", _OUTSIDE_S, lambda: machine.xml().encode())
    silent = "its QEMU is not running" if b"running" not in state else _silence(machine)
    if inside is not None and silent and b"running" in state:
        # Answers go to the console, which is therefore read after this.
        keyboard = inside.console
        _note(evidence, "debug keys", _KEYS_S, lambda: _press(keyboard, machine.console_log))
    _take(evidence, CONSOLE, _OUTSIDE_S, lambda: read_ends(machine.console_log))
    if inside is None:
        silent = silent or "its dom0 never became ready"
    for name, argv in _COMMANDS.items():
        if not silent and deadline.passed:
            silent = f"no time left: collecting had taken {deadline}"
        if silent or inside is None:
            evidence.missing[name] = f"not asked for: {silent}"
        elif not _ask(evidence, name, inside, argv):
            silent = f"it did not answer `{' '.join(argv[:2])}`"
    _write_missing(evidence)
    return evidence


def read_ends(path: Path) -> bytes:
    """The first MiB and the last seven of a file, and a line that says how much lies between."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= _HEAD_BYTES + _TAIL_BYTES:
            return file.read()
        head = file.read(_HEAD_BYTES)
        file.seek(size - _TAIL_BYTES)
        cut = f"\n[... {size - _HEAD_BYTES - _TAIL_BYTES} bytes left out; the whole is in {path} ...]\n"
        return head + cut.encode() + file.read()


def guarded(work: Callable[[], T], *, limit_s: float) -> T:
    """What ``work`` returns, if it does within ``limit_s`` (scaled).

    It runs in a thread of its own, since a call into a library may hang; such a thread is left behind. Raises what
    ``work`` raised, or TimeoutError.
    """
    done = threading.Event()
    result: list[T] = []
    failure: list[Exception] = []

    def target() -> None:
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001 - carried to the thread that asked, and raised there
            failure.append(error)
        finally:
            done.set()

    deadline = Deadline(limit_s)
    threading.Thread(target=target, name="evidence", daemon=True).start()
    if not done.wait(deadline.limit_s):
        raise TimeoutError(f"no answer within {deadline}")
    if failure:
        raise failure[0]
    if not result:
        raise TimeoutError("its thread ended without an answer")
    return result[0]


def _silence(machine: Machine) -> str:
    """Why dom0 cannot be asked anything; empty when it answers."""
    try:
        guarded(lambda: machine.agent("guest-ping", timeout_s=_PING_S), limit_s=_PING_S + 1)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is the reason to write down
        return f"dom0's agent does not answer ({_reason(error)})"
    return ""


def _ask(evidence: Evidence, name: str, inside: Inside, argv: tuple[str, ...]) -> bool:
    """Run one command in dom0; False when dom0 fell silent over it."""

    def output() -> bytes:
        result = inside.run(*argv, timeout_s=_INSIDE_S)
        if result.exit_code != 0 and not result.stdout:
            said = "; ".join(clean(result.stderr, limit=300).split("\n")).strip("; ")
            raise _NotCollectedError(f"exit code {result.exit_code}: {said}")
        ending = f"\n[exit code {result.exit_code}: {clean(result.stderr, limit=300).strip()}]\n"
        return result.stdout + (ending.encode() if result.exit_code != 0 else b"")

    try:
        data = guarded(output, limit_s=_INSIDE_S + 2)
    except _NotCollectedError as error:
        evidence.missing[name] = str(error)
        return True
    except Exception as error:  # noqa: BLE001 - whatever it was, it is the reason to write down
        evidence.missing[name] = _reason(error)
        return False
    _save(evidence, name, data)
    return True


def _take(evidence: Evidence, name: str, limit_s: float, work: Callable[[], bytes]) -> bytes:
    try:
        data = guarded(work, limit_s=limit_s)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is the reason to write down
        evidence.missing[name] = _reason(error)
        return b""
    _save(evidence, name, data)
    return data


def _note(evidence: Evidence, name: str, limit_s: float, work: Callable[[], None]) -> None:
    try:
        guarded(work, limit_s=limit_s)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is the reason to write down
        evidence.missing[name] = _reason(error)


def _press(keyboard: _Keyboard, log: Path) -> None:
    if f"'{DEBUG_KEYS[0]}' pressed".encode() in read_ends(log):
        return  # by whoever found that the host hangs
    if not keyboard.xen_keys(DEBUG_KEYS):
        raise _NotCollectedError("Xen did not answer all of them on the serial console")


def _save(evidence: Evidence, name: str, data: bytes) -> None:
    path = evidence.folder / name
    try:
        path.write_bytes(data)
    except OSError as error:
        evidence.missing[name] = f"cannot write {path}: {error.strerror}"
        return
    evidence.files.append(path)


def _write_missing(evidence: Evidence) -> None:
    if evidence.missing:
        lines = [f"{name}: {reason}" for name, reason in evidence.missing.items()]
        _save(evidence, MISSING, ("\n".join(lines) + "\n").encode("utf-8", "replace"))


def _reason(error: Exception) -> str:
    """One line, since messages of ours are long and end up in a list."""
    first = clean(str(error), limit=300).strip().split("\n")[0]
    if isinstance(error, _NotCollectedError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
