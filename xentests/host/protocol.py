"""What the host layer needs from the layers before it, as protocols: the real ones and the fakes of selftests both fit.

Not a place for behaviour. ``xentests.lab.domain.Domain`` and ``xentests.image.image.Image`` are the real things.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class MachineLike(Protocol):
    """The fields of a machine that matter inside: see ``xentests.lab.machine.Machine``."""

    @property
    def arch(self) -> str:
        """``amd64`` or ``arm64``."""

    @property
    def cpus(self) -> int:
        """Physical CPUs that Xen sees."""

    @property
    def timing(self) -> str:
        """``fast`` or ``deterministic``."""

    @property
    def xen_args(self) -> tuple[str, ...]:
        """What stands on Xen's command line besides what every machine has."""


class Domain(Protocol):
    """The outer side of one running machine."""

    @property
    def name(self) -> str:
        """The name by which messages call this host."""

    @property
    def machine(self) -> MachineLike:
        """What it runs on."""

    @property
    def console_log(self) -> Path:
        """The serial console of Xen and dom0, written by QEMU from the first byte on."""

    @property
    def console_start(self) -> int:
        """The byte of ``console_log`` at which this machine's own life begins; 0 after a cold boot."""

    def agent(self, command: str, arguments: dict[str, object] | None = None, *, timeout_s: float) -> Any:
        """One guest-agent command; its ``return`` value.

        Raises AgentUnresponsive when no answer came, AgentError when the answer was an error, DomainGone when QEMU
        has ended (all of ``xentests.errors``).
        """

    def console_write(self, data: bytes) -> None:
        """Type on the serial console."""

    def port(self, name: str) -> Path:
        """The outer unix socket of a virtio-serial port."""

    def is_running(self) -> bool:
        """Whether QEMU lives and its CPUs run."""

    def state(self) -> str:
        """The state in the lab's words, for messages: ``running``, ``paused`` ..."""


class ImageLike(Protocol):
    """What is known of the files a host was booted from: see ``xentests.image.image.Image``."""

    @property
    def xen_package_version(self) -> str:
        """The version of the hypervisor package, in the distribution's words."""

    @property
    def kernel_version(self) -> str:
        """The release of dom0's kernel, as ``uname -r`` says it."""

    @property
    def xen_config(self) -> Path | None:
        """The hypervisor's ``.config``, where the package has it."""

    @property
    def symbols(self) -> Path | None:
        """The ``xen-syms`` of that hypervisor, where a package has it."""
