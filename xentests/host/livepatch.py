"""``xen-livepatch`` in dom0, typed: upload, list, apply, revert, replace, unload; a refusal carries its errno.

Building payloads is ``xentests.payload``'s business. Formats and exit codes are those of tools/misc/xen-livepatch.c,
which differ little from 4.14 to 4.20: 4.20 adds ``--force`` before the command and takes no abbreviated commands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xentests.deadline import Deadline, until
from xentests.errors import ProductFailure, UsageError
from xentests.host.command import Result
from xentests.host.livepatch_sysctl import LivepatchSysctl, PayloadLike
from xentests.payload.sysctl import error_name
from xentests.text import clean, tail

if TYPE_CHECKING:
    from xentests.host.host import Host

_SPOOL = "/run/xentests/livepatch"
_RETRY = 2
"""xen-livepatch's exit code for "try again": a time-out, or another operation was in progress."""

_ERRNO = re.compile(r"^Error (\d+): ", re.MULTILINE)
_STATES = re.compile(r"^Current state: (?P<now>.*)\nExpected state: (?P<wanted>.*)$", re.MULTILINE)
_LISTED = re.compile(
    r"^(?P<name>.*?) *\| (?P<state>CHECKED|APPLIED|unknown)(?: \((?P<rc>\d+), (?P<why>[^)]*)\))? +\| ?(?P<metadata>.*)$"
)


class LivepatchError(ProductFailure):
    """xen-livepatch refused.

    ``errno`` is the name of the error (``EINVAL``), or empty when the tool gave none; ``state`` is the state the
    payload was in when that was the reason. ``result`` is the whole answer. That Xen refuses may be just what a test
    wants: then this is caught with pytest.raises.
    """

    def __init__(self, result: Result) -> None:
        super().__init__(str(result))
        self.result = result
        said = clean(result.stderr)
        number = _ERRNO.search(said)
        self.errno = error_name(-int(number.group(1))) if number else ""
        if not self.errno and result.exit_code == _RETRY:
            self.errno = "EAGAIN"
        if not self.errno and "must be no more than" in said:
            self.errno = "EINVAL"
        state = _STATES.search(said)
        self.state = state["now"] if state else ""


@dataclass(frozen=True)
class PayloadInfo:
    """A line of ``xen-livepatch list``: ``error`` is the errno name of the last failed action, or empty."""

    name: str
    state: str
    error: str
    metadata: str


def parse_list(text: str) -> list[PayloadInfo]:
    """The output of ``xen-livepatch list``, in Xen's order."""
    found = []
    for line in text.split("\n"):
        match = _LISTED.match(line)
        if match is None or match["name"].strip() == "ID":
            continue
        error = error_name(-int(match["rc"])) if match["rc"] else ""
        found.append(PayloadInfo(match["name"], match["state"], error, match["metadata"]))
    return found


class LivePayload:
    """A payload that Xen has taken. Actions raise LivepatchError when they are refused.

    ``patience_s``: how long an action is tried again while xen-livepatch says that it should be (a CPU did not come to
    the meeting within the 30 ms that the tool allows; emulated CPUs are slow). 0 takes the first answer.
    """

    def __init__(self, livepatch: Livepatch, name: str) -> None:
        self._livepatch = livepatch
        self.name = name

    def __repr__(self) -> str:
        return f"<payload {self.name!r}>"

    def apply(self, *, nodeps: bool = False, patience_s: float = 10.0) -> Result:
        """CHECKED to APPLIED. ``nodeps``: check the dependency against the hypervisor's own build-id only."""
        return self._act("apply", *(["--nodeps"] if nodeps else []), patience_s=patience_s)

    def revert(self, *, patience_s: float = 10.0) -> Result:
        """APPLIED to CHECKED."""
        return self._act("revert", patience_s=patience_s)

    def replace(self, *, patience_s: float = 10.0) -> Result:
        """Apply this one and revert all others."""
        return self._act("replace", patience_s=patience_s)

    def unload(self, *, patience_s: float = 10.0) -> Result:
        """CHECKED to gone."""
        return self._act("unload", patience_s=patience_s)

    @property
    def info(self) -> PayloadInfo | None:
        """What ``list`` says of it; None when Xen does not have it."""
        return next((entry for entry in self._livepatch.list() if entry.name == self.name), None)

    @property
    def state(self) -> str:
        """``CHECKED`` or ``APPLIED``; empty when Xen does not have it."""
        info = self.info
        return info.state if info else ""

    def _act(self, action: str, *flags: str, patience_s: float) -> Result:
        return self._livepatch.act(action, self.name, *flags, patience_s=patience_s)


class Livepatch:
    """``host.livepatch``: what ``xen-livepatch`` does."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.sysctl = LivepatchSysctl(host)
        """The hypercalls themselves, without xen-livepatch's checks and pauses."""

    def list(self) -> list[PayloadInfo]:
        """Every payload Xen has."""
        result = self._host.run("xen-livepatch", "list")
        if result.exit_code != 0:
            raise LivepatchError(result)
        return parse_list(result.text)

    def upload(self, payload: PayloadLike | bytes | Path, *, name: str = "", force: bool = False) -> LivePayload:
        """Give Xen a payload; it is CHECKED then. ``force`` (4.20 on) lets Xen skip some checks.

        Raises LivepatchError when Xen refuses the file, UsageError when plain bytes come without a name.
        """
        if isinstance(payload, Path):
            name, data = name or payload.stem, payload.read_bytes()
        elif isinstance(payload, bytes):
            data = payload
        else:
            name, data = name or payload.name, payload.content
        if not name:
            raise UsageError("upload(bytes) needs name=...: Xen knows a payload by its name")
        path = f"{_SPOOL}.livepatch"
        self._host.write_file(path, data)
        flags = ["--force"] if force else []
        result = self._host.run("xen-livepatch", *flags, "upload", name, path)
        if result.exit_code != 0:
            raise LivepatchError(result)
        self.sysctl.uploaded.append(name)
        return LivePayload(self, name)

    def payload(self, name: str) -> LivePayload:
        """A handle for a payload by name, whether Xen has it or not."""
        return LivePayload(self, name)

    def act(self, action: str, name: str, *flags: str, patience_s: float = 0.0) -> Result:
        """One of ``apply``, ``revert``, ``replace``, ``unload`` on a payload by name."""
        deadline = Deadline(patience_s)
        last: Result | None = None

        def attempt() -> bool:
            nonlocal last
            last = self._host.run("xen-livepatch", action, name, *flags)
            return last.exit_code != _RETRY or deadline.passed

        until(attempt, what=action, deadline=Deadline(patience_s + 600), error=ProductFailure)
        assert last is not None
        if last.exit_code != 0:
            raise LivepatchError(last)
        if b"failed" in last.stdout:
            raise ProductFailure(f"xen-livepatch says failed and ends with exit code 0: {tail(last.stdout)}")
        return last
