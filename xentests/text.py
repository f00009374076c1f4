"""Guest text is hostile: what comes out of a guest, dom0 or Xen is cleaned before a person or a parser sees it.

Escape sequences could rewrite a terminal, control characters make XML ill-formed, and one endless line makes a report
unreadable. Raw bytes are kept on disk; only what is shown goes through here.
"""

from __future__ import annotations

import re

_ESCAPES = re.compile(
    r"""\x1b\[[0-?]*[ -/]*[@-~]        # CSI (ECMA-48 5.4)
      | \x1b[\]PX^_].*?(?:\x07|\x1b\\|$)  # OSC, DCS, SOS, PM, APC up to their terminator
      | \x1b[ -/]*[0-~]                # two-character and nF escapes
    """,
    re.VERBOSE,
)
_LINE_END = re.compile("\r+\n|\r")
# Everything XML 1.0 forbids (section 2.2), C1 controls, bidirectional overrides and lone surrogates; \t and \n stay.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(raw: bytes | str, *, limit: int | None = None) -> str:
    """Text safe for a terminal, XML and HTML viewers: no escapes, no control characters but tab and newline.

    Undecodable bytes and forbidden characters become U+FFFD. With ``limit`` (characters) the middle is cut out and
    the cut is said, since both the first and the last lines of a log matter.
    """
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    # A serial line behind a terminal's line discipline ends lines in \r\r\n.
    text = _LINE_END.sub("\n", text)
    text = _ESCAPES.sub("", text)
    text = _FORBIDDEN.sub("\ufffd", text)
    if limit is not None and len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters cut ...]\n{text[-half:]}"
    return text


def display(raw: bytes | str, *, limit: int, line_limit: int = 1000) -> str:
    """Cleaned text for a report: no line longer than ``line_limit`` characters, all of it no longer than ``limit``.

    What is cut out is said where it was. A text that has been through this once stays as it is (hence the slack).
    """
    slack = 100
    lines = clean(raw).split("\n")
    for number, line in enumerate(lines):
        if len(line) > line_limit + slack:
            half = line_limit // 2
            lines[number] = f"{line[:half]} [... {len(line) - 2 * half} characters cut ...] {line[-half:]}"
    text = "\n".join(lines)
    return clean(text, limit=limit) if len(text) > limit + slack else text


def head(raw: bytes | str, *, lines: int = 15, limit: int = 4000) -> str:
    """The first ``lines`` non-empty lines of cleaned text, at most ``limit`` characters, for an error message."""
    kept = [line for line in clean(raw).split("\n") if line.strip()][:lines]
    return "\n".join(kept)[:limit]


def tail(raw: bytes | str, *, lines: int = 15, limit: int = 2000) -> str:
    """The last ``lines`` non-empty lines of cleaned text, at most ``limit`` characters, for an error message."""
    kept = [line for line in clean(raw).split("\n") if line.strip()][-lines:]
    return "\n".join(kept)[-limit:]
