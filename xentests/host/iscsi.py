"""iSCSI of dom0: a target of its own kernel (LIO, through configfs), and open-iscsi as initiator, by loopback or link.

LIO rather than tgt, whose LUN 0 is never a disk: Xen's block-iscsi takes LUN 0. Sources: Linux's
Documentation/target/ and drivers/target/iscsi/iscsi_target_configfs.c, iscsiadm(8), /etc/xen/scripts/block-iscsi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xentests.deadline import until
from xentests.errors import ProductFailure

if TYPE_CHECKING:
    from xentests.host.host import Host

PORTAL = "127.0.0.1:3260"
INITIATOR = "iqn.2026-01.org.xentests:dom0"
_CONFIG = "/sys/kernel/config/target"
_MODULES = ("configfs", "iscsi_tcp", "iscsi_target_mod", "target_core_file", "sd_mod")
# $1: the target's name; $2: the file; $3: its size in bytes; $4: the portal. The disk is LUN 0, open to any initiator.
_EXPORT = f"""
set -e
store={_CONFIG}/core/fileio_0/${{1##*:}} group={_CONFIG}/iscsi/$1/tpgt_1
mkdir -p "$store" "$group/lun/lun_0" "$group/np/$4"
echo "fd_dev_name=$2,fd_dev_size=$3" > "$store/control"
echo 1 > "$store/enable"
ln -s "$store" "$group/lun/lun_0/disk"
echo 0 > "$group/attrib/authentication"
echo 0 > "$group/attrib/demo_mode_write_protect"
echo 1 > "$group/attrib/generate_node_acls"
echo 1 > "$group/enable"
"""


@dataclass(frozen=True)
class Target:
    """A disk that dom0 offers by iSCSI; ``file`` holds its content."""

    iqn: str
    file: str
    portal: str = PORTAL

    @property
    def params(self) -> str:
        """As a disk's ``target`` with Xen's script block-iscsi."""
        return f"iqn={self.iqn},portal={self.portal}"

    @property
    def url(self) -> str:
        """As QEMU's own initiator has it: iscsi://PORTAL/IQN/LUN."""
        return f"iscsi://{self.portal}/{self.iqn}/0"


class Iscsi:
    """Target and initiator of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self) -> None:
        """Load drivers and start the initiator's daemon."""
        host = self._host
        host.succeed("modprobe", "-a", *_MODULES)
        host.succeed("mount", "-t", "configfs", "configfs", "/sys/kernel/config")
        host.write_file("/etc/iscsi/initiatorname.iscsi", f"InitiatorName={INITIATOR}\n".encode())
        host.succeed("iscsid")
        until(
            lambda: host.run("iscsiadm", "-m", "session").exit_code in (0, 21),  # 21: no session, but an answer
            what=f"{host.name}: an answer of iscsid",
            deadline=20.0,
            error=ProductFailure,
        )

    def export(self, name: str, *, size_mib: int = 8, portal: str = PORTAL) -> Target:
        """A new target with one blank disk, which dom0 itself can log in to, too: see ``expect``."""
        target = Target(f"iqn.2026-01.org.xentests:{name}", f"/var/tmp/{name}.img", portal)
        self._host.succeed("truncate", "-s", f"{size_mib}M", target.file)
        self._host.succeed("sh", "-c", _EXPORT, "export", target.iqn, target.file, size_mib << 20, portal)
        self.expect(target)
        return target

    def expect(self, target: Target, *, disk: str = "sda") -> None:
        """Ready dom0 for a target. ``disk``: what its kernel will call it once it is logged in.

        There is no udev in dom0, so the link that block-iscsi waits for is made here; it leads nowhere until then.
        """
        folder = "/dev/disk/by-path"
        self._host.succeed("mkdir", "-p", folder)
        self._host.succeed("ln", "-s", f"../../{disk}", f"{folder}/ip-{target.portal}-iscsi-{target.iqn}-lun-0")

    def sessions(self) -> list[str]:
        """The names of the targets that dom0 is logged in to."""
        result = self._host.run("iscsiadm", "-m", "session")
        return [line.split()[3] for line in result.text.splitlines() if line.startswith("tcp:")]
