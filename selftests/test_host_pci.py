"""What xl says of guests' PCI devices, read from words it really said."""

from __future__ import annotations

import pytest

from xentests.host.pci import nic, parse_pci_list
from xentests.host.xl import XlError

TWO = """\
Vdev Device
00.0 0000:00:10.0
01.0 0000:00:11.0
"""


def test_pci_list_is_read() -> None:
    """Each device with the slot that the guest has it in."""
    assert parse_pci_list(TWO) == {"0000:00:10.0": "00.0", "0000:00:11.0": "01.0"}
    assert parse_pci_list("") == {}


def test_another_form_is_an_error() -> None:
    """A line that is no device is not passed over."""
    with pytest.raises(XlError, match="Bridge"):
        parse_pci_list("Vdev Device\nBridge 00.0\n")


def test_cards_have_places_of_their_own() -> None:
    """The number of a card is its slot after the first."""
    assert [nic(0), nic(2)] == ["0000:00:10.0", "0000:00:12.0"]
