"""A tiny Debian archive on this disk: packages of a few bytes, an index, and a signature by a key made for the test."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xentests.release.deb import control_fields, sha256_of

Files = Mapping[str, bytes | str]


def make_deb(path: Path, *, fields: Mapping[str, str] | None = None, files: Files | None = None) -> Path:
    """Write a .deb; ``files`` maps paths to contents, a ``str`` being the target of a symbolic link."""
    control = {"Package": "demo", "Version": "1.0", "Architecture": "amd64", "Maintainer": "nobody <n@example.org>"}
    control |= {"Description": "made for a test", **(fields or {})}
    text = "".join(f"{name}: {value}\n" for name, value in control.items())
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": gzip.compress(tar_of({"./control": text.encode()}), mtime=0),
        "data.tar.xz": lzma.compress(tar_of({f"./{name}": data for name, data in (files or {}).items()})),
    }
    path.write_bytes(ar_of(members))
    return path


def tar_of(files: Files) -> bytes:
    """A tar archive of files and links, with the directories above them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        made: set[str] = set()
        for name, data in files.items():
            parts = name.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                directory = "/".join(parts[:depth])
                if directory not in made | {".", ""} and ".." not in directory:
                    made.add(directory)
                    member = tarfile.TarInfo(directory)
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(member)
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
            else:
                member.size, member.mode = len(data), 0o755 if data.startswith(b"#!") else 0o644
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def ar_of(members: Mapping[str, bytes]) -> bytes:
    """The ar archive that a .deb is (deb(5))."""
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


@dataclass
class FakeArchive:
    """``root/dists/SUITE`` and ``root/pool``; :meth:`publish` signs what the pool holds."""

    root: Path
    keys: Path
    suite: str = "trixie"
    arch: str = "amd64"
    _pool: Path = field(init=False)

    def __post_init__(self) -> None:
        self._pool = self.root / "pool"
        self._pool.mkdir(parents=True)
        self.keys.mkdir(mode=0o700)
        self._gpg("--quick-generate-key", "--passphrase", "", "archive@example.org", "rsa2048", "sign", "never")
        self.keyring.write_bytes(self._gpg("--export", "archive@example.org"))

    @property
    def keyring(self) -> Path:
        """The public key."""
        return self.root / "archive.gpg"

    @property
    def mirror(self) -> str:
        """What ``--xen-mirror`` would be given."""
        return f"deb [signed-by={self.keyring}] copy:{self.root} {self.suite} main"

    def add(self, name: str, version: str = "1.0", *, depends: str = "", files: Files | None = None) -> Path:
        """Put one package into the pool."""
        fields = {"Package": name, "Version": version, "Architecture": self.arch}
        if depends:
            fields["Depends"] = depends
        return make_deb(self._pool / f"{name}_{version}_{self.arch}.deb", fields=fields, files=files)

    def publish(self) -> None:
        """Write index and signed Release file."""
        paragraphs = []
        for deb in sorted(self._pool.glob("*.deb")):
            fields = {
                **control_fields(deb),
                "Filename": f"pool/{deb.name}",
                "Size": str(deb.stat().st_size),
                "SHA256": sha256_of(deb),
            }
            paragraphs.append("".join(f"{name}: {value}\n" for name, value in fields.items()))
        packages = "\n".join(paragraphs).encode()
        dist = self.root / "dists" / self.suite
        index = dist / f"main/binary-{self.arch}/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_bytes(packages)
        release = dist / "Release"
        release.write_text(
            f"Origin: Test\nSuite: {self.suite}\nCodename: {self.suite}\nComponents: main\nArchitectures: {self.arch}\n"
            f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(packages).hexdigest()} {len(packages)} main/binary-{self.arch}/Packages\n"
        )
        inrelease = dist / "InRelease"
        inrelease.unlink(missing_ok=True)
        self._gpg("--clearsign", "--output", str(inrelease), str(release))

    def _gpg(self, *arguments: str) -> bytes:
        argv = ["gpg", "--homedir", str(self.keys), "--batch", "--quiet", "--pinentry-mode", "loopback", *arguments]
        return subprocess.run(argv, check=True, capture_output=True).stdout
