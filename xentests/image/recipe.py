"""The recipe of an image, read from a TOML file: packages, modules, files. Says what, not how; builds nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from xentests.errors import LabError
from xentests.lab.store import key_of
from xentests.release.spec import ReleaseSpec

IMAGES = Path(__file__).parents[2] / "images"


class Packages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``all``: for every release; ``more``: those of "ARCH" and of "SUITE/ARCH" besides.

    ``symbols``: "SUITE/ARCH" -> the package that brings xen-syms.
    """

    all: tuple[str, ...]
    more: dict[str, tuple[str, ...]] = {}
    symbols: dict[str, str] = {}


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The root disk: its size and what is left out of it or made besides what the packages bring."""

    size_mib: int
    leave_out: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


class Modules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kernel modules: kept on the disk (prefixes below ``kernel/``), in dom0's initrd, loaded by dom0, in guests.

    ``guest`` are loaded when a guest boots, ``guest_more`` are there to be loaded. ``built``: for "ARCH", modules that
    its kernels lack, each with its file in the kernel's source, to be compiled and put beside the others.
    """

    keep: tuple[str, ...]
    initrd: tuple[str, ...]
    load: tuple[str, ...]
    guest: tuple[str, ...]
    guest_more: tuple[str, ...] = ()
    built: dict[str, dict[str, str]] = {}


class Initrd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files that become ``/init`` of the two initrds, relative to the recipe."""

    dom0: str
    guest: str


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of ``images/dom0.toml``. Paths on the disk have no leading slash."""

    packages: Packages
    disk: Disk
    modules: Modules
    files: dict[str, str]
    links: dict[str, str]
    text: dict[str, str]
    initrd: Initrd


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe for one release: names filled in, and the contents of the files it adds."""

    recipe: Recipe
    spec: ReleaseSpec
    contents: Mapping[str, bytes]

    @property
    def key(self) -> str:
        """Of the recipe and the contents of every file it names."""
        return key_of("recipe", msgspec.json.encode(self.recipe).decode(), sorted(self.contents.items()))

    @property
    def packages(self) -> tuple[str, ...]:
        """The names of the packages to fetch."""
        packages, suite = self.recipe.packages, f"{self.spec.base}/{self.spec.arch}"
        symbols = packages.symbols.get(suite, "")
        if self.spec.overlay:
            symbols = symbols_package(self.spec)
            if symbols not in {package.name for package in self.spec.overlay.packages}:
                symbols = ""
        more = (*packages.more.get(self.spec.arch, ()), *packages.more.get(suite, ()))
        return (*packages.all, *more, *([symbols] if symbols else []))


def symbols_package(spec: ReleaseSpec) -> str:
    """The name Debian gives the package with xen-syms where it is one of its own."""
    return f"xen-hypervisor-{spec.xen}-{spec.arch}-dbg"


def load_recipe(spec: ReleaseSpec, *, directory: Path = IMAGES, name: str = "dom0") -> LoadedRecipe:
    """Read ``directory/NAME.toml`` for ``spec``. Raises LabError when it does not read or a file is missing."""
    path = directory / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8").replace("{xen}", spec.xen).replace("{arch}", spec.arch)
        recipe = msgspec.convert(tomllib.loads(text), Recipe)
        named = [*recipe.files, recipe.initrd.dom0, recipe.initrd.guest]
        contents = {file: (directory / file).read_bytes() for file in named}
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: the image recipe does not read: {error}") from error
    return LoadedRecipe(recipe, spec, contents)
