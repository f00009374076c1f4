"""Payloads for one hypervisor, as tests ask for them: short calls for the common kinds, a builder for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from xentests.payload import hooks
from xentests.payload.architecture import of_machine
from xentests.payload.builder import OPAQUE_SIZE, Expectation, Payload, PayloadBuilder
from xentests.payload.symbols import HypervisorSymbols

EXTRA_VERSION = "xen_extra_version"
MINOR_VERSION = "xen_minor_version"
"""Two functions that every release has, that do nothing but return, and that dom0 and every guest can call."""


class Payloads:
    """Makes payloads named ``p1``, ``p2``, ... (or as told): unique within one test, the same in every run."""

    def __init__(self, symbols: HypervisorSymbols) -> None:
        self.symbols = symbols
        self.arch = of_machine(symbols.machine)
        """How the hypervisor's architecture does things."""
        self._numbers = count(1)

    def builder(self, name: str = "", *, on: Payload | None = None) -> PayloadBuilder:
        """An empty payload to be filled; ``on`` is the payload that must have been applied last."""
        builder = PayloadBuilder(name or f"p{next(self._numbers)}", self.symbols)
        return builder.on_top_of(on) if on is not None else builder

    def replace(
        self,
        function: str = EXTRA_VERSION,
        *,
        returns: int | str,
        on: Payload | None = None,
        name: str = "",
        expect: Expectation | None = None,
    ) -> Payload:
        """Replace one function by one that returns a number or a string."""
        return self.builder(name, on=on).replace(function, returns_value=returns, expect=expect).build()

    def replace_all(self, returns: Mapping[str, int | str], *, on: Payload | None = None) -> Payload:
        """Replace several functions by ones that return."""
        builder = self.builder(on=on)
        for function, value in returns.items():
            builder.replace(function, returns_value=value)
        return builder.build()

    def tracer(self) -> Payload:
        """The payload that makes the marks of hooks visible as the extra version: see :mod:`xentests.payload.hooks`."""
        return hooks.tracer(self.symbols)

    def expectation(self, function: str = EXTRA_VERSION) -> Expectation:
        """What the first bytes of an unpatched function are; at most 31 can be stated."""
        return Expectation(self.symbols.code(function)[:OPAQUE_SIZE])

    def first_instruction(self, function: str) -> int:
        """Where a function's code begins behind what indirect calls land on (ENDBR64), if it has that, in bytes."""
        landing = self.arch.landing
        return len(landing) if landing and self.symbols.code(function).startswith(landing) else 0
