"""The only module that talks to libvirt: connections, domains, the monitor and the guest agent; errors translated.

By default libvirt's QEMU driver runs inside this process (``qemu:///embed``), with a root directory of the run's own:
no daemon, no system state. Any other URI works the same way; there domains are auto-destroyed with the connection.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What libvirt's own logging says would land on the terminal; every error is raised anyway. Read at import time.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "3:file:/dev/null")

import libvirt
import libvirt_qemu
import psutil

from xentests.deadline import until
from xentests.errors import AgentError, AgentUnresponsive, DomainGone, LabError, UsageError
from xentests.text import clean

EMBED = "qemu:///embed"
_MINIMUM = {"libvirt": (9, 0, 0), "QEMU": (7, 2, 0)}

# What the embedded driver must not do as root: change owners, confine, or want a log daemon. `fd:` migration is not
# reachable from afar and QEMU 7.2 knows no `file:`, so `exec:` must be allowed.
# The user is the one we are (libvirt/src/qemu/qemu.conf.in: "+" before a number): as anybody but root the driver could
# not give its directories to somebody else.
_QEMU_CONF = """\
user = "+{user}"
group = "+{group}"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
seccomp_sandbox = 0
"""

_LOOK_FOR_ORPHANS_S = 0.3

_FATAL = re.compile(r"(?:\*\* *)?ERROR:|Bail out!|(?:\S+Z )?qemu-system-\S+: (?!warning:)|.*\bAssertion\b")
_GONE = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}
_AGENT_SILENT = {libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED, libvirt.VIR_ERR_OPERATION_TIMEOUT}
# What libvirt's qemu_agent.c says when the agent itself answered (qemuAgentCheckError), or answered too much; whatever
# else goes wrong there ("End of file", "Unable to read", "Error while processing") is the loss of its channel.
_AGENT_REFUSED = ("QEMU agent command", "No complete agent response")


class MonitorError(LabError):
    """QEMU's monitor answered a command with an error; the text is QEMU's."""


class _EventLoop:
    """libvirt's event loop, one for the process: without it neither the agent nor the monitor is ever heard."""

    _lock = threading.Lock()
    _running = False

    @classmethod
    def ensure(cls) -> None:
        with cls._lock:
            if cls._running:
                return
            # libvirt prints every error to stderr unless told otherwise; ours are raised.
            libvirt.registerErrorHandler(lambda context, error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=cls._run, name="libvirt-events", daemon=True).start()
            cls._running = True

    @staticmethod
    def _run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()


class Connection:
    """One open connection. ``root`` is the embedded driver's directory; ``cache`` its shared capability cache."""

    def __init__(self, uri: str, *, root: Path, cache: Path) -> None:
        self.uri = uri
        self._root = root
        self.embedded = uri.partition("?")[0] == EMBED
        _EventLoop.ensure()
        if self.embedded:
            _adopt_orphans()
        target = f"{EMBED}?root={_prepare_root(root, cache)}" if self.embedded else uri
        try:
            with _on_one_cpu(), _burying_orphans():
                self._connection = libvirt.open(target)
        except libvirt.libvirtError as error:
            raise _open_error(uri, error) from error
        try:
            self._check_versions()
        except BaseException:
            self.close()
            raise

    @property
    def versions(self) -> dict[str, str]:
        """Versions of libvirt and of the QEMU that it drives, as ``{"libvirt": "9.0.0", "QEMU": "7.2.22"}``."""
        with _translated("asking for versions"), _burying_orphans():
            return {
                "libvirt": _dotted(self._connection.getLibVersion()),
                "QEMU": _dotted(self._connection.getVersion()),
            }

    def _check_versions(self) -> None:
        for name, text in self.versions.items():
            if tuple(int(word) for word in text.split(".")) < _MINIMUM[name]:
                wanted = ".".join(str(number) for number in _MINIMUM[name])
                raise LabError(
                    f"{name} {text} on {self.uri} is too old: {wanted} or newer is needed (Debian 12 has it)"
                )

    def create(self, xml: str) -> DomainHandle:
        """Start a transient domain, paused before its first instruction."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        if not self.embedded:
            flags |= libvirt.VIR_DOMAIN_START_AUTODESTROY
        with _translated("starting a machine"), _burying_orphans():
            domain = self._connection.createXML(xml, flags)
        return DomainHandle(domain, self.log(domain.name()) if self.embedded else None)

    def log(self, name: str) -> Path:
        """What the QEMU of a domain said to its standard error, of the embedded driver."""
        return self._root / "log" / "qemu" / f"{name}.log"

    def free_memory_mib(self) -> int:
        """Free memory of the machine behind the connection, in MiB."""
        with _translated("asking for free memory"):
            return int(self._connection.getFreeMemory() >> 20)

    def host_cpu(self) -> str:
        """The CPU model of the machine behind the connection, as libvirt names it."""
        with _translated("asking for the host's CPU"):
            return str(self._connection.getInfo()[0])

    def close(self) -> None:
        """Close the connection; domains of a daemon end with it."""
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()


class DomainHandle:
    """One running domain, by libvirt, and its QEMU's ``log``. Calls translate libvirt's errors and say which domain."""

    def __init__(self, domain: Any, log: Path | None = None) -> None:
        self._domain = domain
        self._log = log
        self.name: str = domain.name()

    def resume(self) -> None:
        """Let the CPUs run."""
        with _translated(f"resuming {self.name}"):
            self._domain.resume()

    def pause(self) -> None:
        """Stop the CPUs."""
        with _translated(f"pausing {self.name}"):
            self._domain.suspend()

    def reset(self) -> None:
        """Press the machine's reset button."""
        with _translated(f"resetting {self.name}"):
            self._domain.reset(0)

    def nmi(self) -> None:
        """Inject a non-maskable interrupt."""
        with _translated(f"injecting an NMI into {self.name}"):
            self._domain.injectNMI(0)

    def xml(self) -> str:
        """The domain's XML as it runs."""
        with _translated(f"reading the XML of {self.name}"):
            return str(self._domain.XMLDesc(0))

    def state(self) -> str:
        """``running``, ``paused``, ``crashed`` or ``gone``."""
        names = {
            libvirt.VIR_DOMAIN_RUNNING: "running",
            libvirt.VIR_DOMAIN_BLOCKED: "running",
            libvirt.VIR_DOMAIN_PAUSED: "paused",
            libvirt.VIR_DOMAIN_CRASHED: "crashed",
            libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
        }
        try:
            return names.get(self._domain.state(0)[0], "gone")
        except libvirt.libvirtError:
            return "gone"

    def reap(self, pid: int) -> None:
        """Wait, in the background, for the end of the machine's QEMU, which is our child on the embedded driver.

        Whoever kills it, libvirt polls for up to 80 s until the process id is free, in the driver's one worker thread:
        the guest agents of all other machines would be silent for as long.
        """
        threading.Thread(target=_reap, args=(pid,), name=f"reap-{self.name}", daemon=True).start()

    def destroy(self, pid: int | None = None) -> None:
        """End the machine and return when libvirt knows it; fine if it is gone already. ``pid`` is its QEMU, if known.

        libvirt polls until the process id is free, so a QEMU that is our child must be waited for meanwhile. This is
        libvirt's own call rather than the monitor's ``quit``: that ends in the one worker thread of the driver, and
        the guest agents of all other machines wait behind it.
        """
        reaper = threading.Thread(target=_reap, args=(pid,), name=f"reap-{self.name}", daemon=True)
        if pid is not None:
            reaper.start()
        with contextlib.suppress(libvirt.libvirtError):
            self._domain.destroy()

    def monitor(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run one QMP command and return its ``return`` value; :class:`MonitorError` with QEMU's text."""
        message = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        with _translated(f"{command} on the monitor of {self.name}"):
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(self._domain, json.dumps(message), 0))
        if "error" in answer:
            raise MonitorError(f"{self.name}: QEMU refused {command}: {clean(str(answer['error'].get('desc')))}")
        return answer.get("return")

    def agent(self, command: str, arguments: Mapping[str, object] | None, *, timeout_s: float) -> Any:
        """Run one guest-agent command within ``timeout_s`` (whole seconds count) and return its ``return`` value."""
        message = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        limit = max(1, int(timeout_s + 0.999))
        try:
            text = libvirt_qemu.qemuAgentCommand(self._domain, json.dumps(message), limit, 0)
        except libvirt.libvirtError as error:
            said = clean(str(error.get_error_message()))
            if error.get_error_code() in _AGENT_SILENT or ("agent" in said and "not connected" in said):
                raise AgentUnresponsive(
                    f"{self.name}: no answer to {command} within {limit} s ({said})",
                    delivered="not connected" not in said and "not available" not in said,
                ) from error
            if self.state() != "gone" and any(words in said for words in _AGENT_REFUSED):
                raise AgentError(f"{self.name}: the guest agent refused {command}: {said}") from error
            if "domain is not running" in said:
                raise AgentUnresponsive(f"{self.name}: {command} cannot be asked, its CPUs stand still") from error
            raise self._channel_lost(command, said) from error
        return json.loads(text).get("return")

    def _channel_lost(self, doing: str, said: str) -> LabError:
        """The socket of the agent closed: QEMU has ended (libvirt takes a moment to know), or the port was taken."""
        try:
            until(lambda: self.state() == "gone", what="end of QEMU", deadline=5.0, error=LabError)
        except LabError:
            return AgentUnresponsive(f"{self.name}: the connection to its agent broke during {doing} ({said})")
        return _gone(self.name, f"{doing}: {said}", _last_words(self._log))


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        said = clean(str(error.get_error_message() or error))
        if error.get_error_code() in _GONE:
            raise _gone(doing, said) from error
        if "emulator" in said.lower():
            said += ". Install QEMU for this architecture: apt-get install qemu-system-x86 qemu-system-arm"
        raise LabError(f"{doing}: libvirt says: {said}") from error


def _gone(doing: str, said: str, last_words: str = "") -> DomainGone:
    if last_words:
        return DomainGone(
            f"{doing}: its QEMU is gone ({said}). It said before: {last_words}. Report that to QEMU's makers"
        )
    return DomainGone(
        f"{doing}: its QEMU is gone ({said}). It was killed or crashed: look at dmesg for the out-of-memory killer, "
        "and at the domain's QEMU log in the evidence folder"
    )


def _last_words(log: Path | None) -> str:
    """The assertion or error that a QEMU ended with, if its log has one; libvirt's own lines begin with a date."""
    try:
        text = clean(log.read_bytes()[-4096:]) if log else ""
    except OSError:
        return ""
    found = [line for line in text.splitlines() if _FATAL.match(line)]
    return found[-1] if found else ""


def _adopt_orphans() -> None:
    """Become the parent of the QEMUs that libvirt starts as daemons (prctl(2), PR_SET_CHILD_SUBREAPER).

    Where process 1 is no real init, dead daemons stay in the process table for seconds, and libvirt waits for them.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


@contextlib.contextmanager
def _burying_orphans() -> Iterator[None]:
    """Wait for dead QEMUs that libvirt started as daemons, as an init would, while libvirt may be probing QEMU.

    A probed QEMU is killed, and libvirt polls for 40 s until its process id is free: nobody but us can free it, being
    its parent by ``_adopt_orphans``. One that libvirt itself waits for is gone at the second look.
    """
    over = threading.Event()

    def bury() -> None:
        seen: set[int] = set()
        while not over.wait(_LOOK_FOR_ORPHANS_S):
            dead = {child.pid for child in psutil.Process().children() if _is_dead_qemu(child)}
            for pid in dead & seen:
                _reap(pid)
            seen = dead

    threading.Thread(target=bury, name="libvirt's orphans", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _is_dead_qemu(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.name().startswith(("qemu-system", "ld-linux")))
    return False


@contextlib.contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Stay on the first CPU allowed to us.

    libvirt throws its cached knowledge of QEMU away (8 s to find anew) when the CPUID leaves it read at the last start
    are not those of now; on some machines a leaf differs from CPU to CPU.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _prepare_root(root: Path, cache: Path) -> Path:
    etc = root / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    (etc / "qemu.conf").write_text(_QEMU_CONF.format(user=os.geteuid(), group=os.getegid()))
    cache.mkdir(parents=True, exist_ok=True)
    link = root / "cache"
    if not link.is_symlink():
        # The first machine ever costs seconds of probing QEMU; libvirt keeps the answers below this directory.
        link.symlink_to(cache)
    return root


def _open_error(uri: str, error: libvirt.libvirtError) -> LabError | UsageError:
    said = clean(str(error.get_error_message() or error))
    code = error.get_error_code()
    if code in (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_CONNECT) and "embed" not in uri:
        return UsageError(f"--xen-lab-uri {uri}: libvirt knows no such connection ({said}); try {EMBED}")
    advice = "install libvirt's QEMU driver: apt-get install libvirt-daemon-driver-qemu; then `xentests doctor`"
    if shutil.which("qemu-system-x86_64") is None:
        advice = "install QEMU: apt-get install qemu-system-x86 qemu-system-arm; then `xentests doctor`"
    return LabError(f"cannot open {uri}: libvirt says: {said}. {advice if uri.startswith(EMBED) else 'Is it running?'}")


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def libvirt_user_exists() -> bool:
    """Whether the user ``libvirt-qemu``, which the embedded driver looks up as root, exists."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("libvirt-qemu") is not None
    return False
