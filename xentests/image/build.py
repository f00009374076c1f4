"""Builds an image from a release by a recipe: fetch, unpack, choose modules, pack the initrds, write the disk.

Needs no root and runs nothing of the release, so an arm64 image is made on an x86 machine like any other.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xentests.errors import LabError, LabFull
from xentests.image.cpio import Cpio
from xentests.image.disk import make_disk
from xentests.image.image import (
    DOM0_INITRD,
    DOM0_KERNEL,
    GUEST_BZIMAGE,
    GUEST_DIRECTORY,
    GUEST_INITRD,
    HYPERVISOR,
    ROOT_DISK,
    SYMBOLS,
    XEN_CONFIG,
    Image,
    image_of,
    with_hypervisor,
)
from xentests.image.kernel import plain_hypervisor, plain_kernel
from xentests.image.kernel_module import Built, build_module
from xentests.image.modules import Modules, kernel_release, module_name, prune
from xentests.image.recipe import IMAGES, LoadedRecipe, load_recipe, symbols_package
from xentests.image.unpack import Tree, one_member, patterns
from xentests.lab.store import Store, key_of
from xentests.release.deb import Package
from xentests.release.fetch import Chosen, Fetched, chosen, fetch
from xentests.release.hypervisor import build_hypervisor, find_hypervisor
from xentests.release.spec import ReleaseSpec
from xentests.release.tree import DistTree
from xentests.tools import ToolFailed

BUILDER = 5  # raise it when the same recipe and packages give another image

XEN_TOOLS = "usr/lib/xentests/xen"
ENVIRONMENT = "usr/lib/xentests/environment"
"""On the disk: the link to Xen's private tools, and what dom0's profile reads if it is there."""

# Not on the disk where a tree brings tools of its own. Debian's libraries stay, for its QEMU.
_TOOLS = ("xen-utils-*", "xen-hypervisor-*", "xenstore-utils")

BUILT_MODULES = "usr/share/xentests/modules"
"""On the disk: a file for each module that was to be built, empty, or with the reason why it was not."""

Report = Callable[[str], None]


def build_image(
    spec: ReleaseSpec,
    store: Store,
    *,
    mirror: str | None = None,
    refresh: bool = False,
    report: Report = lambda text: None,
    recipes: Path = IMAGES,
) -> Image:
    """The image of ``spec``, from the store when the same packages and recipe were built before (no network then).

    ``refresh`` asks the archive for newer packages; ``recipes`` is the directory of the recipe. Raises DownloadError,
    LabFull, LabError, and for a hypervisor to be built BuildFailed, UsageError; nothing half-made stays.
    """
    if spec.source is not None:
        built = build_hypervisor(spec, store, mirror=mirror, refresh=refresh, report=report)
        image = build_image(_below(spec), store, mirror=mirror, refresh=refresh, report=report, recipes=recipes)
        return with_hypervisor(image, spec, built)
    recipe = load_recipe(spec, directory=recipes)
    what = f"image of {spec} {spec.arch}"
    found = None if refresh else find_image(spec, store, mirror=mirror, recipes=recipes)
    if found is not None:
        return found
    fetched = fetch(spec, recipe.packages, store, mirror=mirror, refresh=refresh, report=report)

    def module(kernel: Package, name: str, file: str) -> Built:
        return build_module(spec, store, kernel, name, file, mirror=mirror)

    build = _Build(recipe, fetched, report, module).into
    try:
        return image_of(spec, store.get("image", _key(fetched.chosen, recipe), build, what=what))
    except ToolFailed as error:
        if b"No space left on device" in error.output:
            raise LabFull(f"{what}: the disk below {store.root} is full; make room: `xentests gc`, df -h") from error
        raise


def find_image(spec: ReleaseSpec, store: Store, *, mirror: str | None = None, recipes: Path = IMAGES) -> Image | None:
    """The image of ``spec`` if the store has it, else None; builds and fetches nothing."""
    if spec.source is not None:
        built = find_hypervisor(spec, store, mirror=mirror)
        image = find_image(_below(spec), store, mirror=mirror, recipes=recipes) if built else None
        return with_hypervisor(image, spec, built) if image and built else None
    recipe = load_recipe(spec, directory=recipes)
    known = chosen(spec, recipe.packages, store, mirror=mirror)
    entry = store.find("image", _key(known, recipe), what=f"image of {spec} {spec.arch}") if known else None
    return image_of(spec, entry) if entry else None


def _below(spec: ReleaseSpec) -> ReleaseSpec:
    """What a hypervisor from source shares all else with: the tools of its tree, or a Debian release."""
    return dataclasses.replace(spec, kind="tree", source=None) if spec.tree else spec.debian


def _key(packages: Chosen, recipe: LoadedRecipe) -> str:
    """Of all that goes in. Where packages came from is part of it: the same ones unsigned are another release."""
    unsigned = [package.sha256 for package in packages.packages if package.origin != "archive"]
    tree = [recipe.spec.tree.digest] if recipe.spec.tree else []
    return key_of("image", BUILDER, packages.key, recipe.key, recipe.spec.arch, recipe.spec.base, *unsigned, *tree)


@dataclass(frozen=True)
class _Build:
    loaded: LoadedRecipe
    fetched: Fetched
    report: Report
    module: Callable[[Package, str, str], Built]

    def into(self, directory: Path) -> Mapping[str, object]:
        """Fill ``directory`` with the files of the image; the tree is made beside them and deleted."""
        spec, recipe = self.loaded.spec, self.loaded.recipe
        name = f"{spec} {spec.arch}"
        path = directory / "tree"
        path.mkdir()
        self.report(f"{name}: unpacking packages")
        tree = Tree(path, left_out=patterns(recipe.disk.exclude))
        leave_out = patterns((*recipe.disk.leave_out, *(_TOOLS if spec.tree else ())))
        on_disk = [package for package in self.fetched.chosen.packages if not leave_out(package.name)]
        tree.add_all((package, self.fetched.deb(package)) for package in on_disk)
        if spec.tree:
            self.report(f"{name}: laying {spec.tree.directory} over them")
            spec.tree.lay_over(path)
        self.report(f"{name}: kernel and modules")
        release = kernel_release(path)
        self._hypervisor(directory, path)
        self._kernel(directory, release)
        self._built_modules(path, release)
        modules = self._modules(path, release)
        self.report(f"{name}: initial RAM disks and root disk")
        dom0 = self._initrd(modules, recipe.modules.initrd, self.loaded.contents[recipe.initrd.dom0], path)
        (directory / DOM0_INITRD).write_bytes(dom0)
        names, more, init = recipe.modules.guest, recipe.modules.guest_more, self.loaded.contents[recipe.initrd.guest]
        guest = self._initrd(modules, names, init, path, more=more)
        (directory / GUEST_INITRD).write_bytes(guest)
        self._add_files(path, directory)
        make_disk(path, directory / ROOT_DISK, size_mib=recipe.disk.size_mib)
        shutil.rmtree(path)
        return {
            "release": str(spec),
            "arch": spec.arch,
            "xen_package_version": spec.tree.version
            if spec.tree
            else self._package(f"xen-hypervisor-{spec.xen}-{spec.arch}").version,
            "kernel_version": release,
            "packages": [package.to_json() for package in self.fetched.chosen.packages],
        }

    def _package(self, name: str) -> Package:
        for package in self.fetched.chosen.packages:
            if package.name == name:
                return package
        raise LabError(f"{self.loaded.spec}: no package {name} among those fetched; check images/dom0.toml")

    def _hypervisor(self, directory: Path, tree: Path) -> None:
        spec = self.loaded.spec
        if spec.tree:
            self._hypervisor_of_tree(directory, spec.tree)
            return
        boot = sorted((tree / "boot").glob(f"xen-*{spec.arch}*"))
        files = [path for path in boot if path.name.removesuffix(".gz").endswith(spec.arch)]
        if len(files) != 1:
            raise LabError(f"{spec}: wanted one hypervisor in /boot, found {[path.name for path in files]}")
        xen = plain_hypervisor(files[0].read_bytes(), spec.arch, what=files[0].name)
        (directory / HYPERVISOR).write_bytes(xen)
        config = files[0].with_name(files[0].name.removesuffix(".gz") + ".config")
        if config.is_file():
            shutil.copyfile(config, directory / XEN_CONFIG)
        for name in (symbols_package(spec), f"xen-hypervisor-{spec.xen}-{spec.arch}"):
            package = next((found for found in self.fetched.chosen.packages if found.name == name), None)
            found = one_member(self.fetched.deb(package), _is_symbols) if package else None
            if found:
                (directory / SYMBOLS).write_bytes(found[1])
                return

    def _hypervisor_of_tree(self, directory: Path, tree: DistTree) -> None:
        xen = plain_hypervisor(
            (tree.directory / tree.hypervisor).read_bytes(), self.loaded.spec.arch, what=tree.hypervisor
        )
        (directory / HYPERVISOR).write_bytes(xen)
        for name, target in ((tree.symbols, SYMBOLS), (tree.config, XEN_CONFIG)):
            if name:
                shutil.copyfile(tree.directory / name, directory / target)

    def _kernel(self, directory: Path, release: str) -> None:
        package = self._package(f"linux-image-{release}")
        found = one_member(self.fetched.deb(package), lambda name: name == f"boot/vmlinuz-{release}")
        if found is None:
            raise LabError(f"{package.name}: has no /boot/vmlinuz-{release}")
        kernel = plain_kernel(found[1], self.loaded.spec.arch, what=found[0])
        (directory / DOM0_KERNEL).write_bytes(kernel)
        if self.loaded.spec.arch == "amd64":  # for HVM guests: QEMU's loader takes no vmlinux
            (directory / GUEST_BZIMAGE).write_bytes(found[1])

    def _built_modules(self, tree: Path, release: str) -> None:
        """Put modules that the kernel was built without beside its own, and write down why one is missing."""
        for name, file in self.loaded.recipe.modules.built.get(self.loaded.spec.arch, {}).items():
            built = self.module(self._package(f"linux-image-{release}"), name, file)
            if built.content:
                _write(tree / f"usr/lib/modules/{release}/kernel" / file.replace(".c", ".ko"), built.content)
            else:
                self.report(f"{self.loaded.spec}: no module {name}: {built.reason}")
            _write(tree / BUILT_MODULES / name, built.reason.encode())

    def _modules(self, tree: Path, release: str) -> Modules:
        """Keep the modules the recipe asks for, and write the list of those that dom0 loads."""
        recipe = self.loaded.recipe.modules
        names = (*recipe.initrd, *recipe.load, *recipe.guest, *recipe.guest_more)
        prune(tree, release, prefixes=recipe.keep, names=names)
        modules = Modules.read(tree, release)
        load = [module_name(path) for path in modules.order(recipe.load)]
        _write(tree / "etc/modules", "\n".join([*load, ""]).encode())
        return modules

    def _initrd(
        self, modules: Modules, names: tuple[str, ...], init: bytes, tree: Path, *, more: tuple[str, ...] = ()
    ) -> bytes:
        archive = Cpio()
        for name in ("bin", "dev", "proc", "sys", "root", "modules"):
            archive.directory(name)
        archive.device("dev/console", 5, 1)
        archive.file("bin/busybox", (tree / "usr/bin/busybox").read_bytes(), 0o755)
        order = modules.order(names)
        later = [path for path in modules.order(more) if path not in order]
        for path in (*order, *later):
            archive.file(f"modules/{module_name(path)}.ko", modules.content(path))
        lists = {"order": order, **({"more": later} if more else {})}
        for name, paths in lists.items():
            archive.file(f"modules/{name}", "".join(f"{module_name(path)}.ko\n" for path in paths).encode())
        archive.file("init", init, 0o755)
        return archive.data()

    def _add_files(self, tree: Path, directory: Path) -> None:
        recipe = self.loaded.recipe
        for name in recipe.disk.directories:
            (tree / name).mkdir(parents=True, exist_ok=True)
        for name, where in recipe.files.items():
            _write(tree / where, self.loaded.contents[name])
        for where, text in recipe.text.items():
            _write(tree / where, text.encode())
        links = dict(recipe.links)
        if tree_of_xen := self.loaded.spec.tree:
            links[XEN_TOOLS] = f"/{tree_of_xen.prefix}/lib/xen"
            libraries = f"/{tree_of_xen.prefix}/lib"
            _write(tree / ENVIRONMENT, f"export LD_LIBRARY_PATH={libraries}\n".encode())
        for where, target in links.items():
            path = tree / where
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        guest = tree / GUEST_DIRECTORY
        guest.mkdir(parents=True)
        shutil.copyfile(directory / DOM0_KERNEL, guest / "kernel")
        shutil.copyfile(directory / GUEST_INITRD, guest / "initrd")
        if (directory / GUEST_BZIMAGE).exists():
            shutil.copyfile(directory / GUEST_BZIMAGE, guest / "bzimage")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if content.startswith(b"#!") else 0o644)


def _is_symbols(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file.startswith("xen-syms") and not file.endswith(".map")
