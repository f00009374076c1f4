"""Watches what a giant machine really occupies, and ends it before it takes the outer machine down with it.

A giant has more memory than there is, so nothing but its budget keeps it from growing until the kernel's out-of-memory
killer chooses a victim, which need not be the giant. One that outgrows its budget, or grows while the outer machine
runs out of memory, is killed here, with figures: the lab was too small or the expectation wrong; Xen did nothing wrong.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

_EVERY_S = 0.2
"""An emulated CPU touches at most some hundred MiB in that time; admission keeps as much free."""
_FLOOR_MIB = 256
"""With less than this available on the outer machine the kernel is about to kill somebody."""
_FIRST_TO_DIE = 900
"""proc(5), oom_score_adj: should the kernel be quicker all the same, it takes the giant and not its neighbours."""


class Watchdog:
    """Watches the process ``pid`` of the machine ``name`` until that ends or has outgrown ``budget_mib``.

    ``peak_mib`` is the most that it has occupied so far (VmHWM, proc(5)); ``verdict`` why it was ended, if it was.
    """

    def __init__(self, name: str, pid: int, *, budget_mib: int, available_mib: Callable[[], int] | None = None) -> None:
        self.peak_mib = 0
        self.verdict = ""
        self._name = name
        self._budget_mib = budget_mib
        self._available_mib = available_mib or _available_mib
        self._over = threading.Event()
        with contextlib.suppress(psutil.Error, OSError):
            self._process = psutil.Process(pid)
            Path(f"/proc/{pid}/oom_score_adj").write_text(str(_FIRST_TO_DIE))
            threading.Thread(target=self._watch, name=f"watchdog {name}", daemon=True).start()

    def look(self) -> int:
        """Look now; the most that it has occupied so far (VmHWM, proc(5)), in MiB."""
        with contextlib.suppress(psutil.Error, OSError, KeyError):
            self._look()
        return self.peak_mib

    def stop(self) -> None:
        """Look a last time, and no more."""
        self.look()
        self._over.set()

    def _watch(self) -> None:
        with contextlib.suppress(psutil.Error, OSError, KeyError):  # it has ended
            while not self._over.is_set():
                resident_mib, available_mib = self._look(), self._available_mib()
                if resident_mib > self._budget_mib or available_mib < _FLOOR_MIB:
                    self.verdict = self._figures(resident_mib, available_mib)
                    self._process.kill()
                    return
                self._over.wait(_EVERY_S)

    def _look(self) -> int:
        """MiB that it occupies now; keeps the most it ever has."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        resident_mib, peak_mib = (int(status[key].split()[0]) >> 10 for key in ("VmRSS", "VmHWM"))
        self.peak_mib = max(self.peak_mib, peak_mib)
        return resident_mib

    def _figures(self, resident_mib: int, available_mib: int) -> str:
        over = resident_mib > self._budget_mib
        return (
            f"{self._name}: ended by the lab, which decides nothing about Xen: it occupied {resident_mib} MiB of the "
            f"{self._budget_mib} MiB reserved for it, and {available_mib} MiB were left on this machine. "
            + (
                "What was run in it touches more memory than its test expects (Machine.resident_mib)"
                if over
                else "Something else took the memory: end it, or run this on a larger machine"
            )
        )


def _available_mib() -> int:
    return int(psutil.virtual_memory().available >> 20)
