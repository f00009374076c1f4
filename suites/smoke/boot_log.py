"""The log of a boot, searched for warnings, and the list of those that are known and explained."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from xentests.host.boot import READY
from xentests.host.host import Host

KNOWN = Path(__file__).with_name("known_warnings.toml")

# Xen's console does not show the level of a message, so its words have to do.
_TROUBLE = re.compile(
    r"\b(warn\w*|errors?|fail\w*|fatal|unable|can(no|')t|cannot|invalid|illegal|mismatch\w*|unhandled|unsupported"
    r"|unknown|unexpected|missing|bugs?|bogus|corrupt\w*|insecure|vulnerable|deprecated|time-?outs?|timed out"
    r"|overflow\w*|no support|not supported|denied|broken|stuck|lost|please|trusted|deadlock|taint\w*|ignoring)\b",
    re.IGNORECASE,
)
_XEN = re.compile(r"\(XEN\) (?:\[[^\]]{1,40}\] ?)?(.*)")
_LINUX = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? (.*)$", re.MULTILINE)
_BAD_LEVELS = "emerg,alert,crit,err,warn"


@dataclass(frozen=True)
class Known:
    """A warning that is explained: who says it (``xen`` or ``dom0``), as what, and why that is no trouble."""

    log: str
    pattern: re.Pattern[str]
    reason: str


def known_warnings() -> list[Known]:
    """The explained warnings, from ``known_warnings.toml``."""
    entries = tomllib.loads(KNOWN.read_text())["known"]
    return [Known(entry["log"], re.compile(entry["pattern"]), entry["reason"]) for entry in entries]


def xen_messages(host: Host) -> list[str]:
    """What Xen printed from its banner to the moment at which dom0 was ready, without the prefix."""
    boot, ready, _ = host.console.text().partition(READY)
    assert ready, f"{host.name}: no {READY!r} on the console"
    return [message.strip() for message in _XEN.findall(boot)]


def xen_warnings(host: Host) -> list[str]:
    """Xen's messages up to that moment that have a word of trouble in them."""
    return [message for message in xen_messages(host) if _TROUBLE.search(message)]


def dom0_warnings(host: Host) -> list[str]:
    """What dom0's kernel calls a warning or worse, by the level it gave it."""
    return [line.strip() for line in _LINUX.findall(host.succeed("dmesg", "--level", _BAD_LEVELS).text)]


def unexplained(log: str, messages: list[str]) -> list[str]:
    """Those of ``messages`` that no entry of the list explains, each once."""
    patterns = [known.pattern for known in known_warnings() if known.log == log]
    return [
        message for message in dict.fromkeys(messages) if not any(pattern.fullmatch(message) for pattern in patterns)
    ]
