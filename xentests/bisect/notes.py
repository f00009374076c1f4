"""What a search has seen, in one file of JSON that is written anew after each run, so that it can be taken up again.

Holds observations, not conclusions: what follows from them is worked out from the first one again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from xentests.bisect.step import Outcome, Result
from xentests.errors import LabError, UsageError
from xentests.report.run import write_json

NAME = "bisect.json"


class Observation(msgspec.Struct, frozen=True):
    """One run, as :class:`xentests.bisect.step.Outcome` has it, and the full name of its commit."""

    commit: str
    result: str
    reason: str = ""
    lasting: bool = False
    seconds: float = 0.0
    where: str = ""

    @property
    def outcome(self) -> Outcome:
        """What was seen."""
        return Outcome(Result(self.result), self.reason, self.lasting, self.seconds, self.where)


class _Page(msgspec.Struct, frozen=True):
    asked: dict[str, object]
    observations: list[Observation]


class Notes:
    """The file ``directory/bisect.json``. ``asked`` is any JSON that says what is searched: other notes do not fit.

    UsageError when the file there is of another search or cannot be read.
    """

    def __init__(self, directory: Path, asked: Mapping[str, object]) -> None:
        self.path = directory / NAME
        self._asked = msgspec.json.decode(msgspec.json.encode(dict(asked)), type=dict[str, object])
        self._observations: list[Observation] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
            text = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise LabError(f"{self.path}: {error.strerror}; choose another --dir") from error
        try:
            page = msgspec.json.decode(text, type=_Page)
            self._observations = page.observations
            for observation in page.observations:
                Result(observation.result)
        except (msgspec.DecodeError, ValueError) as error:
            raise UsageError(f"{self.path} is damaged: {error}; remove it to begin anew") from error
        if page.asked != self._asked:
            differs = [key for key in self._asked if self._asked[key] != page.asked.get(key)]
            raise UsageError(
                f"{self.path} is of another search ({', '.join(differs) or 'it says more'}); choose another --dir, or "
                f"remove it"
            )

    @property
    def observations(self) -> tuple[Observation, ...]:
        """In the order in which they were made."""
        return tuple(self._observations)

    def add(self, commit: str, outcome: Outcome) -> None:
        """Keep one run. LabError when the disk refuses."""
        seen = Observation(commit, str(outcome.result), outcome.reason, outcome.lasting, outcome.seconds, outcome.where)
        self._observations.append(seen)
        write_json(self.path, msgspec.to_builtins(_Page(self._asked, self._observations)))
