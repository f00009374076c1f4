"""A cable between two clones of one template carries what it should, and nothing when it is cut; so do replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from xentests.errors import ProductFailure
from xentests.host import drbd
from xentests.host.drbd import Drbd
from xentests.host.pair import Identity, Pair
from xentests.session import Session, joined

MIB = 1 << 20
_SERVE = (
    f"mkdir /run/served && head -c {MIB} /dev/urandom > /run/served/data && busybox httpd -p $1:8000 -h /run/served"
)


@pytest.fixture
def pair(session: Session, runs: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two clones that are joined and reach each other."""
    template = session.template(session.machine.with_(cpus=1, link=True))
    names = [f"{request.node.name}-{side}" for side in "ab"]
    a, b = (session.clone(template, name=name, log_dir=runs / name, standby=False) for name in names)
    with joined(a, b) as made:
        yield made
    for host in (a, b):
        session.end(host)


def test_cable_is_cut_and_mended(pair: Pair) -> None:
    """1 MiB arrives as it was sent; nothing does while the cable is cut; mended it is as before."""
    address = Identity(2).address
    pair.b.succeed("sh", "-c", _SERVE, "serve", address)
    sent = pair.b.succeed("sha256sum", "/run/served/data").text.split()[0]
    fetch = f"busybox wget -q -O - http://{address}:8000/data | sha256sum"
    assert pair.a.succeed("sh", "-c", fetch).text.split()[0] == sent
    pair.cable.cut()
    assert not pair.reached()
    with pytest.raises(ProductFailure, match=r"to reach .*-b by their link: not within"):
        pair.wait_reached(2)
    pair.cable.mend()
    pair.wait_reached()
    assert pair.a.succeed("sh", "-c", fetch).text.split()[0] == sent


def test_hosts_of_a_pair_are_two(pair: Pair) -> None:
    """Clones of one template have names and hardware addresses of their own, and know each other's names."""
    names = [host.succeed("hostname").text.strip() for host in (pair.a, pair.b)]
    assert names == ["xen1", "xen2"]
    links = [host.succeed("ip", "-br", "link").text for host in (pair.a, pair.b)]
    assert [identity.mac in link for (_, identity), link in zip(pair.sides, links, strict=True)] == [True, True]
    pair.a.succeed("busybox", "ping", "-c", 1, "xen2")


def test_replicas_that_differ(pair: Pair) -> None:
    """A byte that is wrong below one replica is seen in both ways of reading it, and a cut link in the status."""
    for host, identity in pair.sides:
        drbd.prepare(host)
        host.succeed("hostname", identity.name)
    both = Drbd(pair)
    both.start()
    assert both.a.checksum() == both.b.checksum() == both.a.stored() == both.b.stored()
    pair.b.succeed(
        "sh", "-c", f"echo x | dd of={drbd.FILE} bs=1M seek=1 conv=notrunc; echo 3 > /proc/sys/vm/drop_caches"
    )
    assert both.a.stored() != both.b.stored()
    assert both.a.checksum() != both.b.checksum()
    pair.cable.cut()
    both.a.wait("a cut link", lambda status: status.connection == "WFConnection")
    with pytest.raises(ProductFailure, match=r"r0 is Status\(connection='WFConnection'(?s:.*)PingAck did not arrive"):
        both.wait_in_step(1)
