"""An image: the bootable files of one release, with what is known about them. Made in :mod:`xentests.image.build`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xentests.lab.store import Entry, key_of
from xentests.release import hypervisor
from xentests.release.deb import Package
from xentests.release.spec import ReleaseSpec

HYPERVISOR, DOM0_KERNEL, DOM0_INITRD, ROOT_DISK = "xen", "kernel", "dom0.initrd", "root.img"
GUEST_INITRD, GUEST_BZIMAGE, SYMBOLS, XEN_CONFIG = "guest.initrd", "guest.bzimage", "xen-syms", "xen.config"
GUEST_DIRECTORY = "usr/share/xentests/guest"  # in dom0: "kernel", "bzimage" (the same as packed) and "initrd"


@dataclass(frozen=True)
class Image:
    """Files of one built release; all paths are in the store and read-only.

    ``dom0_kernel`` and ``guest_kernel`` are one file, uncompressed. ``root_disk`` is a raw sparse ext4 file system
    with the label "dom0root". ``symbols`` is the xen-syms of exactly this ``hypervisor``, None when no package has it.
    """

    release: ReleaseSpec
    key: str
    entry: Entry = field(repr=False)
    hypervisor: Path
    dom0_kernel: Path
    dom0_initrd: Path
    root_disk: Path
    guest_kernel: Path
    guest_initrd: Path
    symbols: Path | None
    xen_config: Path | None
    xen_package_version: str
    kernel_version: str
    packages: list[Package] = field(repr=False)
    digest: str = field(default="", repr=False)
    """Of all its bytes: what a template of it is keyed by."""
    built: Mapping[str, object] = field(default_factory=dict, repr=False)
    """Of a hypervisor that was built from source: what the manifest of its entry says (``release.hypervisor``)."""


def image_of(spec: ReleaseSpec, entry: Entry) -> Image:
    """The image whose files are in ``entry``. Raises LabError when one is missing."""
    about = entry.manifest

    def optional(name: str) -> Path | None:
        path = entry.path / name
        return path if path.is_file() else None

    return Image(
        release=spec,
        key=entry.key,
        entry=entry,
        hypervisor=entry.file(HYPERVISOR),
        dom0_kernel=entry.file(DOM0_KERNEL),
        dom0_initrd=entry.file(DOM0_INITRD),
        root_disk=entry.file(ROOT_DISK),
        guest_kernel=entry.file(DOM0_KERNEL),
        guest_initrd=entry.file(GUEST_INITRD),
        symbols=optional(SYMBOLS),
        xen_config=optional(XEN_CONFIG),
        xen_package_version=str(about["xen_package_version"]),
        kernel_version=str(about["kernel_version"]),
        packages=[Package.from_json(package) for package in about["packages"]],
        digest=entry.digest,
    )


def with_hypervisor(image: Image, spec: ReleaseSpec, built: Entry) -> Image:
    """``image`` with a hypervisor that was built (``release.hypervisor``) instead of its own; its files are shared."""
    about = built.manifest
    return dataclasses.replace(
        image,
        release=spec,
        key=key_of("image", image.key, built.key),
        hypervisor=built.file(hypervisor.XEN),
        symbols=built.file(hypervisor.SYMBOLS),
        xen_config=built.file(hypervisor.CONFIG),
        xen_package_version=str(about["version"]),
        digest=key_of("image", image.digest, built.digest),
        built=about,
    )
