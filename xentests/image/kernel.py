"""Kernels and hypervisors as QEMU, Xen and libxc load them fastest: unpacked.

A bzImage holds its payload at an offset that its header tells (Linux: Documentation/arch/x86/boot.rst, fields
``payload_offset`` 0x248 and ``payload_length`` 0x24c, protocol 2.08 and later); an arm64 Image may be gzipped whole.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Protocol

from xentests.errors import LabError
from xentests.release.arch import Arch
from xentests.tools import run_tool

_ARM64_MAGIC = b"ARM\x64"  # at 56: Linux Documentation/arch/arm64/booting.rst, section 4; Xen has the same header
_ARM64_MAGIC_AT = 56


class _Decompressor(Protocol):
    """What the modules of the standard library have in common."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _whole(decompressor: _Decompressor, data: bytes) -> bytes:
    """One stream; what stands behind it is ignored, one that ends too early is an error."""
    unpacked = decompressor.decompress(data)
    if not decompressor.eof:
        raise EOFError("it ends too early")
    return unpacked


def _gunzip(data: bytes) -> bytes:
    return _whole(zlib.decompressobj(wbits=31), data)


def _unlz4(data: bytes) -> bytes:
    return run_tool(["lz4", "-dc"], input_data=data, package="lz4")


def _unzstd(data: bytes) -> bytes:
    return run_tool(["zstd", "-dc"], input_data=data, package="zstd")


def _unxz(data: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(), data)


def _unbz2(data: bytes) -> bytes:
    return _whole(bz2.BZ2Decompressor(), data)


_FORMATS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", _gunzip),
    (b"\xfd7zXZ\0", _unxz),
    (b"]\0\0", _unxz),
    (b"BZh", _unbz2),
    (b"\x28\xb5\x2f\xfd", _unzstd),
    (b"\x02!L\x18", _unlz4),
)


def unpack(data: bytes, *, what: str) -> bytes:
    """``data`` decompressed if it is compressed with anything Linux or Xen use, else as it is."""
    for magic, function in _FORMATS:
        if data.startswith(magic):
            try:
                return function(data)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise LabError(f"{what}: does not decompress: {error}; its package is damaged") from error
    return data


def plain_kernel(data: bytes, arch: Arch, *, what: str) -> bytes:
    """The kernel in the form libxc and Xen load at once: an ELF vmlinux for amd64, an Image for arm64."""
    if arch == "arm64":
        image = unpack(data, what=what)
        if image[_ARM64_MAGIC_AT : _ARM64_MAGIC_AT + 4] != _ARM64_MAGIC:
            raise LabError(f"{what}: not an arm64 Image")
        return image
    if data[:4] == b"\x7fELF":
        return data
    if data[0x202:0x206] != b"HdrS":
        raise LabError(f"{what}: not an x86 kernel (no boot header)")
    sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (sectors + 1) * 512 + offset
    # The last four bytes are the unpacked size, which zstd and lz4 would take for another frame.
    payload = data[start : start + length]
    packed = payload if payload.startswith((b"\x1f\x8b", b"\x7fELF")) else payload[:-4]
    vmlinux = unpack(packed, what=what)
    if vmlinux[:4] != b"\x7fELF":
        raise LabError(f"{what}: its payload is not an ELF vmlinux; this way of compressing it is not known here")
    return vmlinux


def plain_hypervisor(data: bytes, arch: Arch, *, what: str) -> bytes:
    """Xen un-gzipped: a 32-bit multiboot ELF for amd64, an Image for arm64."""
    xen = unpack(data, what=what)
    good = xen[:4] == b"\x7fELF" if arch == "amd64" else xen[_ARM64_MAGIC_AT : _ARM64_MAGIC_AT + 4] == _ARM64_MAGIC
    if not good:
        raise LabError(f"{what}: not a Xen for {arch}: neither a multiboot ELF (amd64) nor an Image (arm64)")
    return xen
