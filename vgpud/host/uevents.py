"""Kernel uevents: what of the hardware comes and goes (kernel-dmabuf.md 5).

pyroute2 reads them. It is imported with the first Uevents, not with this module: 100 ms and 11 MiB.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final, NamedTuple

from vgpud.errors import HostError

KERNEL: Final = 1
"""The multicast group of the kernel's own events; udev's are sent again in another."""

RECEIVE: Final = 1 << 20
"""Bytes of queue: a burst of some thousand events, e.g. a module that is loaded."""

MAX_EVENT: Final = 8192
"""Bytes: the kernel's own limit is 2048 and a path (UEVENT_BUFFER_SIZE)."""


class Gone(NamedTuple):
    """A device is about to be taken from VFIO: its user's descriptors are waited for."""

    syspath: str
    """/sys/devices/...: of the PCI device."""


class UdmabufAppeared(NamedTuple):
    """/dev/udmabuf is there now. udev may not have set its permissions yet."""


class Lost(NamedTuple):
    """Events were lost: sysfs is to be looked at."""


Uevent = Gone | UdmabufAppeared | Lost


class Uevents:
    """The kernel's events that concern us. Wait until fileno() is readable, then read()."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        """Raises HostError where there are none: a sandbox without AF_NETLINK, no pyroute2."""
        try:
            from pyroute2.netlink.uevent import MarshalUevent
        except (ImportError, OSError) as error:
            raise HostError(f"uevents: {error}", remedy="install pyroute2") from error
        self._marshal = MarshalUevent()
        self._sock = _kernel_socket() if sock is None else sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def read(self) -> list[Uevent]:
        """All that has come; never waits."""
        found: list[Uevent] = []
        while True:
            try:
                data, sender = self._sock.recvfrom(MAX_EVENT)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found.append(Lost())
                continue
            # Root may send to this group too; the kernel's own port is 0.
            if isinstance(sender, tuple) and sender[0] != 0:
                continue
            for message in self._marshal.parse(data):
                event = _event(message.get("ACTION"), message.get("DEVPATH"), message)
                if event is not None:
                    found.append(event)


PCI: Final = "/sys/bus/pci"


def is_bound(syspath: str) -> bool:
    """Whether a device is VFIO's, as sysfs has it: after lost events, and where none came yet. It
    is believed to be where there is no sysfs: a container, a sandbox."""
    return os.path.isdir(f"{syspath}/vfio-dev") or not os.path.isdir(PCI)


def _kernel_socket() -> socket.socket:
    from pyroute2.netlink import NETLINK_KOBJECT_UEVENT

    try:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT
        )
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE)
        sock.bind((0, KERNEL))
    except OSError as error:
        raise HostError.of(error, "uevents", "allow AF_NETLINK") from error
    return sock


def _event(action: object, path: object, message: dict[str, str]) -> Uevent | None:
    if not isinstance(action, str) or not isinstance(path, str):
        return None
    if action == "remove" and message.get("SUBSYSTEM") == "vfio-dev":
        device, _, name = path.rpartition("/vfio-dev/")
        return Gone(f"/sys{device}") if device and "/" not in name else None
    if action == "add" and message.get("DEVNAME") == "udmabuf":
        return UdmabufAppeared()
    return None
