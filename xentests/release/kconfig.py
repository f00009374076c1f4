"""What became of a Kconfig fragment: options that Kconfig dropped or changed, each with the reason.

Kconfig says nothing when a line cannot be followed. The reasons are looked up by kconfiglib in Xen's own Kconfig files
(their language: Linux, Documentation/kbuild/kconfig-language.rst).
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import kconfiglib


@dataclass(frozen=True)
class Dropped:
    """An option that is not what the fragment asked for. Values are as in a ``.config``, ``n`` where it is not set."""

    name: str
    wanted: str
    got: str
    reason: str

    def __str__(self) -> str:
        return f"CONFIG_{self.name}={self.wanted} was not taken (it is {self.got}): {self.reason}"


def dropped(asked: Mapping[str, str], became: Mapping[str, str], explain: Explain) -> list[Dropped]:
    """The options of ``asked`` that ``became`` something else, with their reasons."""
    lost = [(name, value, became.get(name, "n")) for name, value in asked.items() if became.get(name, "n") != value]
    return [Dropped(name, wanted, got, explain(name, wanted)) for name, wanted, got in lost]


class Explain:
    """Why options cannot have values, by the Kconfig files of the tree ``xen`` and the ``.config`` that came of it.

    ``environment`` is what Xen's Makefile exports to Kconfig.
    """

    def __init__(self, xen: Path, config: Path, environment: Mapping[str, str]) -> None:
        self._kconfig: kconfiglib.Kconfig | None = None
        self._unknown = ""
        try:
            with _environment({**environment, "srctree": str(xen)}):
                self._kconfig = kconfiglib.Kconfig("Kconfig", warn=False)
                self._kconfig.load_config(str(config))
        except (kconfiglib.KconfigError, OSError) as error:
            # Xen's own Kconfig has read the same files: that the option was not taken is sure all the same.
            self._kconfig = None
            self._unknown = f"why is not known, since kconfiglib cannot read this tree's Kconfig files: {error}"

    def __call__(self, name: str, wanted: str) -> str:  # noqa: PLR0911 - one for each reason
        """The reason, as the end of a sentence."""
        if self._kconfig is None:
            return self._unknown
        symbol = self._kconfig.syms.get(name)
        if symbol is None or not symbol.nodes:
            near = difflib.get_close_matches(name, self._kconfig.syms, n=3)
            return "this Xen has no such option" + (f"; did you mean {' or '.join(near)}?" if near else "")
        if unmet := sorted(set(_unmet(symbol.direct_dep))):
            return f"it depends on {' and on '.join(unmet)}, which is not so"
        if wanted == "n" and (by := sorted(set(_selecting(symbol.rev_dep)))):
            return f"it is selected by {', '.join(by)}"
        if not any(node.prompt and kconfiglib.expr_value(node.prompt[1]) for node in symbol.nodes):
            conditions = sorted({kconfiglib.expr_str(node.prompt[1]) for node in symbol.nodes if node.prompt})
            if conditions:
                return f"it can be set only with {' or '.join(conditions)}"
            return "it is not for the user to set: it follows from other options"
        if symbol.choice is not None:
            chosen = symbol.choice.selection
            return f"it is one of a choice, and {chosen.name if chosen else 'another'} was chosen"
        return f"the value is outside what it may be ({kconfiglib.TYPE_TO_STR[symbol.type]})"


def _unmet(expression: object) -> Iterator[str]:
    """The parts of a dependency that are not met, as they are written."""
    if isinstance(expression, tuple) and expression[0] is kconfiglib.AND:
        yield from _unmet(expression[1])
        yield from _unmet(expression[2])
    elif not kconfiglib.expr_value(expression):
        yield str(kconfiglib.expr_str(expression))


def _selecting(expression: object) -> Iterator[str]:
    if isinstance(expression, tuple) and expression[0] is kconfiglib.OR:
        yield from _selecting(expression[1])
        yield from _selecting(expression[2])
    elif kconfiglib.expr_value(expression):
        yield str(kconfiglib.expr_str(expression))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """kconfiglib reads srctree and the Makefile's variables from the environment, and only from there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
