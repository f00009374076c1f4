"""The project's cut into layers, looked up in the syntax trees: who imports what, and how long a file is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from selftests.project import ROOT, python_files

# Module -> the only places that may import it.
OWNERS = {
    "libvirt": ("xentests/lab/libvirt_driver.py",),
    "libvirt_qemu": ("xentests/lab/libvirt_driver.py",),
    "pexpect": ("xentests/host/guest_console.py",),
    "testinfra": ("xentests/host/inspect.py",),
    "allure": ("xentests/report/",),
    "allure_commons": ("xentests/report/",),
    "allure_pytest": ("xentests/report/",),
    "sqlalchemy": ("xentests/report/", "xentests/qualify/outcome.py"),
    "alembic": ("xentests/report/history/",),
    "jinja2": ("xentests/report/qualification/page.py",),
    "kcidb_io": ("xentests/report/qualification/kcidb.py",),
    "scipy": ("xentests/report/qualification/statistics.py",),
}
# The way of the data; a module imports its own rank and lower ones. The longest matching name counts.
RANKS = {
    "xentests": 0,
    "xentests.lab.store": 0,
    "xentests.release": 1,
    "xentests.image": 2,
    "xentests.lab": 3,
    "xentests.payload": 3,
    "xentests.load": 3,
    "xentests.trace": 2,
    "xentests.host": 4,
    "xentests.report": 5,
    "xentests.session": 5,
    "xentests.pytest_plugin": 6,
    "xentests.doctor": 6,
    "xentests.bench": 6,
    "xentests.bench_guests": 6,
    "xentests.bench_migration": 6,
    "xentests.shell": 6,
    "xentests.pytest_process": 0,
    "xentests.qualify": 6,
    "xentests.bisect": 6,
    "xentests.cli_qualify": 7,
    "xentests.cli": 7,
    "fixtures": 7,
    "suites": 8,
    "selftests": 9,
}
LONGEST = 400


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it; for ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rank(module: str) -> int | None:
    known = [name for name in RANKS if module == name or module.startswith(f"{name}.")]
    return RANKS[max(known, key=len)] if known else None


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("module", OWNERS)
def test_foreign_library_has_one_owner(module: str) -> None:
    """libvirt, pexpect, testinfra and Allure are each known in one place."""
    guilty = [
        name
        for name in python_files()
        if not name.startswith((*OWNERS[module], "selftests/"))
        and any(found.partition(".")[0] == module for found in imports(ROOT / name))
    ]
    assert not guilty


def test_layers_know_only_those_before_them() -> None:
    """No layer imports from one on its right."""
    guilty = []
    for name in python_files():
        own = rank(module_name(name))
        if own is None:
            continue
        for found in imports(ROOT / name):
            other = rank(found)
            if other is not None and other > own:
                guilty.append(f"{name} imports {found}")
    assert not guilty


def test_suites_know_no_lab() -> None:
    """A suite says what is asked of a release: no QEMU, no processes, no files of the outer machine.

    What a machine is like (``xentests.lab.machine``) is part of the question.
    """
    forbidden = {"xentests.lab", "subprocess", "os", "shutil", "socket"}
    allowed = ("xentests.lab.machine",)
    guilty = [
        f"{name} imports {found}"
        for name in python_files("suites/")
        for found in imports(ROOT / name)
        if found in forbidden or (found.startswith("xentests.lab.") and not found.startswith(allowed))
    ]
    assert not guilty


def test_root_conftest_only_lists_plugins() -> None:
    """The root conftest holds a docstring and `pytest_plugins`, nothing else."""
    tree = ast.parse((ROOT / "conftest.py").read_text())
    kinds = [ast.unparse(node).partition("=")[0].strip() for node in tree.body if not isinstance(node, ast.Expr)]
    assert [kind for kind in kinds if not kind.startswith("from __future__")] == ["pytest_plugins"]


def test_files_stay_readable() -> None:
    """No Python file is much longer than a person reads in one go."""
    long = {name: lines for name in python_files() if (lines := len((ROOT / name).read_text().splitlines())) > LONGEST}
    assert not long
