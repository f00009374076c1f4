"""A pytest plugin for the projects that plugin selftests make: hosts without machines, in custody like real ones.

``fake_host`` is a real Host on a FakeDomain whose programs are made up here. Not for tests of the host layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selftests.fakes import FakeDomain, FakeImage
from xentests.host.host import Host
from xentests.pytest_plugin.custody import Charge
from xentests.pytest_plugin.harness import Harness, harness_of

PANIC = "(XEN) \r\n(XEN) Panic on CPU 0:\r\n(XEN) FATAL PAGE FAULT\r\n(XEN) Manual reset required\r\n"
HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 nul\x00 bell\x07 ]]> <script>document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\"> \ud800 \u202eback "
)
"""What a guest might print: escape sequences, control characters, markup, a lone surrogate."""


class HeldDomain(FakeDomain):
    """A FakeDomain with what custody and evidence ask of a machine besides."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.name = name
        self.closed = False
        self.ended_because = ""
        self.ended = folder / "ended"
        self.programs = {
            name: self._program(f"output of {name}\n".encode())
            for name in ("xl", "dmesg", "xenstore-ls", "xen-livepatch", "ps", "find")
        }
        self.on_program = lambda argv: self.programs[argv[0]](argv) if argv[0] in self.programs else None

    @staticmethod
    def _program(output: bytes) -> Callable[[list[str]], tuple[int, bytes]]:
        return lambda argv: (0, output)

    def state(self) -> str:
        """As told."""
        return "gone" if self.gone else super().state()

    def xml(self) -> str:
        """Something like a domain's XML."""
        return f"<domain><name>{self.name}</name></domain>"

    def close(self) -> None:
        """Leaves a file behind."""
        self.closed = True
        self.ended.write_text(self.name)


class Bench:
    """Makes hosts for the test under way; ``fake_host`` is the first."""

    def __init__(self, harness: Harness, folder: Path) -> None:
        self.harness = harness
        self.folder = folder
        self.charges: list[Charge] = []

    def host(self, name: str = "xen0") -> Any:
        """A host in custody. Its domain is a HeldDomain: Any, since tests play with what protocols do not show."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        domain = HeldDomain(folder, name)
        domain.say("(XEN) Xen version 4.20.2\r\nxentests: dom0 ready\r\n")
        charge = self.harness.custody.adopt(domain)
        host = Host(domain, FakeImage())
        charge.host = host
        self.charges.append(charge)
        return host


@pytest.fixture
def bench(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[Bench]:
    """Hosts for one test."""
    made = Bench(harness_of(pytestconfig), tmp_path)
    yield made
    for charge in made.charges:
        made.harness.custody.release(charge)


@pytest.fixture
def fake_host(bench: Bench) -> Any:
    """One host."""
    return bench.host()
