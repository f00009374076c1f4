"""An empty qcow2 image, for disks of guests. Nothing reads one here: a QEMU in dom0 does.

Layout: docs/interop/qcow2.txt of QEMU, version 2, with clusters of 4 KiB: the header, the table of the guest's blocks
(empty), and reference counts of these first clusters. QEMU appends what the guest writes.
"""

from __future__ import annotations

import struct

_CLUSTER_BITS = 12
_CLUSTER = 1 << _CLUSTER_BITS
_MAPPED = _CLUSTER // 8 * _CLUSTER
"""Bytes of a disk that one entry of the first table stands for."""


def empty_qcow2(size_mib: int) -> bytes:
    """The file of an empty disk."""
    size = size_mib << 20
    entries = -(-size // _MAPPED)
    if entries * 8 > _CLUSTER:
        raise ValueError(f"{size_mib} MiB: more than one cluster of table entries")
    l1_at, counts_at, block_at = _CLUSTER, 2 * _CLUSTER, 3 * _CLUSTER
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, _CLUSTER_BITS, size, 0, entries, l1_at, counts_at, 1, 0, 0
    )
    clusters = (header, b"", struct.pack(">Q", block_at), struct.pack(">4H", 1, 1, 1, 1))
    return b"".join(cluster.ljust(_CLUSTER, b"\0") for cluster in clusters)
