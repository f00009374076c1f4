"""The marker ``needs``: which capabilities a test asks of the release, checked when tests are collected.

Whether a running host has them is asked by the fixtures, and answered by the host layer; this is about well-formed
markers only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

MARKER = "needs(capability, ...): capabilities of the release and machine the test needs; without them it is not run"
_SIGNATURE = "needs(capability, ...) takes one or more names of capabilities"


def needs_of(item: pytest.Item) -> tuple[str, ...]:
    """The capabilities ``item`` needs, from all its markers (function, class, module), each once, in their order."""
    markers = reversed(list(item.iter_markers("needs")))
    return tuple(dict.fromkeys(str(name) for marker in markers for name in marker.args))


def check_needs(items: Iterable[pytest.Item], known: Collection[str]) -> None:
    """Raise pytest.UsageError, naming every test whose marker is not right and what there is."""
    problems: dict[str, list[str]] = {}
    for item in items:
        for marker in item.iter_markers("needs"):
            for problem in _problems(marker, known):
                problems.setdefault(problem, []).append(item.nodeid)
    if problems:
        lines = []
        for problem, named in problems.items():
            tests = list(dict.fromkeys(named))
            also = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
            lines.append(f"{tests[0]}{also}: {problem}")
        lines.append(f"{_SIGNATURE}. There are: {', '.join(sorted(known))}")
        raise pytest.UsageError("\n".join(lines))


def _problems(marker: pytest.Mark, known: Collection[str]) -> Iterable[str]:
    if marker.kwargs:
        yield f"needs() takes no keyword arguments: {', '.join(marker.kwargs)}"
    if not marker.args:
        yield "needs() without a capability"
    for name in marker.args:
        if not isinstance(name, str):
            yield f"needs({name!r}): a capability is given by its name"
        elif name not in known:
            yield f"needs({name!r}): unknown capability"
