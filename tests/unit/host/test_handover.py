"""VFIO descriptors told apart, found in another process, taken from it; each refusal's remedy."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys

import pytest

from vgpud.errors import HostError
from vgpud.host import handover
from vgpud.host.fd import OwnedFd
from vgpud.host.handover import (
    Found,
    address_of,
    device_syspath,
    devices_of,
    peer_pid,
    pick,
    take,
    take_device,
)

PID = 4242
SYSPATH = "/sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0"


@pytest.fixture
def proc(tmp_path):
    """A /proc with one process of ours."""
    process = tmp_path / str(PID)
    for folder in ("fd", "fdinfo", "attr/apparmor"):
        (process / folder).mkdir(parents=True)
    uid, gid = os.getuid(), os.getgid()
    status(tmp_path, f"Name:\tqemu\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t0")
    return tmp_path


def status(proc, text):
    (proc / str(PID) / "status").write_text(text + "\n")


def descriptor(proc, number, link, info=""):
    (proc / str(PID) / "fd" / str(number)).symlink_to(link)
    (proc / str(PID) / "fdinfo" / str(number)).write_text(info)


# -- found


def test_devices_of_a_process(proc):
    info = f"pos:\t0\nflags:\t02000002\nvfio-device-syspath: {SYSPATH}\n"
    descriptor(proc, 3, "/dev/null")
    descriptor(proc, 12, "anon_inode:[vfio-device]", info)
    descriptor(proc, 9, "/dev/vfio/devices/vfio0", info)
    descriptor(proc, 14, "anon_inode:[vfio-device]", "pos:\t0\n")
    descriptor(proc, 15, "/dev/vfio/7")
    descriptor(proc, 16, "anon_inode:[eventfd]")
    assert devices_of(PID, proc) == [Found(9, SYSPATH), Found(12, SYSPATH), Found(14, "")]


def test_of_a_process_that_is_gone(proc):
    with pytest.raises(HostError, match=r"process 77: No such file.*QEMU has ended"):
        devices_of(77, proc)


def test_of_a_process_in_another_namespace():
    with pytest.raises(HostError, match=r"another PID namespace.*vgpuctl vfio add ID"):
        devices_of(0)


def test_none_in_a_real_process():
    assert devices_of(os.getpid()) == []


@pytest.mark.parametrize("kind", ["file", "eventfd", "memfd"])
def test_what_is_no_device(kind):
    makes = {
        "file": lambda: os.open("/dev/null", os.O_RDONLY),
        "eventfd": lambda: os.eventfd(0),
        "memfd": lambda: os.memfd_create("x"),
    }
    with OwnedFd(makes[kind]()) as fd, pytest.raises(HostError, match="no VFIO device"):
        device_syspath(fd)


def test_address():
    assert address_of(SYSPATH) == "0000:01:00.0"
    assert address_of("/sys/bus/pci/devices/0000:01:00.0/") == "0000:01:00.0"
    assert address_of("") == ""


def test_peer_pid():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_pid(ours) == os.getpid()


# -- taken


@pytest.fixture
def other():
    """A process of ours that holds a memfd; (pid, number)."""
    code = "import os, sys; print(os.memfd_create('taken'), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        yield child.pid, int(child.stdout.readline())
        child.communicate()


def test_a_duplicate(other):
    with take(*other) as fd:
        assert os.readlink(f"/proc/self/fd/{fd.fileno()}") == "/memfd:taken (deleted)"
        assert not os.get_inheritable(fd.fileno())


NAMED, NAMELESS = Found(12, SYSPATH), Found(14, "")


@pytest.mark.parametrize(
    ("found", "alone", "picked"),
    [
        ([NAMELESS, NAMED], False, NAMED),
        ([NAMED], True, NAMED),
        ([NAMELESS], True, NAMELESS),
        ([NAMELESS], False, None),
        ([NAMELESS, Found(15, "")], True, None),
        ([Found(9, SYSPATH[:-1] + "1")], True, None),
        ([], True, None),
    ],
)
def test_pick(found, alone, picked):
    assert pick(found, "0000:01:00.0", alone=alone) == picked


def test_a_number_that_became_another_files(other):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HostError, match=r"memfd:taken .*no VFIO device"):
        take_device(*other, "0000:01:00.0")
    assert os.listdir("/proc/self/fd") == before


def test_a_number_that_became_another_devices(other, monkeypatch):
    monkeypatch.setattr(handover, "device_syspath", lambda fd: SYSPATH)
    with pytest.raises(HostError, match=r"is 0000:01:00\.0 by now, not 0000:02:00\.0"):
        take_device(*other, "0000:02:00.0")
    take_device(*other, "0000:01:00.0").close()
    monkeypatch.setattr(handover, "device_syspath", lambda fd: "")
    take_device(*other, "0000:02:00.0").close()


def test_a_descriptor_that_was_closed(other):
    with pytest.raises(HostError, match=r"descriptor 999 of process \d+: Bad file descriptor"):
        take(other[0], 999)


def test_a_process_that_has_ended(other):
    with pytest.raises(HostError, match="QEMU has ended"):
        take(2**22 - 1, other[1])


@pytest.fixture
def refused(monkeypatch):
    """The kernel says no; which of its conditions is not met is looked for in /proc."""

    def refuse(pidfd, fd):
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(handover._native, "pidfd_getfd", refuse)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: os.open("/dev/null", os.O_RDONLY))


def refusal(proc):
    with pytest.raises(HostError) as caught:
        take(PID, 5, proc)
    assert caught.value.errno == errno.EPERM
    assert caught.value.remedy.endswith(", or hand it over as root: vgpuctl vfio add ID")
    return str(caught.value)


USER = "Uid:\t64055\t64055\t64055\t64055\nGid:\t64055\t64055\t64055\t64055"


@pytest.mark.usefixtures("refused")
class TestRefused:
    def test_another_user(self, proc):
        status(proc, USER)
        text = refusal(proc)
        ours = f"vgpud as {os.getuid()}, {os.getgid()}"
        assert f"QEMU runs as user 64055, group 64055, {ours}: run both as the same" in text

    def test_a_saved_user_counts(self, proc):
        uid, gid = os.getuid(), os.getgid()
        status(proc, f"Uid:\t{uid}\t{uid}\t77\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}")
        assert "run both as the same" in refusal(proc)

    def test_not_dumpable(self, proc, monkeypatch):
        monkeypatch.setattr(handover, "_owner", lambda process: os.getuid() + 1)
        assert "QEMU is not dumpable" in refusal(proc)

    def test_yama(self, proc):
        (proc / "sys/kernel/yama").mkdir(parents=True)
        (proc / "sys/kernel/yama/ptrace_scope").write_text("1\n")
        assert "ptrace_scope is 1: sysctl kernel.yama.ptrace_scope=0" in refusal(proc)

    @pytest.mark.parametrize("place", ["attr/current", "attr/apparmor/current"])
    def test_apparmor(self, proc, place):
        (proc / str(PID) / place).write_text("libvirt-1234 (enforce)\n")
        text = refusal(proc)
        assert 'a security module confines QEMU ("libvirt-1234 (enforce)")' in text

    def test_unconfined(self, proc):
        (proc / str(PID) / "attr/current").write_text("unconfined\n")
        assert "look for a security module" in refusal(proc)

    def test_without_a_status(self, proc):
        (proc / str(PID) / "status").unlink()
        assert "look for a security module" in refusal(proc)


def test_an_old_kernel(monkeypatch, proc):
    def refuse(pidfd, fd):
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(handover._native, "pidfd_getfd", refuse)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: os.open("/dev/null", os.O_RDONLY))
    with pytest.raises(HostError, match=r"it needs Linux 5\.6"):
        take(PID, 5, proc)


def test_really_refused(other):
    """By the kernel: another user's process, asked by nobody."""
    if os.getuid() != 0:
        pytest.fail("run the tests as root: only root can become nobody")
    pid, number = other
    code = (
        "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from vgpud.host.handover import take\n"
        f"take({pid}, {number})"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", "import vgpud.host.handover;" + code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(r"QEMU runs as user 0, group 0, vgpud as 65534, 65534", done.stderr)
