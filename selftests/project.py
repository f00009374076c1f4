"""The project's own files, for the tests that read them. Not about any release."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


@functools.cache
def tracked_files() -> tuple[str, ...]:
    """Paths of all files under version control, and of new ones that are not ignored, relative to the root."""
    argv = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, check=True, capture_output=True).stdout.decode().split("\0")
    return tuple(sorted(name for name in set(listed) if name and (ROOT / name).is_file()))


def python_files(below: str = "") -> list[str]:
    """The Python files among them whose path starts with ``below``."""
    return [name for name in tracked_files() if name.endswith(".py") and name.startswith(below)]
