"""One ``.deb`` file: its control fields, its hash, its members. Reads with dpkg-deb, never installs."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xentests.errors import LabError
from xentests.tools import run_tool


@dataclass(frozen=True, order=True)
class Package:
    """A package as it was used. ``sha256`` is of the .deb file; ``origin`` is "archive" (signed) or "directory"."""

    name: str
    version: str
    arch: str
    sha256: str
    origin: str = "archive"

    def to_json(self) -> dict[str, str]:
        """For a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Package:
        """Back from a manifest."""
        return cls(**{key: str(value) for key, value in fields.items()})


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a control file (deb822): field name -> value, continuation lines kept with their newlines."""
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif line[0] in " \t":
            fields[name] += "\n" + line
        elif not line.startswith("#"):
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    if fields:
        yield fields


def control_files(deb: Path) -> dict[str, bytes]:
    """The control part of a package: "control", "md5sums" ... -> content. Raises LabError for anything but a .deb."""
    data = run_tool(["dpkg-deb", "--ctrl-tarfile", deb], package="dpkg")
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                files[member.name.removeprefix("./")] = content.read()
    if "control" not in files:
        raise LabError(f"{deb}: has no control file")
    return files


def control_fields(deb: Path) -> dict[str, str]:
    """The fields of a package's control file."""
    return next(stanzas(control_files(deb)["control"].decode("utf-8", "replace")), {})
