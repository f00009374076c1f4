"""Errors by who must act: the product (Xen), the lab, or the caller.

A test that ends in a :class:`ProductFailure` failed; one that ends in a :class:`LabError` is broken and decides
nothing about Xen; a :class:`UsageError` is for whoever typed the command or wrote the test.
"""

from __future__ import annotations


class XentestsError(Exception):
    """Base of all errors this package raises on purpose; its text is complete and meant for a person."""


class ProductFailure(AssertionError, XentestsError):
    """Xen, its toolstack or dom0 is wrong. Act: read the evidence and report to the release's maintainers."""


class HypervisorCrash(ProductFailure):
    """A crash pattern (Xen panic, BUG, assertion, dom0 oops, second banner) stood on a console uninvited."""


class BuildFailed(ProductFailure):
    """A source that was to be tested does not build. The text has the first error and where the whole output is."""


class CommandFailed(ProductFailure):
    """A command in dom0 that had to succeed (or had to fail) did not. The text carries argv, exit code and output."""


class CommandTimeout(ProductFailure):
    """A command in dom0 did not end within its deadline while the host was otherwise alive."""


class HostHang(ProductFailure):
    """The host answers nothing any more: neither the agent nor, for dom0 hangs, the console."""


class LabError(XentestsError):
    """This machine or this lab is wrong: no memory, no disk, no QEMU, a broken download. Act: mend the lab."""


class LabFull(LabError):
    """The lab has no room: memory for another host, or disk space for another file."""


class OverBudget(LabFull):
    """The lab ended a giant machine that came to occupy more memory than was reserved for it."""


class EmulatorFault(LabError):
    """What killed a guest is something that no CPU does: QEMU did it. The text says what, and decides nothing."""


class DomainGone(LabError):
    """The QEMU of a host ended although nobody asked it to."""


class AgentUnresponsive(LabError):
    """The guest agent in dom0 gave no answer in time. The host layer finds out why and says HostHang instead.

    ``delivered`` is False when the agent was not even connected, so that asking again cannot run a command twice.
    """

    def __init__(self, message: str, *, delivered: bool = True) -> None:
        super().__init__(message)
        self.delivered = delivered


class AgentError(LabError):
    """The guest agent answered with an error. ``kind`` is its class, such as ``GenericError`` (qapi/error.json)."""

    def __init__(self, message: str, *, kind: str = "GenericError") -> None:
        super().__init__(message)
        self.kind = kind


class DownloadError(LabError):
    """Packages could not be fetched, or are not what the archive signed."""


class CorruptEntry(LabError):
    """A cached file is not what its manifest says, and rebuilding it once did not help."""


class UsageError(XentestsError):
    """The caller is wrong: an unknown release, architecture, option or marker argument. Act: mend the call."""
