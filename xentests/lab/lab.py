"""The lab: boots machines cold, freezes a booted one into a template, and clones templates in a tenth of a second.

One lab is one libvirt connection and one set of private directories; runs and xdist workers each have their own and
share nothing but the store. What happens inside a machine (when it is ready, what to prepare) comes in as callables.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from xentests.errors import LabError, LabFull, UsageError
from xentests.image.image import Image
from xentests.lab import template
from xentests.lab.admission import Admission
from xentests.lab.domain import Domain
from xentests.lab.domain_xml import ARM64_KERNEL_ROOM, BootFiles, DomainFiles, domain_xml, stick_file
from xentests.lab.emulator import Emulator
from xentests.lab.images import make_overlay, make_stick
from xentests.lab.libvirt_driver import EMBED, Connection
from xentests.lab.machine import Machine
from xentests.lab.run_root import RunRoot
from xentests.lab.store import Store, key_of
from xentests.lab.template import Template
from xentests.release.spec import SYSTEM_QEMU

_STANDBY_AFTER_S = 0.5
"""When the next clone is made after one was handed out: making it at once would slow the first answer of that one."""

_STANDBYS = 2
"""How many are kept at most: those of templates that nobody asks for any more would hold memory for nothing."""

_WAIT_S, _GIANT_WAIT_S = 60.0, 300.0
"""How long a machine waits for others to end and make room; a giant may need that of all of them."""

Step = Callable[[Domain], object]


@dataclass(frozen=True)
class _Plan:
    """What a machine is started from. ``backing`` is the image below a new overlay, as (path, format).

    ``memory`` is the RAM file, mapped shared unless ``private``; ``disk`` an overlay that lives outside the run's own
    directories; ``loads`` the template whose state is loaded.
    """

    image: Image
    machine: Machine
    backing: tuple[Path, str] | None = None
    memory: Path | None = None
    disk: Path | None = None
    loads: Template | None = None
    private: bool = False


class Lab:
    """Where machines run. A context manager; leaving it ends every machine that was not kept.

    ``run_dir`` receives a directory of logs for machines that nobody gave one (templates in the making, standbys).
    ``accelerator`` is ``tcg`` or ``kvm``. ``find_qemu`` has the emulator of a machine whose QEMU is not the system's.
    """

    def __init__(
        self,
        store: Store,
        *,
        run_dir: Path,
        uri: str = EMBED,
        accelerator: str = "tcg",
        find_qemu: Callable[[Machine], Emulator] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.store = store
        self.uri = uri
        self.accelerator = accelerator
        self._find_qemu = find_qemu
        self._say = say
        self._run_dir = run_dir.absolute()
        self.root = RunRoot.of_process()
        self._scratch = self.root.scratch(store.root.absolute())
        self._lock = threading.Lock()
        self._live: dict[str, Domain] = {}
        self._standbys: dict[str, Future[Domain]] = {}
        self._background = ThreadPoolExecutor(2, thread_name_prefix="lab")
        self._closed = False
        self._connection = Connection(uri, root=self.root.path / "lv", cache=store.root.absolute() / "libvirt")
        available = None if self._connection.embedded else self._connection.free_memory_mib
        self._admission = Admission(self.root.path, number=self.root.next_number(), available_mib=available)
        self._versions = self._connection.versions

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def facts(self, machine: Machine) -> dict[str, str]:
        """Versions and facts of what is below a machine, for reports and keys: QEMU, libvirt, accelerator, host CPU."""
        of = "" if machine.qemu == SYSTEM_QEMU else f" of {machine.qemu}"
        return {
            "QEMU": self._versions_of(machine)["QEMU"] + of,
            "libvirt": self._versions["libvirt"],
            "lab": self.uri,
            "accelerator": self.accelerator,
            "host CPU": template.outer_cpu().get("model name", template.outer_cpu()["architecture"]),
        }

    # -- machines -----------------------------------------------------------------------------------------------

    def boot(self, image: Image, machine: Machine, *, name: str, log_dir: Path) -> Domain:
        """Start a machine cold; returns when its CPUs run."""
        plan = _Plan(image, machine, backing=(image.root_disk, "raw"))
        wait_s = _GIANT_WAIT_S if machine.giant else _WAIT_S
        try:
            domain = self._start(plan, name=name, log_dir=log_dir, wait_s=0.0 if self._standbys else wait_s)
        except LabFull:
            if not self._drop_standbys():
                raise
            domain = self._start(plan, name=name, log_dir=log_dir, wait_s=wait_s)
        domain.resume()
        return domain

    def template(self, image: Image, machine: Machine, *, ready: Step) -> Template:
        """The template of a machine booted from ``image``; boots one and freezes it unless the store has it.

        ``ready`` returns when the booted machine is fit to be frozen, and raises when it never will be.
        """

        def build(target: Path) -> dict[str, object]:
            plan = _Plan(
                image,
                machine,
                backing=(image.root_disk, "raw"),
                memory=target / template.RAM,
                disk=target / template.DISK,
            )
            domain = self._start(plan, name=f"template {image.release}", log_dir=self._log_dir("template"))
            domain.resume()
            return self._freeze(domain, target, ready)

        key = self._template_key(image, machine, "boot 2")
        what = f"template of {image.release} {machine.arch}"
        return Template(self.store.get("template", key, build, what=what), image, machine)

    def derive(self, base: Template, *, key: str, prepare: Step) -> Template:
        """A template made from another: cloned, prepared (a guest started, a script armed) and frozen again.

        ``key`` names everything that ``prepare`` does; change it when ``prepare`` changes.
        """

        shown = key.partition("\n")[0]  # a key may hold a script, and an error's first line is its summary

        def build(target: Path) -> dict[str, object]:
            sticks = [stick_file(number) for number in range(base.machine.usb_sticks)]
            for name in (template.RAM, template.DISK, *sticks):
                template.copy_sparse(base.entry.file(name), target / name)
            plan = _Plan(
                base.image, base.machine, memory=target / template.RAM, disk=target / template.DISK, loads=base
            )
            name = f"template {base.image.release} ({shown[:20].strip()})"
            domain = self._start(plan, name=name, log_dir=self._log_dir("derived"))
            domain.resume()
            return self._freeze(domain, target, prepare)

        full_key = self._template_key(base.image, base.machine, base.key, base.entry.digest, key)
        what = f"template of {base.image.release} {base.machine.arch} with {shown[:40].strip()}"
        return Template(self.store.get("template", full_key, build, what=what), base.image, base.machine)

    def clone(self, source: Template, *, name: str, log_dir: Path, standby: bool = True) -> Domain:
        """A running machine, pristine as frozen, with RAM and disk of its own.

        The next clone is prepared in the background, up to the point where only its CPUs stand still; ``standby=False``
        prepares none (the last clone, or a measurement of what it saves).
        """
        domain = self._take_standby(source, name, log_dir)
        if domain is None:
            try:
                domain = self._load(source, name=name, log_dir=log_dir)
            except LabFull:
                if not self._drop_standbys():
                    raise
                domain = self._load(source, name=name, log_dir=log_dir)
        domain.resume()
        if standby:
            later = threading.Timer(_STANDBY_AFTER_S, self.prepare_standby, [source])
            later.daemon = True
            later.start()
        return domain

    def prepare_standby(self, source: Template) -> Future[Domain] | None:
        """Have the next clone of ``source`` made in the background; None when the lab is closing."""
        with self._lock:
            if self._closed:
                return None
            waiting = self._standbys.get(source.key)
            if waiting is None:
                while len(self._standbys) >= _STANDBYS:
                    self._background.submit(self._end_standby, self._standbys.pop(next(iter(self._standbys))))
                waiting = self._background.submit(self._load, source, name="standby", log_dir=None, wait_s=0.0)
                self._standbys[source.key] = waiting
            return waiting

    def keep(self, domain: Domain) -> None:
        """Leave ``domain`` running when this run ends; ``xentests gc --kept`` ends it then."""
        self.root.keep(domain.libvirt_name)
        with self._lock:
            self._live.pop(domain.libvirt_name, None)

    def close(self) -> None:
        """End its machines and its connection. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._drop_standbys()
        self._background.shutdown(wait=True)
        for domain in list(self._live.values()):
            domain.end()
            self._ended(domain)
        self._connection.close()

    # -- starting and ending ------------------------------------------------------------------------------------

    def _load(self, source: Template, *, name: str, log_dir: Path | None, wait_s: float = _WAIT_S) -> Domain:
        plan = _Plan(
            source.image,
            source.machine,
            backing=(source.entry.file(template.DISK), "qcow2"),
            memory=source.entry.file(template.RAM),
            loads=source,
            private=True,
        )
        return self._start(plan, name=name, log_dir=log_dir or self._log_dir("standby"), wait_s=wait_s)

    def _start(self, plan: _Plan, *, name: str, log_dir: Path, wait_s: float = _WAIT_S) -> Domain:
        """Start a machine as planned, paused, with its template's state loaded if it has one."""
        if plan.machine.arch == "arm64" and plan.image.dom0_kernel.stat().st_size > ARM64_KERNEL_ROOM:
            room = ARM64_KERNEL_ROOM >> 20
            raise LabError(
                f"{name}: {plan.image.dom0_kernel} is larger than the {room} MiB there are for a dom0 kernel"
            )
        number = self.root.next_number()
        libvirt_name = f"{self.root.token}-{number}"
        sockets = self.root.path / str(number)
        scratch = self._scratch / str(number)
        files = DomainFiles(
            disk=plan.disk or scratch / template.DISK,
            console_log=log_dir.absolute() / "console.log",
            sockets=sockets,
            memory=plan.memory,
            memory_shared=plan.memory is not None and not plan.private,
            incoming=plan.loads is not None,
        )
        self._admission.reserve(libvirt_name, plan.machine.reserved_mib, wait_s=wait_s)
        with contextlib.ExitStack() as undo:
            undo.callback(self._admission.release, libvirt_name)
            for directory in (sockets, scratch):
                directory.mkdir()
                undo.callback(shutil.rmtree, directory, ignore_errors=True)
            log_dir.mkdir(parents=True, exist_ok=True)
            if plan.backing is not None:
                make_overlay(files.disk, *plan.backing)
                for number in range(plan.machine.usb_sticks):
                    frozen = plan.loads.entry.file(stick_file(number)) if plan.loads else None
                    make_stick(files.stick(number), frozen)
            log = plan.loads.entry.file(template.BOOT_LOG).read_bytes() if plan.loads else b""
            files.console_log.write_bytes(log)
            boot = BootFiles(plan.image.hypervisor, plan.image.dom0_kernel, plan.image.dom0_initrd)
            emulator = self._emulator(plan.machine)
            xml = domain_xml(
                name=libvirt_name,
                machine=plan.machine,
                boot=boot,
                files=files,
                accelerator=self.accelerator,
                emulator=str(emulator.path) if emulator else "",
                qemu=self._versions_of(plan.machine)["QEMU"],
            )
            handle = self._connection.create(xml)
            undo.callback(handle.destroy)
            domain = Domain(
                handle, name=name, machine=plan.machine, files=files, console_start=len(log), closed=self._close_later
            )
            domain.reap()
            if plan.machine.giant:
                domain.watch()
            if plan.loads is not None:
                version = self._versions_of(plan.machine)["QEMU"]
                template.load(domain, plan.loads.entry.file(template.STATE), qemu_version=version)
                _rouse(domain)
            undo.pop_all()
        with self._lock:
            self._live[libvirt_name] = domain
        return domain

    def _freeze(self, domain: Domain, target: Path, ready: Step) -> dict[str, object]:
        try:
            ready(domain)
            version = self._versions_of(domain.machine)["QEMU"]
            template.freeze(domain, target, qemu_version=version)
        finally:
            domain.end()
            self._ended(domain)
        shutil.copyfile(domain.console_log, target / template.BOOT_LOG)
        return {"machine": repr(domain.machine), **self.facts(domain.machine)}

    def _emulator(self, machine: Machine) -> Emulator | None:
        if machine.qemu == SYSTEM_QEMU:
            return None
        if self._find_qemu is None or not self._connection.embedded:
            raise UsageError(f"QEMU {machine.qemu}: only with {EMBED}: {self.uri} may be another machine's libvirt")
        return self._find_qemu(machine)

    def _versions_of(self, machine: Machine) -> dict[str, str]:
        emulator = self._emulator(machine)
        found = {} if emulator is None else {"QEMU": emulator.version, "emulator": emulator.digest}
        return {**self._versions, **found}

    def _template_key(self, image: Image, machine: Machine, *more: object) -> str:
        nowhere = Path("/template")
        files = DomainFiles(disk=nowhere, console_log=nowhere, sockets=nowhere, memory=nowhere)
        boot = BootFiles(nowhere, nowhere, nowhere)
        versions = self._versions_of(machine)
        xml = domain_xml(
            name="template",
            machine=machine,
            boot=boot,
            files=files,
            accelerator=self.accelerator,
            qemu=versions["QEMU"],
        )
        return key_of(image.digest, xml, repr(machine), versions, template.outer_cpu(), *more)

    def _take_standby(self, source: Template, name: str, log_dir: Path) -> Domain | None:
        with self._lock:
            waiting = self._standbys.pop(source.key, None)
        if waiting is None:
            return None
        try:
            domain = waiting.result()
        except LabError:
            return None  # asked for again in the foreground, where its error has somebody to tell
        if domain.state() != "paused":
            domain.close()
            return None
        domain.adopt(name, log_dir.absolute())
        return domain

    def _drop_standbys(self) -> bool:
        with self._lock:
            waiting = list(self._standbys.values())
            self._standbys.clear()
        for future in waiting:
            self._end_standby(future)
        return bool(waiting)

    def _end_standby(self, standby: Future[Domain]) -> None:
        with contextlib.suppress(LabError):
            domain = standby.result()
            domain.end()
            self._ended(domain)

    def _log_dir(self, purpose: str) -> Path:
        return self._run_dir / f"{purpose}-{os.getpid()}-{self.root.next_number()}"

    def _close_later(self, domain: Domain) -> None:
        def end() -> None:
            domain.end()
            self._ended(domain)

        with contextlib.suppress(RuntimeError):  # the lab is closing and ends it itself
            self._background.submit(end)

    def _ended(self, domain: Domain) -> None:
        with self._lock:
            if self._live.pop(domain.libvirt_name, None) is None:
                return
        self._admission.release(domain.libvirt_name)
        with contextlib.suppress(OSError):
            shutil.copyfile(self._connection.log(domain.libvirt_name), domain.log_dir / "qemu.log")
        for directory in (domain.files.sockets, self._scratch / domain.files.sockets.name):
            shutil.rmtree(directory, ignore_errors=True)


def _rouse(domain: Domain) -> None:
    """Have an interrupt wait for a loaded arm64 machine, typed on its console before its CPUs run.

    QEMU restores the EL2 physical timer (CNTHP), which Xen uses, without arming it again; a Xen that was idle when it
    was frozen would sleep on. dom0 of a deterministic one does not sleep when it is frozen (``template.ASLEEP``).
    """
    if domain.machine.arch == "arm64" and domain.machine.timing == "fast":
        domain.console_write(b"\n")
