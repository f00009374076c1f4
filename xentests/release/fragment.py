"""Kconfig fragments: lines of a ``.config`` (Linux: Documentation/kbuild/kconfig.rst), read."""

from __future__ import annotations

import re
from pathlib import Path

from xentests.errors import UsageError

_SET = re.compile(r"CONFIG_(\w+)=(.*)")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")


def parse(text: str) -> dict[str, str]:
    """A ``.config`` or a fragment of one: name without CONFIG_ -> value. ValueError for a line that is neither."""
    values = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if match := _SET.fullmatch(line):
            values[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line):
            values[match[1]] = "n"
        elif line and not line.startswith("#"):
            raise ValueError(f"line {number}, {line[:80]!r}: neither CONFIG_NAME=VALUE nor a comment")
    return values


def read_fragment(text: str) -> tuple[Path, str]:
    """The absolute path and the content of a Kconfig fragment. UsageError when it cannot be read."""
    path = Path(text).expanduser().absolute()
    try:
        fragment = path.read_text(encoding="utf-8")
        parse(fragment)
    except ValueError as error:
        raise UsageError(f"kconfig={text}: not a Kconfig fragment: {error}") from error
    except OSError as error:
        raise UsageError(f"kconfig={text}: no Kconfig fragment to read there ({error}); give a file of lines "
                         f"CONFIG_NAME=y") from error  # fmt: skip
    return path, fragment
