"""What the tests of malformed payloads share: a case, and how it is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from xentests.host.host import Host
from xentests.host.livepatch import LivepatchError
from xentests.payload.builder import Damage, Payload, PayloadBuilder
from xentests.payload.factory import MINOR_VERSION, Payloads

Make = Callable[[Payloads], Payload]


@dataclass(frozen=True)
class Case:
    """A malformed payload: how it is made, the errnos it may be refused with, and the reason the console gives.

    Some checks of Xen say nothing in a release build: ``reason`` is empty then.
    """

    make: Make
    errnos: tuple[str, ...]
    reason: str = ""
    silent: frozenset[str] = frozenset()
    """Architectures on which Xen does not say it."""
    taken: Mapping[str, str] = field(default_factory=dict)
    """By architecture: the known defect by which Xen takes it all the same."""


def sound(payloads: Payloads) -> PayloadBuilder:
    """A payload without fault, to be damaged: a function, a string, data, an import of Xen's."""
    builder = payloads.builder("bad").replace(MINOR_VERSION, returns_value=13)
    builder.string("xentests")
    builder.data(bytes(16))
    return builder


def damaged(*damages: Damage) -> Make:
    """A sound payload with damage done to its file."""
    return lambda payloads: sound(payloads).build(*damages)


def rewritten(change: Callable[[bytes], bytes]) -> Make:
    """A sound payload whose bytes were changed as a whole."""

    def make(payloads: Payloads) -> Payload:
        payload = sound(payloads).build()
        return payload.with_content(change(payload.content))

    return make


def try_upload(host: Host, payloads: Payloads, case: Case) -> None:
    """Upload: it must be refused with one of the case's errnos, for its reason, and nothing may be left behind."""
    payload = case.make(payloads)
    answer = host.livepatch.sysctl.upload(payload.name.encode() + b"\0", payload.content)
    if not answer.error and payloads.arch.name in case.taken:
        pytest.xfail(case.taken[payloads.arch.name])
    assert answer.error in case.errnos
    assert answer.payloads == 0
    _reason(host, case)


def try_tool(host: Host, payloads: Payloads, case: Case) -> None:
    """The same with ``xen-livepatch upload``."""
    with pytest.raises(LivepatchError) as refused:
        host.livepatch.upload(case.make(payloads))
    assert refused.value.errno in case.errnos
    assert host.livepatch.list() == []
    _reason(host, case)


def _reason(host: Host, case: Case) -> None:
    if case.reason and host.arch not in case.silent:
        host.console.wait_for(rf"livepatch: bad:? {case.reason}", 5)
