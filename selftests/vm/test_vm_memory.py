"""What the memory suite relies on to notice: a guest that its own kernel caps, and a lab that is too small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fixtures.giants import SIZES, Giant, giant, giant_guest
from suites.memory import test_giant_guests
from xentests.errors import LabFull
from xentests.host import frames
from xentests.session import Session


def test_capped_guest(session: Session, runs: Path) -> None:
    """A guest of 513 GiB whose kernel stops at 512 GiB, as Linux does by default, comes up; two tests turn red.

    Those are suites/memory's test_memory_is_used and test_everybody_agrees_on_the_size.
    """
    size = SIZES[513]
    host = session.host(name="capped", log_dir=runs / "capped", machine=size.machine(session.machine))
    before = host.xl.info()
    frames.install(host)
    spec = giant_guest(size.guest_gib << 10)
    capped = dataclasses.replace(spec, kernel_args=spec.kernel_args.replace("xen_512gb_limit=0", ""))
    made = Giant(host.guests.create(capped), size, before)
    with pytest.raises(AssertionError, match=r"has too few frames .* its memory ends at 524288 MiB"):
        test_giant_guests.test_memory_is_used(made)
    with pytest.raises(AssertionError, match="524288"):
        test_giant_guests.test_everybody_agrees_on_the_size(made)
    session.end(host)


def test_lab_that_is_too_small(session: Session, runs: Path) -> None:
    """A giant that can never fit is refused, with what it needs and what there is, before anything is started."""
    machine = giant(session.machine, 64 << 10)
    with pytest.raises(LabFull, match=rf"it needs {machine.reserved_mib} MiB, and \d+ MiB can be promised"):
        session.boot(name="too large", log_dir=runs / "large", machine=machine)
