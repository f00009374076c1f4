"""What xl says of guests' USB, read from words it really said."""

from __future__ import annotations

import pytest

from xentests.host.usb import Address, Controller, parse_usb_list
from xentests.host.xl import XlError

TWO = """\
Devid  Type         BE  state usb-ver ports
0      devicemodel  0   0     1       2    
  Port 1: Bus 001 Device 003
  Port 2:
1      qusb         0   4     2       1    
  Port 1:
"""  # noqa: W291 - as xl prints it


def test_usb_list_is_read() -> None:
    """Controllers in their order, with what is plugged into each port."""
    assert parse_usb_list(TWO) == [
        Controller(0, "devicemodel", 0, 0, version=1, ports=2, devices={1: Address(1, 3)}),
        Controller(1, "qusb", 0, 4, version=2, ports=1, devices={}),
    ]
    assert parse_usb_list("") == []


def test_another_form_is_an_error() -> None:
    """A line that is neither a controller nor a port is not passed over."""
    with pytest.raises(XlError, match="Hub 7"):
        parse_usb_list("Devid  Type\nHub 7\n")
