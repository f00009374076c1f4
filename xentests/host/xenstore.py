"""xenstore, through its command-line clients in dom0. Values are text; what is not printable is escaped there and back.

Escapes are those of ``sanitise_value`` in Xen's xenstore_client.c: ``\\t \\n \\r \\\\``, three octal, two hex digits.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xentests.errors import CommandFailed

if TYPE_CHECKING:
    from xentests.host.host import Host

_ESCAPE = re.compile(r"\\(t|n|r|\\|x[0-9a-fA-F]{2}|[0-7]{3})")
_NAMED = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
_LINE = re.compile(r'^(?P<path>/.*?)(?: = "(?P<value>.*)"|:)$')


def unescape(text: str) -> str:
    """What the clients print, as it stands in the store; bytes above ASCII as UTF-8 where they are."""

    def one(match: re.Match[str]) -> str:
        code = match.group(1)
        if code in _NAMED:
            return _NAMED[code]
        return chr(int(code[1:], 16) if code[0] == "x" else int(code, 8))

    raw = _ESCAPE.sub(one, text)
    try:
        return raw.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return raw


def parse_ls(text: str) -> dict[str, str]:
    """The output of ``xenstore-ls -f``: full path to value."""
    found = {}
    for line in text.split("\n"):
        match = _LINE.match(line)
        if match:
            found[match["path"]] = unescape(match["value"] or "")
    return found


class Xenstore:
    """``host.xenstore``."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def read(self, path: str) -> str:
        """The value of a node. Raises CommandFailed if there is none."""
        return unescape(self._host.succeed("xenstore-read", path).text)

    def write(self, path: str, value: str) -> None:
        """Set a node's value as it is given, creating the node and its parents."""
        self._host.succeed("xenstore-write", "-R", path, value)

    def exists(self, path: str) -> bool:
        """Whether there is such a node."""
        return self._host.run("xenstore-exists", path).exit_code == 0

    def children(self, path: str) -> list[str]:
        """The names of a node's children."""
        return self._host.succeed("xenstore-list", path).text.split("\n")

    def ls(self, path: str = "/") -> dict[str, str]:
        """Everything below a node: full path to value. Empty if there is no such node."""
        result = self._host.run("xenstore-ls", "-f", path)
        if result.exit_code != 0:
            if self.exists(path):
                raise CommandFailed(str(result))
            return {}
        return parse_ls(result.text)

    def rm(self, path: str) -> None:
        """Remove a node and everything below it."""
        self._host.succeed("xenstore-rm", path)
