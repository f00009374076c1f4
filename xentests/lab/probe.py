"""Which accelerator really runs a Xen here: decided by booting one to its banner, once per machine, cached.

``/dev/kvm`` can be there, open, and make a virtual machine, and Xen still hang under it (a KVM that is itself nested
without VMX or SVM). So neither the device node nor a CPU flag counts, only the banner.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from xentests.deadline import Deadline, until
from xentests.errors import LabError
from xentests.image.image import Image
from xentests.lab.lab import Lab
from xentests.lab.libvirt_driver import EMBED
from xentests.lab.machine import Machine
from xentests.lab.store import Store, key_of
from xentests.lab.template import outer_cpu

_NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}
_BANNER = b"Xen version"
_LIMIT_S = 6.0
"""A Xen under a KVM that works prints its banner within a second."""


def accelerator(
    image: Image, store: Store, *, uri: str, run_dir: Path, say: Callable[[str], None] = lambda text: None
) -> str:
    """``kvm`` when a Xen booted under it to its banner, else ``tcg``. ``XENTESTS_ACCELERATOR`` overrides."""
    forced = os.environ.get("XENTESTS_ACCELERATOR", "")
    if forced in ("tcg", "kvm"):
        return forced
    if image.release.arch != _NATIVE.get(platform.machine()):
        return "tcg"
    if uri.startswith(EMBED) and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"

    def probe(target: Path) -> dict[str, object]:
        say("looking whether KVM can run Xen here (once per machine)")
        with Lab(store, run_dir=run_dir / "probe", uri=uri, accelerator="kvm") as lab:
            answer, why = _boots(lab, image, run_dir / "probe")
        (target / "console.log").write_text(why)
        return {"accelerator": answer, "why": why}

    key = key_of(uri, outer_cpu(), platform.release(), image.entry.digest)
    return str(store.get("probe", key, probe, what="accelerator probe").manifest["accelerator"])


def _boots(lab: Lab, image: Image, log_dir: Path) -> tuple[str, str]:
    machine = Machine(image.release.arch)
    try:
        domain = lab.boot(image, replace(machine, memory_mib=768), name="probe", log_dir=log_dir)
    except LabError as error:
        return "tcg", f"QEMU did not start with KVM: {error}"

    def settled() -> str:
        log = domain.console_log.read_bytes()
        if _BANNER in log:
            return "kvm"
        return "" if domain.is_running() else "tcg"

    try:
        deadline = Deadline(_LIMIT_S, scaled=False)
        answer = until(settled, what="Xen's banner under KVM", deadline=deadline, error=LabError)
    except LabError as error:
        return "tcg", str(error)
    return answer, "Xen printed its banner" if answer == "kvm" else f"QEMU stopped: {domain.state()}"
