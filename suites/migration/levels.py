"""CPUs of different levels, each a coherent model on which Xen boots and a PVH guest runs under emulation.

``monitor`` is left out since Xen's mwait-idle meets an MSR that QEMU has not; ``rdtscp``, since QEMU's SVM tells no
length of the instruction, without which Xen ends the guest; ``la57``, ``umip`` and ``smap`` of QEMU 7.2 do not work for
a dom0. With ``xsave`` and ``avx``, of QEMU 7.2 as of 10, a PVH guest's AVX instructions are illegal, and programs of
dom0 find spoilt what they copied: of 14 tests with such a host 7 failed (the first entry of a list of libxc's, tables
of ld.so, a lost wake-up), of the 13 others beside them none. ``Opteron_G1`` makes no PVH guest, and under QEMU 10's
``EPYC`` a guest triple-faults: neither is a level here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import pytest

from xentests.lab.machine import Machine

LEVELS: Mapping[str, str] = {
    "qemu64": "qemu64,+svm,+npt",
    "opteron-g3": "Opteron_G3,+svm,+npt,-monitor,-rdtscp",
    "nehalem": "Nehalem,vendor=AuthenticAMD,+svm,+npt",
    "max": "max,-la57,-monitor,-umip,-smap,-rdtscp,-xsave,-avx",
}
"""On any QEMU from 7.2 on."""

NEW_QEMU = "debian:trixie"
NEW_LEVELS: Mapping[str, str] = {
    **{name: model for name, model in LEVELS.items() if name != "max"},
    "epyc-rome": "EPYC-Rome,-monitor,-rdtscp,-xsave,-avx,+svm,+npt",
    "max-smap": "max,-monitor,-rdtscp,-xsave,-avx",
    "max": LEVELS["max"],
}
"""On QEMU 10, whose SMAP works, and which knows more of newer CPUs."""


def machine_of_level(machine: Machine, level: str) -> Machine:
    """That machine with a CPU of a level: its name, with ``@10`` behind it for a QEMU 10."""
    name, new, _ = level.partition("@")
    if new:
        return machine.with_(cpu_model=NEW_LEVELS[name], qemu=NEW_QEMU)
    return machine.with_(cpu_model=LEVELS[name])


PAIRS = [
    *(pytest.param(a, b, id=f"{a}-to-{b}") for a, b in permutations(LEVELS, 2)),
    *(
        pytest.param(f"{a}@10", f"{b}@10", id=f"{a}-to-{b}-qemu10", marks=pytest.mark.long)
        for a, b in permutations(NEW_LEVELS, 2)
    ),
]
"""Every ordered pair of levels, those of QEMU 10 in long runs."""
