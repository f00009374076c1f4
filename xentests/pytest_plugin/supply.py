"""Hosts for tests: pristine ones, shared ones, and what is known of the release before any of them is handed out.

Stands on ``xentests.session`` and puts every machine into custody the moment it runs, so that one that never becomes
ready leaves evidence too. What failed once in making a template or a first look is not tried again in the same run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from xentests.errors import XentestsError
from xentests.host import capabilities as capabilities_module
from xentests.host.capabilities import Capability, from_data
from xentests.host.host import Host
from xentests.lab.domain import Domain
from xentests.lab.machine import Machine
from xentests.lab.store import key_of
from xentests.lab.template import Template
from xentests.pytest_plugin.custody import Charge, HeldMachine
from xentests.pytest_plugin.harness import Harness
from xentests.session import Session, ready_limit_s

T = TypeVar("T")

PRISTINE = frozenset({"hosts"})
"""Fixtures that make a test ask for hosts of its own."""

_ABOUT = 1  # raise it when what is read for an About changes


@dataclass(frozen=True)
class Prepared:
    """A state that hosts are frozen in after their boot.

    ``key`` names all that ``prepare`` does, and changes with it. ``attached`` is called with every clone: for what the
    host's own object must be told of, such as the guests that run on it.
    """

    key: str
    prepare: Callable[[Host], object]
    attached: Callable[[Host], object] = lambda host: None


@dataclass(frozen=True)
class About:
    """What is known of the release on this machine: its capabilities by name, and facts for reports."""

    capabilities: Mapping[str, Capability]
    facts: Mapping[str, str]


class Supply:
    """Makes hosts for the tests of one process."""

    def __init__(self, harness: Harness, session: Session, *, under_test: bool = True) -> None:
        self._harness = harness
        self.session = session
        self._under_test = under_test
        self._made: dict[object, object] = {}
        self._failures: dict[object, XentestsError] = {}

    @property
    def about(self) -> About:
        """What a first host of this release says of itself; read once, and kept in the store for later runs."""
        return self._once("about", self._read_about)

    def new(
        self,
        *,
        name: str,
        folder: Path,
        machine: Machine | None = None,
        prepared: Prepared | None = None,
        standby: bool = False,
    ) -> tuple[Host, Charge]:
        """A host that is ready, and its charge, to be released when it is done with. Its logs go to ``folder/name``.

        A clone; or booted, and prepared, anew: with ``--xen-fresh-boot``, or on a machine that is never frozen.
        ``standby`` has the next clone of the same kind made ahead.
        """
        if self._under_test:
            _ = self.about
        return self._new(name, folder, machine or self.session.machine, prepared, standby=standby)

    def of_release(self, release: str) -> Supply:
        """A supply of hosts of another release, which is not the one under test: a companion."""
        return self._once(release, lambda: Supply(self._harness, self.session.of_release(release), under_test=False))

    def keep(self, machine: HeldMachine) -> str:
        """Leave a machine running when the run ends; returns what a person needs to enter and to end it."""
        assert isinstance(machine, Domain)
        self.session.lab.keep(machine)
        return (
            f"{machine.name} ({machine.libvirt_name}): still running. Enter it: xentests shell --kept "
            f"{machine.libvirt_name}. End it: xentests gc --kept. Its console: {machine.console_log}"
        )

    def _new(
        self, name: str, folder: Path, machine: Machine, prepared: Prepared | None, *, standby: bool
    ) -> tuple[Host, Charge]:
        lab, image = self.session.lab, self.session.image
        fresh = self._harness.settings.fresh_boot or not machine.frozen
        if fresh:
            domain = lab.boot(image, machine, name=name, log_dir=folder / name)
        else:
            template = self._template(machine, prepared)
            domain = lab.clone(template, name=name, log_dir=folder / name, standby=standby)
        charge = self._harness.custody.adopt(domain)
        host = Host(domain, image)
        charge.host = host
        try:
            if not fresh:
                host.wake()
            else:
                host.wait_ready(ready_limit_s(machine))
                if prepared is not None:
                    prepared.prepare(host)
                    host.guests.close()
            if prepared is not None:
                prepared.attached(host)
        except BaseException:
            self._harness.custody.release(charge)
            raise
        return host, charge

    def _template(self, machine: Machine, prepared: Prepared | None) -> Template:
        lab, image = self.session.lab, self.session.image

        def boot() -> Template:
            return lab.template(image, machine, ready=self._step(lambda host: host.wait_ready(ready_limit_s(machine))))

        base = self._once(machine, boot)
        if prepared is None:
            return base

        def prepare(host: Host) -> None:
            host.wake()
            prepared.prepare(host)

        def derive() -> Template:
            return lab.derive(base, key=prepared.key, prepare=self._step(prepare))

        return self._once((machine, prepared.key), derive)

    def _step(self, work: Callable[[Host], None]) -> Callable[[Domain], None]:
        """What the lab calls with a machine that it ends afterwards: its evidence must be had before that."""

        def step(domain: Domain) -> None:
            custody = self._harness.custody
            charge = custody.adopt(domain)
            host = Host(domain, self.session.image)
            charge.host = host
            try:
                work(host)
                host.before_freeze()
                custody.check()
            except Exception as error:
                custody.collect_early(self._harness.evidence_folder("setup"))
                custody.check(error)
                raise
            finally:
                custody.forget(charge)
                host.close()

        return step

    def _once(self, key: object, make: Callable[[], T]) -> T:
        """What ``make`` returned the first time. An error is raised again as it was: the plugin then says "blocked"."""
        if key in self._failures:
            raise self._failures[key]
        if key not in self._made:
            try:
                self._made[key] = make()
            except XentestsError as error:
                self._failures[key] = error
                raise
        return self._made[key]  # type: ignore[return-value]  # what make() of this key returned

    def _read_about(self) -> About:
        session = self.session
        image, machine, outer = session.image, session.machine, session.lab.facts(session.machine)
        source = hashlib.sha256(Path(capabilities_module.__file__).read_bytes()).hexdigest()

        def look(_: Path) -> dict[str, object]:
            folder = self._harness.run.path / "about"
            host, charge = self._new("about", folder, machine, None, standby=False)
            info = host.xl.info()
            read = {"version": info.xen_version, "build-id": info.build_id, "changeset": info.xen_changeset}
            found = {"xen": read, "capabilities": host.capabilities.as_data()}
            host.console.check()
            self._harness.custody.release(charge)
            return found

        key = key_of("about", _ABOUT, source, image.digest, repr(machine), outer)
        kept = session.store.get("about", key, look, what=f"capabilities of {image.release}").manifest
        facts = {
            **{f"xen.{name}": str(value) for name, value in kept["xen"].items()},
            "xen.package": image.xen_package_version,
            "dom0.kernel": image.kernel_version,
            **{name.lower().replace(" ", "."): value for name, value in outer.items()},
        }
        packages = [package.to_json() for package in image.packages]
        self._harness.learn(
            {
                **facts,
                "capabilities": kept["capabilities"],
                "image": {"key": image.key, "packages": packages, "hypervisor": dict(image.built)},
            }
        )
        return About(from_data(kept["capabilities"]), facts)


class Hosts:
    """Pristine hosts for one test, their logs in its folder. ``made``: those it was given."""

    def __init__(self, supply: Supply, harness: Harness, *, folder: Path) -> None:
        self._supply = supply
        self._harness = harness
        self._folder = folder
        self._charges: list[Charge] = []
        self.made: list[Host] = []

    def pristine(
        self,
        *,
        machine: Machine | None = None,
        prepared: Prepared | None = None,
        again: bool = True,
        release: str | None = None,
    ) -> Host:
        """A host that nobody has used: a clone, or booted anew (``--xen-fresh-boot``, ``Machine.frozen``).

        ``again``: the next test will probably want such a host, too, so it is made while this one runs. ``release``:
        one that is not under test, such as the one before it.
        """
        supply = self._supply if release is None else self._supply.of_release(release)
        coming = self._harness.coming
        standby = again and coming is not None and bool(PRISTINE.intersection(getattr(coming, "fixturenames", ())))
        host, charge = supply.new(
            name=f"xen{len(self._charges)}", folder=self._folder, machine=machine, prepared=prepared, standby=standby
        )
        self._charges.append(charge)
        self.made.append(host)
        return host

    def release(self) -> None:
        """Be done with all of them."""
        for charge in self._charges:
            self._harness.custody.release(charge)


class Shared:
    """One host for several tests, made when the first of them asks, and anew after a test lost or failed on it."""

    def __init__(
        self,
        supply: Supply,
        harness: Harness,
        *,
        name: str,
        folder: Path,
        prepared: Prepared | None,
        machine: Machine | None = None,
    ) -> None:
        self._supply = supply
        self._machine = machine
        self._harness = harness
        self._name = name
        self._folder = folder
        self._prepared = prepared
        self._host: tuple[Host, Charge] | None = None
        self._count = 0

    def get(self) -> Host:
        """The host, for the test under way. Raises what befell it since the last test that had it."""
        if self._host is not None:
            host, charge = self._host
            if charge.lost is None and not charge.failed:
                self._harness.custody.lend(charge)
                return host
            self.renew()
        name = f"{self._name}{self._count or ''}"
        self._count += 1
        self._host = self._supply.new(name=name, folder=self._folder, machine=self._machine, prepared=self._prepared)
        return self._host[0]

    def renew(self) -> None:
        """Be done with the host there is; the next test gets another."""
        if self._host is not None:
            self._harness.custody.release(self._host[1])
            self._host = None
