"""One release on one machine, ready to hand out hosts: what the fixtures, ``xentests shell`` and ``bench`` stand on.

Ties the layers together in their order (release, image, lab, host) and holds no logic of its own beyond that.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from xentests.host.host import Host
from xentests.host.pair import Pair
from xentests.image.build import build_image
from xentests.image.image import Image
from xentests.lab.domain import Domain
from xentests.lab.emulator import Emulator, find_emulator
from xentests.lab.lab import Lab
from xentests.lab.libvirt_driver import EMBED
from xentests.lab.link import Link
from xentests.lab.machine import Machine
from xentests.lab.probe import accelerator
from xentests.lab.store import Store, default_cache_dir
from xentests.lab.template import Template
from xentests.release.spec import SYSTEM_QEMU, parse_release

READY_LIMIT_S = 120.0
"""From power-on to a dom0 whose agent answers; 5 to 10 s are usual under TCG."""
_READY_S_PER_GIB = 0.25
"""Xen makes its tables of all memory in that time: a sixteenth of a second a GiB on an idle lab."""


@dataclass(frozen=True)
class Options:
    """What a caller may choose.

    ``run_dir`` is where logs of the lab's own machines go; ``arch`` is empty for what the release says, or amd64.
    """

    run_dir: Path
    release: str = "debian:trixie"
    arch: str = ""
    lab_uri: str = EMBED
    qemu: str = SYSTEM_QEMU
    mirror: str | None = None
    fresh_boot: bool = False


def ready_limit_s(machine: Machine) -> float:
    """How long a machine may take to boot, in seconds."""
    return READY_LIMIT_S + _READY_S_PER_GIB * machine.memory_mib / 1024


class Session:
    """The store, image and lab of one run, each made when first asked for. A context manager."""

    def __init__(self, options: Options, *, say: Callable[[str], None] = lambda text: None) -> None:
        self.options = options
        self._say = say
        self._spec = parse_release(options.release, options.arch)
        self.store = Store(default_cache_dir(), say=say)
        self._lab: Lab | None = None
        self._qemus: dict[tuple[str, str], Emulator] = {}
        self._hosts: list[Host] = []
        self._shares_lab = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @cached_property
    def image(self) -> Image:
        """The release's image, built if need be."""
        return build_image(self._spec, self.store, mirror=self.options.mirror, report=self._say)

    @cached_property
    def machine(self) -> Machine:
        """The default machine of the architecture, under the QEMU that was chosen."""
        return Machine(self._spec.arch, qemu=self.options.qemu)

    @property
    def lab(self) -> Lab:
        """The lab, opened with the accelerator that was found to run a Xen."""
        if self._lab is None:
            uri, run_dir = self.options.lab_uri, self.options.run_dir
            found = accelerator(self.image, self.store, uri=uri, run_dir=run_dir, say=self._say)
            self._lab = Lab(
                self.store, run_dir=run_dir, uri=uri, accelerator=found, find_qemu=self._find_qemu, say=self._say
            )
        return self._lab

    def _find_qemu(self, machine: Machine) -> Emulator:
        name, arch = machine.qemu, machine.arch
        if (name, arch) not in self._qemus:
            mirror = self.options.mirror
            self._qemus[name, arch] = find_emulator(name, arch, self.store, mirror=mirror, report=self._say)
        return self._qemus[name, arch]

    def of_release(self, release: str) -> Session:
        """Another release in the same lab and store; closing it ends nothing of this one."""
        other = Session(dataclasses.replace(self.options, release=release, arch=self._spec.arch), say=self._say)
        other.store, other._lab, other._shares_lab = self.store, self.lab, True
        return other

    def template(self, machine: Machine | None = None) -> Template:
        """The template of a freshly booted host."""

        def ready(domain: Domain) -> None:
            with contextlib.closing(Host(domain, self.image)) as host:
                host.wait_ready(ready_limit_s(domain.machine))
                host.before_freeze()

        return self.lab.template(self.image, machine or self.machine, ready=ready)

    def derive(self, base: Template, *, key: str, prepare: Callable[[Host], object]) -> Template:
        """A template made from a clone of ``base`` in which ``prepare`` has been run; ``key`` names what that does."""

        def step(domain: Domain) -> None:
            with contextlib.closing(Host(domain, self.image)) as host:
                host.wake()
                prepare(host)
                host.before_freeze()

        return self.lab.derive(base, key=key, prepare=step)

    def boot(self, *, name: str, log_dir: Path, machine: Machine | None = None) -> Host:
        """A host booted cold, ready."""
        domain = self.lab.boot(self.image, machine or self.machine, name=name, log_dir=log_dir)
        host = self._adopt(domain)
        try:
            host.wait_ready(ready_limit_s(domain.machine))
        except BaseException:
            self.end(host)
            raise
        return host

    def clone(self, template: Template, *, name: str, log_dir: Path, standby: bool = True) -> Host:
        """A host cloned from ``template``, awake."""
        domain = self.lab.clone(template, name=name, log_dir=log_dir, standby=standby)
        host = self._adopt(domain)
        try:
            host.wake()
        except BaseException:
            self.end(host)
            raise
        return host

    def host(self, *, name: str, log_dir: Path, machine: Machine | None = None) -> Host:
        """A pristine host: a clone, or booted cold when the options say so or the machine is never frozen."""
        if self.options.fresh_boot or not (machine or self.machine).frozen:
            return self.boot(name=name, log_dir=log_dir, machine=machine)
        return self.clone(self.template(machine), name=name, log_dir=log_dir)

    def end(self, host: Host) -> None:
        """Let go of a host and end its machine, and wait for that."""
        if host in self._hosts:
            self._hosts.remove(host)
            host.close()
        machine_of(host).end()
        machine_of(host).close()

    def close(self) -> None:
        """End the lab and all its machines. Idempotent."""
        while self._hosts:
            self._hosts.pop().close()
        if self._lab is not None and not self._shares_lab:
            self._lab.close()
        self._lab = None

    def _adopt(self, domain: Domain) -> Host:
        self._hosts.append(Host(domain, self.image))
        return self._hosts[-1]


@contextlib.contextmanager
def joined(a: Host, b: Host) -> Iterator[Pair]:
    """Two hosts on machines with ``link=True``, on one cable and known to each other, as long as the context lasts."""
    with Link(machine_of(a), machine_of(b)) as link:
        pair = Pair(a, b, link)
        pair.introduce()
        yield pair


def machine_of(host: Host) -> Domain:
    """The machine under a host of a session, with all that the lab can do to it."""
    assert isinstance(host.domain, Domain)
    return host.domain
