"""What is told to a kernel of a module that was compiled for it; compiling one is tried by every image of x86-64."""

from __future__ import annotations

import pytest

from xentests.errors import LabError
from xentests.image.kernel_module import Symbol, about, parse_symvers

SYMVERS = (
    "0x0beefbee\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n"
    "0xf7370f56\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n"
    "0x00000012\tusb_add_hcd\tdrivers/usb/core/usbcore\tEXPORT_SYMBOL_GPL\t\n"
)


def test_module_symvers_is_read() -> None:
    """A symbol's checksum, and the module that has it by the kernel's name."""
    found = parse_symvers(SYMVERS)
    assert found["printk"] == Symbol(0xF7370F56, "")
    assert found["usb_add_hcd"] == Symbol(0x12, "usbcore")


def test_a_module_tells_versions_and_dependencies() -> None:
    """Every symbol used stands with its checksum, the kernel's layout first; modules needed stand once."""
    text = about("some-hcd", ["printk", "usb_add_hcd"], parse_symvers(SYMVERS))
    assert 'MODULE_INFO(depends, "usbcore");' in text
    assert text.index('{ 0xbeefbee, "module_layout" }') < text.index('{ 0xf7370f56, "printk" }')


def test_a_symbol_that_the_kernel_lacks_is_named() -> None:
    """Better said when it is built than by the kernel that refuses it."""
    with pytest.raises(LabError, match="exports no gone"):
        about("some-hcd", ["gone"], parse_symvers(SYMVERS))
