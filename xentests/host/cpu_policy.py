"""CPU policies: what Xen lets a guest have of a CPU, as ``xen-cpuid`` prints it, and what of one another host lacks.

A policy is the answers of CPUID by leaf and subleaf. Features are single bits of some of its registers
(xen/include/public/arch-x86/cpufeatureset.h); the others say how things are laid out, and are not compared here.
Formats: tools/misc/xen-cpuid.c of Xen 4.14 to 4.20; rules: xen/lib/x86/policy.c, x86_cpu_policies_are_compatible().
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xentests.errors import ProductFailure
from xentests.host.cpuid_program import cpuid_program, typed

if TYPE_CHECKING:
    from xentests.host.guests import Guest
    from xentests.host.host import Host

REGISTERS = ("eax", "ebx", "ecx", "edx")
FEATURE_WORDS: tuple[tuple[int, int, str], ...] = (
    (0x1, 0, "edx"),
    (0x1, 0, "ecx"),
    (0x80000001, 0, "edx"),
    (0x80000001, 0, "ecx"),
    (0xD, 1, "eax"),
    (0x7, 0, "ebx"),
    (0x7, 0, "ecx"),
    (0x80000007, 0, "edx"),
    (0x80000008, 0, "ebx"),
    (0x7, 0, "edx"),
    (0x7, 1, "eax"),
    (0x80000021, 0, "eax"),
)
"""Where features are, in the order of a featureset: leaf, subleaf, register."""

_VOLATILE = {
    (0x1, 0, "ecx"): 1 << 27,
    (0x1, 0, "edx"): 1 << 9,
    (0x7, 0, "ecx"): 1 << 4,
    (0x80000001, 0, "edx"): 0x183F3FF,
}
"""Bits that tell no feature, but the state of a CPU (OSXSAVE, APIC, OSPKE), or what leaf 1 has told already."""

_NAMES: Mapping[tuple[int, int, str], Mapping[int, str]] = {
    (0x1, 0, "ecx"): {
        **{0: "sse3", 1: "pclmulqdq", 3: "monitor", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4.1", 20: "sse4.2"},
        **{21: "x2apic", 22: "movbe", 23: "popcnt", 25: "aes", 26: "xsave", 28: "avx", 29: "f16c", 30: "rdrand"},
    },
    (0x1, 0, "edx"): {3: "pse", 16: "pat", 17: "pse36", 19: "clflush", 28: "htt"},
    (0x80000001, 0, "ecx"): {0: "lahf_lm", 1: "cmp_legacy", 2: "svm", 4: "cr8_legacy", 5: "abm", 6: "sse4a"},
    (0x80000001, 0, "edx"): {20: "nx", 22: "mmxext", 25: "fxsr_opt", 26: "page1gb", 27: "rdtscp", 31: "3dnow"},
    (0x7, 0, "ebx"): {
        **{0: "fsgsbase", 3: "bmi1", 5: "avx2", 7: "smep", 8: "bmi2", 9: "erms", 10: "invpcid", 14: "mpx"},
        **{18: "rdseed", 19: "adx", 20: "smap", 23: "clflushopt", 24: "clwb", 29: "sha"},
    },
    (0x7, 0, "ecx"): {2: "umip", 3: "pku", 9: "vaes", 10: "vpclmulqdq", 22: "rdpid"},
    (0xD, 1, "eax"): {0: "xsaveopt", 1: "xsavec", 2: "xgetbv1", 3: "xsaves"},
    (0x80000008, 0, "ebx"): {0: "clzero", 9: "wbnoinvd", 12: "ibpb", 20: "rstr-fp-err-ptrs"},
    (0x80000021, 0, "eax"): {2: "lfence+", 5: "nscb", 6: "auto-ibrs"},
}

Leaf = tuple[int, int]
Values = tuple[int, int, int, int]

_POLICY = re.compile(r"^(?P<name>.+?) policy: \d+ leaves, \d+ MSRs$", re.MULTILINE)
_LEAF = re.compile(r"^ +([0-9a-f]{8}):([0-9a-f]{8}) -> ([0-9a-f]{8}):([0-9a-f]{8}):([0-9a-f]{8}):([0-9a-f]{8})", re.M)
_TOOL = "/usr/lib/xentests/xen/bin/xen-cpuid"
_NO_SUBLEAF = 0xFFFFFFFF
_WITH_SUBLEAVES = (0x7, 0xD)


@dataclass(frozen=True)
class Feature:
    """One bit: leaf, subleaf, register, and its number."""

    leaf: int
    subleaf: int
    register: str
    bit: int

    def __str__(self) -> str:
        name = _NAMES.get((self.leaf, self.subleaf, self.register), {}).get(self.bit)
        return name or f"{self.leaf:#x}.{self.subleaf}:{self.register}[{self.bit}]"


@dataclass(frozen=True)
class CpuPolicy:
    """The answers of CPUID by (leaf, subleaf); a leaf that is not there answers zeroes. ``name``: whose it is."""

    name: str
    leaves: Mapping[Leaf, Values]

    def value(self, leaf: int, subleaf: int, register: str) -> int:
        """One register."""
        return self.leaves.get((leaf, subleaf), (0, 0, 0, 0))[REGISTERS.index(register)]

    @property
    def features(self) -> frozenset[Feature]:
        """All features it has."""
        found = set()
        for leaf, subleaf, register in FEATURE_WORDS:
            word = self.value(leaf, subleaf, register) & ~_VOLATILE.get((leaf, subleaf, register), 0)
            found |= {Feature(leaf, subleaf, register, bit) for bit in range(32) if word >> bit & 1}
        return frozenset(found)

    @property
    def limits(self) -> tuple[int, int, int]:
        """The largest basic leaf, the largest subleaf of leaf 7, the largest extended leaf."""
        return self.value(0, 0, "eax"), self.value(7, 0, "eax"), self.value(0x80000000, 0, "eax")

    def exceeds(self, most: CpuPolicy) -> str:
        """What ``most``, a host's maximum, would refuse of it, in the words of Xen's error; empty for nothing.

        xen/lib/x86/policy.c compares these alone, and says so ("TODO: Audit more CPUID data"); 4.14 not leaf 7's.
        """
        for leaf, mine, theirs in zip((0, 7, 0x80000000), self.limits, most.limits, strict=True):
            if mine > theirs:
                return f"leaf {leaf:08x}"
        return ""


def words(features: frozenset[Feature]) -> str:
    """Features for people, in a fixed order."""
    ordered = sorted(features, key=lambda feature: (feature.leaf, feature.subleaf, feature.register, feature.bit))
    return " ".join(str(feature) for feature in ordered) or "(none)"


def parse_policies(text: str) -> dict[str, CpuPolicy]:
    """What ``xen-cpuid -p`` printed, by name: ``Host``, ``HVM Max``, ``HVM Default``, ``Domain 1`` ..."""
    found = {}
    starts = [*_POLICY.finditer(text)]
    for match, following in zip(starts, [*starts[1:], None], strict=True):
        part = text[match.end() : following.start() if following else len(text)].partition("MSRs:")[0]
        leaves = {}
        for row in _LEAF.findall(part):
            leaf, subleaf, *values = (int(word, 16) for word in row)
            leaves[leaf, 0 if subleaf == _NO_SUBLEAF else subleaf] = (values[0], values[1], values[2], values[3])
        found[match["name"]] = CpuPolicy(match["name"], leaves)
    return found


def host_policies(host: Host) -> dict[str, CpuPolicy]:
    """The policies of a host's Xen. Raises ProductFailure when ``xen-cpuid`` prints none."""
    return _asked(host)


def domain_policy(guest: Guest) -> CpuPolicy:
    """The policy that Xen has for a guest."""
    return next(iter(_asked(guest.host, guest.domid).values()))


def _asked(host: Host, *words_: int) -> dict[str, CpuPolicy]:
    text = host.succeed(_TOOL, "-p", *words_).text
    found = parse_policies(text)
    if not found:
        raise ProductFailure(f"{host.name}: `xen-cpuid -p` printed no policy: {text[:300]!r}")
    return found


def executed(guest: Guest) -> CpuPolicy:
    """What the CPUID instruction answers inside the guest now, on its first vCPU."""
    asked: list[Leaf] = [(0, 0), (0x80000000, 0), *dict.fromkeys((leaf, sub) for leaf, sub, _ in FEATURE_WORDS)]
    path = "/tmp/cpuid"
    if guest.run(f"test -x {path}").exit_code != 0:
        for line in typed(cpuid_program(asked), path):
            guest.succeed(line)
    numbers = guest.succeed(f'taskset 1 {path} | hexdump -v -e \'4/4 "%08x " "\\n"\'').split()
    values = [int(number, 16) for number in numbers]
    leaves = {
        leaf: (values[4 * at], values[4 * at + 1], values[4 * at + 2], values[4 * at + 3])
        for at, leaf in enumerate(asked)
    }
    # A CPU answers a leaf beyond its last with that of the last, or with zeroes: neither is a feature.
    beyond = {(7, 1)} if leaves[7, 0][0] < 1 else set()
    beyond |= {leaf for leaf in leaves if leaf[0] > leaves[leaf[0] & 0x80000000, 0][0]}
    return CpuPolicy(f"CPUID in {guest.name}", {leaf: row for leaf, row in leaves.items() if leaf not in beyond})


def levelled(mine: CpuPolicy, *others: CpuPolicy) -> list[str]:
    """``cpuid`` for a guest's configuration that leaves it what all policies have: their featureset's intersection.

    ``mine`` is the default of the host where the guest is made; libxc takes no leaf that this has not.
    docs/man/xl.cfg.5, "cpuid", the list of leaves: bits from the highest on, ``0`` clears, ``x`` leaves alone.
    """
    rows: dict[Leaf, dict[str, str]] = {}
    for leaf, subleaf, register in FEATURE_WORDS:
        keep = _VOLATILE.get((leaf, subleaf, register), 0)
        common = mine.value(leaf, subleaf, register)
        for policy in others:
            common &= policy.value(leaf, subleaf, register)
        bits = "".join("x" if (common | keep) >> bit & 1 else "0" for bit in range(31, -1, -1))
        rows.setdefault((leaf, subleaf), {})[register] = bits
    for leaf, place in ((0, 0), (7, 1), (0x80000000, 2)):
        limit = min(policy.limits[place] for policy in (mine, *others))
        rows.setdefault((leaf, 0), {})["eax"] = f"{limit:032b}"
    last, last_of_7, last_extended = mine.limits
    lines = []
    for (leaf, subleaf), row in sorted(rows.items()):
        if leaf > (last_extended if leaf & 0x80000000 else last) or (leaf == 7 and subleaf > last_of_7):
            continue
        name = f"{leaf:#x},{subleaf}" if leaf in _WITH_SUBLEAVES else f"{leaf:#x}"
        lines.append(f"{name}:" + ",".join(f"{register}={bits}" for register, bits in row.items()))
    return lines
