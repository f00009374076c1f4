"""Machine code under construction, for whichever architecture: what payloads are made of, in the words of a function.

A function of a payload returns something, calls something, adds to a counter. Those verbs are here, without a body;
``x86`` and ``arm64`` say what they are in instructions, and have verbs of their own for what is theirs alone. Addresses
of other things stay open as fixups, which become ELF relocations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from xentests.errors import UsageError
from xentests.payload.elf import Place

Target = str | Place
"""What an instruction refers to: a symbol of the hypervisor or of a loaded payload, or a place in this payload."""


@dataclass(frozen=True)
class Fixup:
    """A place at ``offset`` that a relocation of type ``kind`` (of the code's architecture) fills for ``target``."""

    offset: int
    target: Target
    addend: int
    kind: int


class Code(ABC):
    """Machine code of one function. Methods append and return the object itself, so that calls can be chained.

    The "result" is the register that a function of C returns an ``int`` or pointer in, the "argument" is its first.
    They may be one register: what sets one loses the other. Verbs that set neither keep both, unless they say so.
    """

    def __init__(self, content: bytes = b"") -> None:
        self._bytes = bytearray(content)
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self.fixups: list[Fixup] = []

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def content(self) -> bytes:
        """The bytes with all jumps resolved. Raises :class:`UsageError` for a jump to a label that is nowhere."""
        done = bytearray(self._bytes)
        for offset, label in self._jumps:
            if label not in self._labels:
                raise UsageError(f"jump to the label {label!r}, which was never placed")
            done[offset : offset + 4] = self._aimed(bytes(done[offset : offset + 4]), self._labels[label] - offset)
        return bytes(done)

    def raw(self, content: bytes) -> Self:
        """Append bytes as they are."""
        self._bytes += content
        return self

    def label(self, name: str) -> Self:
        """Name this place for jumps."""
        self._labels[name] = len(self._bytes)
        return self

    def offset_of(self, label: str) -> int:
        """The offset of a placed label, in bytes from the start."""
        return self._labels[label]

    @abstractmethod
    def ret(self) -> Self:
        """Return."""

    @abstractmethod
    def set_result(self, value: int) -> Self:
        """The result is a number of 32 bits; negative ones are two's complement, as an ``int`` of C is returned."""

    @abstractmethod
    def result_address(self, target: Target) -> Self:
        """The result is the address of something, e.g. of a string."""

    @abstractmethod
    def load_result(self, target: Target) -> Self:
        """The result is the 32 bits at ``target``."""

    @abstractmethod
    def load_pointer(self, target: Target) -> Self:
        """The result is the 64 bits at ``target``."""

    @abstractmethod
    def load_member(self, offset: int) -> Self:
        """The result is the 32 bits ``offset`` bytes behind where the argument points."""

    @abstractmethod
    def load_interrupts(self) -> Self:
        """The result is 0 when this CPU takes no interrupts, else another number."""

    @abstractmethod
    def argument_address(self, target: Target) -> Self:
        """The argument (of a function to be called) is the address of something."""

    @abstractmethod
    def add32(self, target: Target, value: int) -> Self:
        """Add to the 32 bits at ``target``, which are 4-aligned."""

    @abstractmethod
    def put_letter(self, buffer: Target, count: Target, letter: int) -> Self:
        """Put a byte into ``buffer`` at index ``count`` (32 bits, modulo 16), and add 1 to that.

        The argument is kept, the result is not.
        """

    @abstractmethod
    def nop(self) -> Self:
        """Do nothing, by the shortest instruction that does."""

    @abstractmethod
    def enter(self) -> Self:
        """Begin a function that calls others."""

    @abstractmethod
    def leave(self) -> Self:
        """End what :meth:`enter` began, before a return or :meth:`jump_to`."""

    @abstractmethod
    def call(self, target: Target) -> Self:
        """Call a function, after :meth:`enter`."""

    @abstractmethod
    def jump_to(self, target: Target) -> Self:
        """Go on in another function, which returns to the caller of this one: a tail call."""

    @abstractmethod
    def keep_argument(self) -> Self:
        """After :meth:`enter`: keep the argument across all that follows, for the verbs below."""

    @abstractmethod
    def argument_kept(self) -> Self:
        """The argument is again the one that was kept."""

    @abstractmethod
    def argument_from(self, number: int, member: int, addend: int) -> Self:
        """Argument 0 or 1 is the pointer ``member`` bytes behind where the kept one points, plus ``addend``."""

    @abstractmethod
    def set_behind(self, member: int, addend: int, value: int, *, size: int) -> Self:
        """Set 1 or 4 bytes ``addend`` behind where that pointer points; result and arguments are lost."""

    @abstractmethod
    def go(self, label: str) -> Self:
        """Go to a label."""

    @abstractmethod
    def go_if(self, value: int, label: str) -> Self:
        """Go to a label when the result, as 32 bits, is ``value``: 0 to 127."""

    @abstractmethod
    def go_unless(self, value: int, label: str) -> Self:
        """Go to a label when it is not."""

    @abstractmethod
    def _aimed(self, jump: bytes, distance: int) -> bytes:
        """Four bytes that belong to a jump, made to reach ``distance`` bytes from themselves."""

    def fixup(self, target: Target, kind: int, addend: int = 0) -> Self:
        """Have a relocation fill what is appended next."""
        self.fixups.append(Fixup(len(self._bytes), target, addend, kind))
        return self


Body = Callable[[Code], Code]
"""A function for whichever architecture: called with empty code of it, and returns that code with all in it."""


def returns(value: int) -> Body:
    """A function that returns an integer."""
    return lambda code: code.set_result(value).ret()


def returns_address(target: Target) -> Body:
    """A function that returns the address of something, e.g. of a string."""
    return lambda code: code.result_address(target).ret()
