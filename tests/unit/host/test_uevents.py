"""Kernel uevents: which ones concern us, in the words in which the kernel sends them."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest

from vgpud.errors import HostError
from vgpud.host import uevents
from vgpud.host.uevents import Gone, Lost, UdmabufAppeared, Uevents, is_bound

DEVICE = "/devices/pci0000:00/0000:00:02.0/0000:01:00.0"


def event(action, path, **keys):
    fields = {"ACTION": action, "DEVPATH": path, **keys, "SEQNUM": "4711"}
    lines = [f"{action}@{path}", *(f"{key}={value}" for key, value in fields.items())]
    return "\0".join(lines).encode() + b"\0"


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (
            event("remove", f"{DEVICE}/vfio-dev/vfio0", SUBSYSTEM="vfio-dev"),
            [Gone(f"/sys{DEVICE}")],
        ),
        (
            event(
                "remove",
                f"{DEVICE}/vfio-dev/vfio0",
                SUBSYSTEM="vfio-dev",
                MAJOR="239",
                MINOR="0",
                DEVNAME="vfio/devices/vfio0",
            ),
            [Gone(f"/sys{DEVICE}")],
        ),
        (event("add", f"{DEVICE}/vfio-dev/vfio0", SUBSYSTEM="vfio-dev"), []),
        (event("bind", DEVICE, SUBSYSTEM="pci", DRIVER="vfio-pci"), []),
        (event("unbind", DEVICE, SUBSYSTEM="pci"), []),
        (event("remove", "/devices/virtual/vfio/7", SUBSYSTEM="vfio", DEVNAME="vfio/7"), []),
        (event("remove", "/vfio-dev/vfio0", SUBSYSTEM="vfio-dev"), []),
        (event("remove", f"{DEVICE}/vfio-dev/vfio0/x", SUBSYSTEM="vfio-dev"), []),
        (
            event("add", "/devices/virtual/misc/udmabuf", SUBSYSTEM="misc", DEVNAME="udmabuf"),
            [UdmabufAppeared()],
        ),
        (event("remove", "/devices/virtual/misc/udmabuf", DEVNAME="udmabuf"), []),
        (b"", []),
        (b"x", []),
        (b"add@/x\0\xff\xfe=\xff\0=\0===\0ACTION", []),
        (b"libudev\0short", []),
        (b"\0" * 8192, []),
    ],
)
def test_events(pair, data, found):
    ours, theirs = pair
    theirs.send(data)
    assert Uevents(ours).read() == found


def test_all_that_has_come(pair):
    ours, theirs = pair
    watched = Uevents(ours)
    assert watched.read() == []
    for number in range(3):
        theirs.send(event("remove", f"/d{number}/vfio-dev/vfio{number}", SUBSYSTEM="vfio-dev"))
    assert watched.read() == [Gone(f"/sys/d{number}") for number in range(3)]
    assert watched.read() == []


class Queue:
    """A socket that gives what it is told to."""

    def __init__(self, *results):
        self.results = list(results)

    def recvfrom(self, size):
        result = self.results.pop(0) if self.results else BlockingIOError()
        if isinstance(result, Exception):
            raise result
        return result


GONE = event("remove", "/d/vfio-dev/vfio0", SUBSYSTEM="vfio-dev")


def test_lost_events():
    """ENOBUFS: the queue overflowed; what came after it counts."""
    watched = Uevents(Queue(OSError(errno.ENOBUFS, "full"), (GONE, (0, 1))))
    assert watched.read() == [Lost(), Gone("/sys/d")]


def test_only_the_kernel_is_believed():
    assert Uevents(Queue((GONE, (4321, 1)), (GONE, (0, 1)))).read() == [Gone("/sys/d")]


def test_another_error_is_not_hidden():
    with pytest.raises(OSError, match="other"):
        Uevents(Queue(OSError(errno.EIO, "other"))).read()


def test_the_kernels_socket():
    watched = Uevents()
    assert watched.read() == []
    assert not os.get_inheritable(watched.fileno())
    watched.close()


def test_no_netlink(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EAFNOSUPPORT, "no")

    monkeypatch.setattr(uevents.socket, "socket", refuse)
    with pytest.raises(HostError, match=r"uevents: .*allow AF_NETLINK"):
        Uevents()


def test_is_bound(tmp_path):
    assert not is_bound(str(tmp_path))
    (tmp_path / "vfio-dev").mkdir()
    assert is_bound(str(tmp_path))


def test_a_sysfs_that_is_not_there_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(uevents, "PCI", str(tmp_path / "none"))
    assert is_bound(str(tmp_path))
    monkeypatch.setattr(uevents, "PCI", str(tmp_path))
    assert not is_bound(str(tmp_path))


def test_imported_only_when_something_is_watched():
    code = "import sys, vgpud.host.uevents; print('pyroute2' in sys.modules)"
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
